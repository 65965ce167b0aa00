.DEFAULT_GOAL := help
.PHONY: help setup prepare serve test versions chaos soak lint format lock bench bench-ops clean

CONFIG ?= ray_configs/smollm2_cpu.yaml
BIN := .venv/bin
export RAY_USAGE_STATS_ENABLED ?= 0
export PYTHONUNBUFFERED = 1

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18
	@echo "  PYTHON=...      the Python (3.10 to 3.12) that .venv is made with"
	@echo "  CONFIG=...      the Serve configuration of make serve ($(CONFIG))"
	@echo "  PYTEST_ARGS=... arguments for pytest, e.g. PYTEST_ARGS='-m \"not slow\" tests/gpu_ops'"

setup: ## Python environment with the pinned dependencies
	@scripts/setup.sh

prepare: setup ## setup, native ops and the default model
	@$(BIN)/python -m deployments.start.prepare

# bireme serve prepares what CONFIG names and serves it. It starts a Ray of its own, even if another one happens to
# run here, unless RAY_ADDRESS names a cluster.
serve: setup ## set everything up and serve the default model
	@exec $(BIN)/bireme serve $(CONFIG)

test: prepare ## set everything up and run all tests
	@$(BIN)/python scripts/test.py $(PYTEST_ARGS)

versions: setup ## a short pass with Python 3.10 and NumPy 1.26, and with 3.12, where they are installed
	@$(BIN)/python scripts/versions.py

chaos: prepare ## kill and stop processes under load (FAULTS=500 SEED=1), compare every answer with its undisturbed twin
	@scripts/chaos.sh $(or $(FAULTS),500) $(or $(SEED),1)

soak: prepare ## faults under load for a while (SECONDS=600 SEED=1), and a look at what grows meanwhile
	@$(BIN)/python -m tests.soak.run --seconds $(or $(SECONDS),600) --seed $(or $(SEED),1) $(SOAK_ARGS)

lint: setup ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy

format: setup ## let ruff rewrite the layout of every file
	@$(BIN)/ruff format .

bench: prepare ## the default model: engine, HTTP, memory, rows and prompts; LLAMA=llama-batched-bench takes turns with it
	@$(BIN)/python -m benchmarks.bench $(BENCH_ARGS)
	@$(BIN)/python -m benchmarks.bench_weight_formats $(if $(LLAMA),--llama-batched-bench $(LLAMA))

bench-ops: prepare ## native ops one by one, with their bandwidth
	@$(BIN)/python -m benchmarks.bench_ops $(BENCH_ARGS)

lock: setup ## pin the newest dependencies again (LOCK_PYTHONS: a 3.10, a 3.11 and a 3.12)
	@$(BIN)/python scripts/lock.py $(LOCK_PYTHONS)

clean: ## remove the environment and everything that was generated in this folder
	rm -rf .venv build bireme.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
