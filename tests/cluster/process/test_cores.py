"""Cores of a container, and what of them a process uses."""

from __future__ import annotations

import os

import pytest

from cluster.process.cores import usable_cores
from cluster.process.cpu_share import CpuShare
from cluster.process.machine_size import ray_cpus, usable_memory

HERE = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "max 100000\n"}, HERE),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, min(HERE, 64)),
        ({"cpu.max": "nonsense\n"}, HERE),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, HERE),
        ({}, HERE),
    ],
)
def test_a_container_s_limit_counts(tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == cores


def test_a_container_s_size_is_what_ray_counts(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_USE_MULTIPROCESSING_CPU_COUNT", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    all_memory = usable_memory(tmp_path)
    assert ray_cpus(tmp_path) == 64
    for name, text in {"cpu.max": "max 100000\n", "memory.max": "max\n"}.items():
        (tmp_path / name).write_text(text)
    assert (ray_cpus(tmp_path), usable_memory(tmp_path)) == (64, all_memory)
    for name, text in {"cpu.max": "250000 100000\n", "memory.max": "1073741824\n"}.items():
        (tmp_path / name).write_text(text)
    assert (ray_cpus(tmp_path), usable_memory(tmp_path)) == (2, 1 << 30)
    monkeypatch.setenv("RAY_USE_MULTIPROCESSING_CPU_COUNT", "1")
    assert ray_cpus(tmp_path) == 64


def test_the_share_is_of_the_last_seconds_and_unknown_at_first():
    at, spent = 0.0, 5.0
    share = CpuShare(10.0, lambda: at, lambda: spent)
    assert share.look() is None
    at, spent = 4.0, 9.0
    assert share.look() is None, "what happens at the start is no load"
    at, spent = 8.0, 9.0
    assert share.look() == 0.5
    for _ in range(10):
        at, spent = at + 2, spent + 2
        last = share.look()
    assert last == pytest.approx(1.0)
    for _ in range(10):
        at += 2
        last = share.look()
    assert last == 0.0
