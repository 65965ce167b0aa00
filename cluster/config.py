"""Documented configuration: one pydantic model for the engine, one for the whole application.

Names are vLLM's, FastDeploy's and Ray Serve LLM's where they agree. Unknown or out-of-range settings are refused by name.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from cluster.api_errors import shown
from cluster.api_key import is_api_key
from cluster.wording import nearest, setting_fault

DEFAULT_MODEL = "smollm2-135m-instruct"
SIMULATED = "simulated"
# The kind of error that an unknown setting is.
UNKNOWN_SETTING = "extra_forbidden"


# Formats of answers, which parsers of ``deployments/parsers`` read.
ToolCallParser = Literal[
    "auto", "none", "deepseek_v3", "deepseek_v31", "ernie45", "glm45", "granite", "hermes", "json", "llama3_json", "llama4_json",
    "llama4_pythonic", "mistral", "pythonic", "qwen3_coder", "qwen3_xml",
]  # fmt: skip
ReasoningParser = Literal[
    "auto", "none", "deepseek_r1", "ernie45", "ernie_x1", "glm45", "granite", "granite33", "qwen3"
]


def _fault(says: str) -> PydanticCustomError:
    """Of settings together, which are looked at outside of what words the faults of each: without pydantic's own prefix."""
    return PydanticCustomError("value_error", "{says}", {"says": says})


class Settings(BaseModel):
    """Settings that say in this project's words what is wrong with them."""

    @model_validator(mode="wrap")
    @classmethod
    def _in_own_words(cls, values: Any, validate: ModelWrapValidatorHandler[Any]) -> Any:
        try:
            return validate(values)
        except ValidationError as error:
            faults = error.errors(include_url=False)
            raise ValidationError.from_exception_data(
                cls.__name__, [cls._reworded(fault) for fault in faults]
            ) from None

    @classmethod
    def _reworded(cls, fault: ErrorDetails) -> InitErrorDetails:
        path = fault["loc"]
        if "says" in (context := fault.get("ctx", {})):  # a mapping within has done so
            says = context["says"]
        elif fault["type"] == UNKNOWN_SETTING:
            known = sorted(cls.model_fields)
            near = nearest(str(path[-1]), known)
            says = f"is no setting{f'; did you mean {near}?' if near else ''}; allowed: {', '.join(known)}"
        else:
            says = setting_fault(fault, is_secret=path[:1] == ("api_keys",))
        kind: Any = fault["type"]
        # The kind stays; as a value, a sentence may have braces.
        custom = PydanticCustomError(kind, "{says}", {"says": says})
        return InitErrorDetails(type=custom, loc=path, input=fault["input"])


