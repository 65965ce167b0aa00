"""The slot fields are declared once: tensors, C++ structs, bindings and inserts follow, and nobody lists them again."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from gpu_ops import insert_columns, slot_header
from gpu_ops.share_inputs import ShareInputs, field_arrays
from gpu_ops.slot_fields import FIELDS, FIXED_SIZES, STATE_OPS, TOKENS
from gpu_ops.sources import CSRC, generated_headers, sources_hash, with_includes

ROOT = Path(__file__).parents[2]
NAMES = {entry.name for entry in FIELDS}
# What computes with fields names a few at a time; a list of them names many in a few lines.
WINDOW, MOST_NAMES = 6, 10


def most_names_together(text: str) -> int:
    """Fields named in the most crowded lines that follow each other."""
    named = [NAMES & set(re.findall(r"\w+", line)) for line in text.splitlines()]
    return max((len(set().union(*named[at : at + WINDOW])) for at in range(len(named))), default=0)


def test_no_other_source_lists_the_fields():
    sources = [path for room in ("gpu_ops", "actors") for path in (ROOT / room).rglob("*") if path.is_file()]
    crowded = {
        str(path.relative_to(ROOT))
        for path in sources
        if path.suffix in {".py", ".h", ".cc", ".cu", ".cuh"} and most_names_together(path.read_text()) > MOST_NAMES
    }
    assert crowded == {"gpu_ops/slot_fields.py"}


def test_tensors_are_the_declared_fields():
    names = [entry.name for entry in FIELDS]
    assert [entry.name for entry in fields(ShareInputs)] == [*names, "block_size"]
    assert list(field_arrays(2, 8, 4)) == names


@pytest.mark.parametrize("op", STATE_OPS, ids=lambda op: op.name)
def test_the_struct_of_an_op_has_its_fields_in_the_order_of_its_tensors(op):
    (struct,) = re.findall(rf"^struct {slot_header.camel(op.name)}State {{$.*?^}};$", slot_header.text(), re.M | re.S)
    names = [entry.name for entry in op.fields]
    assert re.findall(r"^  (?:const )?\w+\* (\w+) = nullptr;", struct, re.M) == names
    assert re.findall(r'visit\("(\w+)"', struct) == names
    assert set(re.findall(r"^  const \w+\* (\w+)", struct, re.M)) == op.reads


def test_an_insert_writes_every_field_of_a_slot():
    body = slot_header.text().partition("insert_values(")[2]
    written = re.findall(r"state\.(\w+)\[slot\b[^]]*\] =", body)
    history = [entry.name for entry in FIELDS if entry.request == TOKENS]
    assert sorted(written + history) == sorted(entry.name for entry in FIELDS if entry.per_slot)


@pytest.mark.parametrize("array", ["INTS", "FLOATS"])
def test_columns_follow_each_other_without_gaps(array):
    columns = getattr(insert_columns, array)
    at = 1 if array == "INTS" else 0
    for column in columns:
        assert column.start == at
        at += column.size
    assert at == getattr(insert_columns, f"NUM_{array}")
    assert {size for column in columns for size in column.field.row_sizes} <= FIXED_SIZES.keys()


def test_the_generated_header_counts_as_a_source(monkeypatch):
    kernel = CSRC / "kernels" / "state" / "update_inputs.cc"
    other = CSRC / "kernels" / "layers" / "norm.cc"
    before = sources_hash(), with_includes(kernel), with_includes(other)
    monkeypatch.setattr(
        "gpu_ops.sources.generated_headers", lambda: {name: text + "//" for name, text in generated_headers().items()}
    )
    after = sources_hash(), with_includes(kernel), with_includes(other)
    assert [old == new for old, new in zip(before, after)] == [False, False, True]
