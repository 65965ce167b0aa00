"""The log of decisions is bounded, and only its owner reads it."""

from __future__ import annotations

import os
import stat

import pytest

from deployments.autoscaling.decision_file import DecisionFile, file_name


def test_a_file_that_is_full_gives_way_and_the_one_before_it_stays(tmp_path):
    file = DecisionFile(tmp_path / "log.jsonl", max_bytes=100)
    for number in range(40):
        file.write([b"%09d" % number])
    kept = [*(tmp_path / "log.jsonl.1").read_text().split(), *(tmp_path / "log.jsonl").read_text().split()]
    assert kept == [f"{number:09d}" for number in range(40 - len(kept), 40)]
    assert len(kept) > 10
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2 * 110
    assert len(list(tmp_path.iterdir())) == 2


def test_a_later_writer_goes_on_and_nobody_else_may_read(tmp_path):
    path = tmp_path / "log.jsonl"
    for line in (b"one", b"two"):
        DecisionFile(path).write([line])
    assert path.read_bytes() == b"one\ntwo\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    DecisionFile(tmp_path / "unused").write([])
    assert not (tmp_path / "unused").exists()


def test_it_is_not_written_through_a_link(tmp_path):
    os.symlink(tmp_path / "elsewhere", tmp_path / "log.jsonl")
    with pytest.raises(OSError):
        DecisionFile(tmp_path / "log.jsonl").write([b"one"])


def test_an_application_s_name_makes_a_plain_name_of_a_file():
    assert file_name("../a b") == "autoscaling_..-a-b.jsonl"