class EngineConfig(Settings):
    """Settings of one engine (one copy of the model).

    Raises:
        ValidationError: every setting at fault with what it may be, in this project's words; none shows an API key.
    """

    # strict: a number of another type is a mistake (max_num_seqs=True), not something to convert.
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        hide_input_in_errors=True,
    )

    model: str = Field(
        DEFAULT_MODEL, description="Model: the default's name, a GGUF file, a directory, or a Hugging Face id."
    )
    model_id: str | None = Field(
        None,
        min_length=1,
        max_length=1024,
        description="Name under which clients ask for the model; default: derived from model.",
    )
    tokenizer: str | None = Field(
        None,
        description="Directory, tokenizer.json, GGUF file, or the default model's name, to use instead of the model's own.",
    )
    load_format: Literal["auto", "dummy"] = Field(
        "auto", description="dummy: random weights for the model's config.json."
    )
    device: Literal["auto", "cpu", "gpu", "simulated"] = Field(
        "auto",
        description="Where the engine computes; auto: a GPU if there is one (in the Ray cluster; without Ray, that Paddle sees), else the CPU. simulated: nowhere; tokens are seeded and without sense, to measure what stands around engines.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Type that is computed in, and that weights have; auto: float32 on the CPU, bfloat16 on a GPU. The CPU runs float32 only, a GPU the 16-bit types.",
    )
    weight_format: Literal["auto", "stored", "float32"] = Field(
        "auto",
        description="stored: on the CPU, matrices that a GGUF file holds as Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K or IQ4_NL are multiplied as they are stored, by inputs that are rounded to 8 bits, and those of F16 and BF16 by inputs as they are; float32: all are expanded. auto: stored where the CPU computes and the file has such matrices, else float32.",
    )
    max_model_len: int | None = Field(
        None,
        ge=16,
        le=1_048_576,
        description="Longest prompt plus output in tokens; default: the model's own limit, at most 8192.",
    )
    max_num_seqs: int = Field(16, ge=1, le=1024, description="Sequence slots: requests that run at the same time.")
    max_num_batched_tokens: int | None = Field(
        None,
        ge=16,
        le=131_072,
        description="Token budget of one step; longer prompts are prefilled in chunks. Default: 64 on the CPU, 2048 on a GPU, at least max_num_seqs.",
    )
    block_size: Literal[16, 32, 64] = Field(16, description="Tokens in one KV-cache block.")
    num_kv_blocks: int | None = Field(
        None, ge=2, le=16_777_216, description="KV blocks; default: from the memory settings below."
    )
    kv_cache_dtype: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto",
        description="Type that the KV cache stores. On the CPU float32, or for 2 and almost 4 times the tokens bfloat16 and int8; auto: float32. A GPU stores the type of its weights.",
    )
    kv_cache_memory_gb: float = Field(1.0, gt=0, le=4096, description="Memory for the KV cache on the CPU, in GiB.")
    ready_weights_gb: float | None = Field(
        None,
        ge=0,
        le=4096,
        description="Weights are kept in the cache folder as the device reads them, of all models so many GiB on the disk, and a later start maps or copies them. 0: none. Default: 4, or this model alone where it has more.",
    )
    weights_from_peers: bool = Field(
        True,
        description="A node without the model's files takes them from an engine of the application that runs on another node, before it asks the hub.",
    )
    gpu_memory_utilization: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Share of a GPU's memory that the engine may use: weights, steps, and the KV cache.",
    )
    batch_invariant: bool = Field(
        False,
        description="On a GPU, matmuls and attention whose results for a sequence do not depend on the others; slower. On a CPU they never depend on them.",
    )
    enforce_eager: bool = Field(False, description="On a GPU, launch steps op by op instead of replaying CUDA graphs.")
    decode_graph_memory_gb: float = Field(
        2.0,
        gt=0,
        le=64,
        description="On a GPU, most memory for the CUDA graphs of decode steps, and of small models' steps with prompts, in GiB; sizes left out replay a larger one, or run op by op.",
    )
    enable_prefix_caching: bool = Field(True, description="Reuse KV blocks of equal prefixes.")
    enable_overlap_schedule: bool = Field(True, description="Launch step N before step N-1 is saved.")
    num_threads: int | None = Field(
        None, ge=1, le=256, description="CPU threads that compute; default: the machine's cores."
    )
    max_queued_requests: int = Field(
        256, ge=1, le=1_000_000, description="Requests that may wait in an engine; more get 429."
    )
    oldest_first_every: int = Field(
        8,
        ge=1,
        le=1_000_000,
        description="Of so many admissions one goes to the request that has waited longest, whatever its field priority says, so that urgent requests starve nobody; 1: first come, first served.",
    )
    max_queue_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of max_queued_requests that requests of one API key may hold, where several are configured; more get 429. Within a priority, keys take turns.",
    )
    prefill_delay_steps: int | None = Field(
        None,
        ge=0,
        le=64,
        description="Steps for which a prompt may wait for others while answers go on, so that one step computes them all, where requests come often. Default: 4 for small models on a GPU, whose steps take as long with one prompt as with several, else 0.",
    )
    logprobs_mode: Literal["raw", "processed"] = Field(
        "raw",
        description="Log-probabilities of generated tokens; raw: of the model's own distribution; processed: after penalties, biases, forbidden tokens and temperature, but with what top_k, top_p and min_p leave out. Those of prompts are raw.",
    )
    hang_timeout_s: float = Field(
        3.0,
        ge=0.5,
        le=3600,
        description="Silence after which an engine counts as hung: of its process, or of one step that only decodes; a step with prefill may take ten times as long.",
    )
    dummy_seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of the random weights of load_format dummy, and of simulated tokens."
    )
    simulated_step_s: float = Field(
        0.005, gt=0, le=60, description="With device simulated, seconds that a step takes, however many tokens it has."
    )
    simulated_token_s: float = Field(
        0.0, ge=0, le=1, description="With device simulated, seconds that each token of a step adds."
    )

    @field_validator("model_id")
    @classmethod
    def _printable(cls, value: str | None) -> str | None:
        if value is not None and not value.isprintable():
            raise ValueError(f"must be of printable characters, got {value!r}")
        return value

    @field_validator("block_size", mode="before")
    @classmethod
    def _whole_block_size(cls, value: Any) -> Any:
        # A choice among values is compared by ==, to which 16.0 is 16.
        if isinstance(value, float):
            raise ValueError(f"must be an integer, got {value!r}")
        return value

    @model_validator(mode="after")
    def _budget_covers_every_slot(self) -> EngineConfig:
        if self.max_num_batched_tokens is not None and self.max_num_batched_tokens < self.max_num_seqs:
            raise _fault(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs ({self.max_num_seqs}): "
                "every running sequence decodes one token a step"
            )
        return self


SERVE_OPTIONS = frozenset(
    {
        "num_replicas",
        "autoscaling_config",
        "max_ongoing_requests",
        "max_queued_requests",
        "graceful_shutdown_timeout_s",
        "graceful_shutdown_wait_loop_s",
        "health_check_period_s",
        "health_check_timeout_s",
        "ray_actor_options",
        "logging_config",
        "request_router_config",
    }
)


# More engines than this nobody starts by mistake.
MOST_ENGINES = 10_000
# CPUs that Ray reserves for an ingress, and for the replica beside a runner.
INGRESS_CPUS = 0.2
ENGINE_REPLICA_CPUS = 0.1


class Autoscaling(Settings):
    """How many engines there are, by objectives; all but that it is on can be changed while the application runs."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    min_replicas: int = Field(
        1,
        ge=0,
        le=MOST_ENGINES,
        description="Engines that stay without load; 0: none, and the next request starts one.",
    )
    max_replicas: int = Field(ge=1, le=MOST_ENGINES, description="Engines at most; has to be given.")
    slo_ttft_s: float = Field(
        2.0, gt=0, le=3600, description="Seconds within which the first token of an answer is to come."
    )
    slo_tpot_ms: float = Field(
        100.0, gt=0, le=3_600_000, description="Milliseconds that each further token of an answer may take on the mean."
    )
    slo_share: float = Field(
        0.99, gt=0, lt=1, description="Share of the answers that are to come within these objectives."
    )
    cost_weight: float = Field(
        1.0,
        gt=0,
        le=100,
        description="How much an engine's time counts against answers that come late; more than 1: fewer engines, less head room.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Autoscaling:
        if self.min_replicas > self.max_replicas:
            raise _fault(f"min_replicas ({self.min_replicas}) must be at most max_replicas ({self.max_replicas})")
        return self


class LLMConfig(EngineConfig):
    """Argument of ``deployments.llm:build_openai_app``: the engine's settings and those of the Serve application."""

    model_aliases: list[str] = Field(
        default_factory=list,
        max_length=16,
        description="Further names under which clients may ask for the model; answers and metrics have model_id.",
    )
    deployment_config: dict[str, Any] = Field(
        default_factory=dict,
        description="Ray Serve options of the engine deployment, e.g. num_replicas or autoscaling_config.",
    )
    ingress_config: dict[str, Any] = Field(
        default_factory=dict,
        description="Ray Serve options of the ingress deployment. Without num_replicas and autoscaling_config there are as many ingresses as the load needs (docs/autoscaling.md).",
    )
    autoscaling: Autoscaling | None = Field(
        None,
        description="Engines come and go by objectives (docs/autoscaling.md), instead of num_replicas or Ray Serve's autoscaling_config. Default: as deployment_config says.",
    )
    runner_num_cpus: float = Field(0.5, gt=0, le=256, description="CPUs that Ray reserves for a runner actor.")
    runner_num_gpus: float | None = Field(
        None,
        ge=0,
        le=1,
        description="GPUs that Ray reserves for a runner actor; default: 1 with device gpu, and with auto where the cluster has a GPU; else 0.",
    )
    accelerator_type: str | None = Field(None, description="Ray accelerator type the runner needs, e.g. H200.")
    api_keys: list[str] = Field(
        default_factory=list,
        repr=False,
        description="Accepted bearer tokens, visible ASCII without spaces: in a file for `bireme serve` and from Python, as Ray Serve shows arguments to others.",
    )
    api_keys_file: str | None = Field(
        None,
        min_length=1,
        description="File with accepted bearer tokens, one a line, that no other user may read; without it and api_keys: BIREME_API_KEY (comma separated) if set, else open.",
    )
    share_prefix_cache: bool = Field(
        False,
        description="Let requests of different API keys reuse each other's cached prefixes; whoever has a key can then find out whether another one sent a prompt.",
    )
    max_attempts: int = Field(
        5, ge=1, le=100, description="Times a request is submitted before it fails because engines died under it."
    )
    routing_policy: Literal["power_of_two", "least_tokens"] = Field(
        "power_of_two",
        description="Engine that a request is sent to; power_of_two: of two at random, the one whose requests, running and waiting, have fewer tokens, of which those of prompts still to be computed count tenfold; least_tokens: of all, the one with the fewest.",
    )
    drain_timeout_s: float = Field(
        20.0,
        ge=0,
        le=86_400,
        description="Seconds that a leaving engine lets its requests finish before it hands the rest over to other engines.",
    )
    max_prompt_bytes: int | None = Field(
        None,
        ge=1024,
        le=2**30,
        description="Largest request body in bytes; default: 32 for each token of max_model_len or, up to 4 MiB, 16 for each of max_choices prompts; at least 1 MiB.",
    )
    special_tokens_in_messages: Literal["text", "control"] = Field(
        "text",
        description="What a special token written out in a chat, like <|im_end|>, is: text, its characters; or control, the token itself, with which a message can end its turn and begin one of the system. In a completion's prompt it is the token.",
    )
    unknown_fields: Literal["refuse", "ignore"] = Field(
        "refuse",
        description="What happens to a field of a request that this server does not know: the request is refused, or the field left out. Fields that it knows and cannot serve are refused either way.",
    )
    trust_request_chat_template: bool = Field(
        False,
        description="Let requests bring a chat_template instead of the model's. It runs in a sandbox, but may keep an ingress busy.",
    )
    trust_request_documents: bool = Field(
        False,
        description="Let requests bring documents for the model's chat template, which may put them where it trusts what it reads.",
    )
    tool_call_parser: ToolCallParser = Field(
        "auto",
        description="How the model writes tool calls: auto, what its chat template tells of; none, no calls are looked for and tools are refused; or a format (docs/tools.md).",
    )
    reasoning_parser: ReasoningParser = Field(
        "auto",
        description="How the model writes its reasoning: auto, what its chat template tells of; none, it stays in the content; or a format (docs/reasoning.md).",
    )
    generation_config: str = Field(
        "auto",
        min_length=1,
        description="Sampling parameters of requests that name none; auto: those of the model's generation_config.json or GGUF metadata; none: the API's own; or a directory with a generation_config.json.",
    )
    warm_spares: int = Field(
        0,
        ge=0,
        le=64,
        description="Processes for so many engines that wait on each node, with Paddle imported and kept weights mapped; they reserve memory in Ray, and no CPU or GPU. The next engine starts in them.",
    )
    request_log: Literal["text", "json", "off"] = Field(
        "text",
        description="Line of the ingress's log, and at the terminal of `bireme serve`, for each request that is over or refused: text, name=value; json, one object; off, none. At most 100 a second; of more it is their number.",
    )
    start_timeout_s: float = Field(
        1800.0,
        ge=1,
        le=86_400,
        description="Seconds, from the start of Ray on, until the model must be ready; then `bireme serve` ends and says what it waited for. Of several applications in a file each has its own.",
    )
    ttft_target_s: float | None = Field(
        None,
        gt=0,
        le=3600,
        description="Target for the time to the first token, in seconds; metrics count the answers within it. Default: autoscaling.slo_ttft_s, else none.",
    )
    tpot_target_s: float | None = Field(
        None,
        gt=0,
        le=3600,
        description="Target for the mean time between the tokens of an answer, in seconds; metrics count the answers within it. Default: that of autoscaling.slo_tpot_ms, else none.",
    )
    max_choices: int = Field(128, ge=1, le=1024, description="Most sequences of one HTTP request (prompts times n).")
    allowed_origins: list[str] = Field(
        default_factory=list,
        max_length=64,
        description="Origins (like https://chat.example, or * for all) whose pages a browser lets read answers, by CORS; never with its cookies. Default: none.",
    )

    @field_validator("model_aliases")
    @classmethod
    def _names(cls, value: list[str]) -> list[str]:
        for i, name in enumerate(value):
            if not 1 <= len(name) <= 1024 or not name.isprintable() or name in value[:i]:
                raise ValueError(f"name {i} must be another one of 1 to 1024 printable characters, got {shown(name)}")
        return value

    @field_validator("deployment_config", "ingress_config")
    @classmethod
    def _known_serve_options(cls, value: dict[str, Any]) -> dict[str, Any]:
        unknown = sorted(set(value) - SERVE_OPTIONS)
        if unknown:
            near = nearest(unknown[0], SERVE_OPTIONS)
            hint = f"did you mean {near}?" if near else f"allowed: {', '.join(sorted(SERVE_OPTIONS))}"
            raise ValueError(f"unknown Ray Serve option {', '.join(unknown)}; {hint}")
        return value

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, value: list[str]) -> list[str]:
        for origin in value:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[a-z0-9.:\[\]-]+", origin):
                raise ValueError(
                    f"{origin[:80]!r} is no origin: scheme://host or scheme://host:port in lower case, without a path, or *"
                )
        return value

    @field_validator("api_keys")
    @classmethod
    def _usable_keys(cls, value: list[str]) -> list[str]:
        for i, key in enumerate(value):
            if not is_api_key(key):  # which is a secret even if it is wrong
                raise ValueError(f"key {i} must be of visible ASCII characters without spaces, at least one")
        return value

    @model_validator(mode="after")
    def _keys_of_one_kind(self) -> LLMConfig:
        if self.api_keys and self.api_keys_file is not None:
            raise _fault("api_keys and api_keys_file: give one of them")
        return self

    @model_validator(mode="after")
    def _one_way_to_scale(self) -> LLMConfig:
        given = [name for name in ("num_replicas", "autoscaling_config") if name in self.deployment_config]
        if self.autoscaling is not None and given:
            raise _fault(
                f"autoscaling and deployment_config.{given[0]} both say how many engines there are: give one of them"
            )
        return self

    @property
    def engine_counts(self) -> tuple[int, int]:
        """How many engines there are at least, and at most."""
        if self.autoscaling is not None:
            return self.autoscaling.min_replicas, self.autoscaling.max_replicas
        options = self.deployment_config
        scaling = options.get("autoscaling_config")
        if scaling is None:
            count = options.get("num_replicas")
            count = count if isinstance(count, int) else 1
            return count, count
        return scaling.get("min_replicas", 1), scaling.get("max_replicas", 1)

    @property
    def latency_targets_s(self) -> tuple[float | None, float | None]:
        """For the first token, and for each one after it; None: not counted."""
        if (own := self.autoscaling) is None:
            return self.ttft_target_s, self.tpot_target_s
        return self.ttft_target_s or own.slo_ttft_s, self.tpot_target_s or own.slo_tpot_ms / 1e3

    def for_engines(self) -> LLMConfig:
        """What an engine replica is told: nothing of how many there are and of other names, so that a change of it replaces
        none."""
        counts = ("num_replicas", "autoscaling_config")
        kept = {name: value for name, value in self.deployment_config.items() if name not in counts}
        mine: dict[str, Any] = {"ingress_config": {}, "model_aliases": [], "autoscaling": None}
        return self.model_copy(update={"deployment_config": kept, **mine})

    def for_ingress(self) -> LLMConfig:
        """What an ingress is told: of the engines' options only the bounds of their number, where it changes by itself."""
        if (own := self.autoscaling) is not None:
            own = Autoscaling.model_validate({"min_replicas": own.min_replicas, "max_replicas": own.max_replicas})
        scaling = self.deployment_config.get("autoscaling_config")
        minimum, maximum = self.engine_counts
        bounds = {"min_replicas": minimum, "max_replicas": maximum}
        kept = {} if scaling is None else {"autoscaling_config": bounds}
        return self.model_copy(update={"deployment_config": kept, "ingress_config": {}, "autoscaling": own})

    def engine_config(self) -> EngineConfig:
        """The part that an engine needs."""
        return EngineConfig(**{name: getattr(self, name) for name in EngineConfig.model_fields})
