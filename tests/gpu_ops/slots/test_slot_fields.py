"""The slot fields are declared once: tensors, C++ structs, bindings and inserts follow, and nobody lists them again."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from gpu_ops.build import compiler
from gpu_ops.slots import insert_columns, slot_header
from gpu_ops.slots.share_inputs import ShareInputs, field_arrays
from gpu_ops.slots.slot_fields import FIELDS, FIXED_SIZES, STATE_OPS, TOKENS
from gpu_ops.sources import CSRC, generated_headers, sources_hash, with_includes

ROOT = Path(__file__).parents[3]
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
    assert crowded == {"gpu_ops/slots/slot_fields.py"}


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


VARIANT = """
    new_score: Tensor = _slot("float32", empty=0.5, request="new_score", doc="one value more")
    new_ids: Tensor = _slot("int64", 3, empty=-1, request="new_ids", doc="a row more")
"""
USE_VARIANT = """
import sys
from pathlib import Path
from gpu_ops.slots import insert_columns as columns
from gpu_ops.slots.share_inputs import field_arrays
from gpu_ops.slots.slot_fields import FIXED_SIZES
from gpu_ops.sources import write_generated_headers

write_generated_headers(Path(sys.argv[1]))
arrays = field_arrays(2, 8, 4)
assert arrays["new_score"].tolist() == [0.5, 0.5] and arrays["new_ids"].tolist() == [[-1] * 3] * 2
starts = {column.field.name: column.start for column in (*columns.INTS, *columns.FLOATS)}
sizes = [f"{name}={value}" for name, value in FIXED_SIZES.items()]
print(starts["new_score"], starts["new_ids"], columns.NUM_INTS, columns.NUM_FLOATS, *sizes)
"""
INSERT_VARIANT = """
#include <cstdlib>
#include <vector>
#include "kernels/state/insert_requests.h"

// Every field gets memory of its own.
struct Allocate {
  char* next;
  template <typename T, typename... Sizes>
  void operator()(const char*, T*& field, Sizes... sizes) {
    field = reinterpret_cast<T*>(next);
    next += ((sizes * ... * sizeof(T)) + 63) / 64 * 64;
  }
};

// Arguments: columns of new_score and new_ids, numbers of columns.
int main(int, char** text) {
  const auto number = [&](int i) { return std::atoll(text[i]); };
  bireme::InsertRequestsState state;
  state.slots = 2; state.max_model_len = 8; state.blocks = 4;
  state.eos_ids = EOS_IDS; state.stop_ids = STOP_IDS; state.num_stop_seqs = NUM_STOP_SEQS;
  state.stop_seq_len = STOP_SEQ_LEN; state.biases = BIASES;
  state.allowed_ids = ALLOWED_IDS; state.num_bad_seqs = NUM_BAD_SEQS; state.bad_seq_len = BAD_SEQ_LEN;
  std::vector<char> memory(1 << 20);
  Allocate allocate{memory.data()};
  state.visit_fields(allocate);
  std::vector<int64_t> ints(number(3), 1), tokens(8, 7);
  std::vector<float> floats(number(4), 2.0f);
  if (bireme::insert_int_columns(state) != number(3) || bireme::insert_float_columns(state) != number(4)) return 1;
  floats[number(1)] = 0.25f;
  for (int i = 0; i < 3; ++i) ints[number(2) + i] = 100 + i;
  bireme::insert_requests_cpu(state, 1, ints.data(), floats.data(), tokens.data(), 8);
  if (state.new_score[1] != 0.25f) return 2;
  for (int i = 0; i < 3; ++i) if (state.new_ids[3 + i] != 100 + i) return 3;
  return 0;
}
"""


def test_two_more_fields_are_two_more_lines(tmp_path):
    """A copy of the declarations with two lines more: tensors, struct, columns and inserts follow."""
    package = tmp_path / "gpu_ops"
    shutil.copytree(ROOT / "gpu_ops", package, ignore=shutil.ignore_patterns("__pycache__"))
    declared = (package / "slots" / "slot_fields.py").read_text()
    last = declared.index("\n\n\nFIELDS = ")
    (package / "slots" / "slot_fields.py").write_text(declared[:last] + VARIANT + declared[last:])
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    run = functools.partial(subprocess.run, check=True, capture_output=True, text=True)
    starts = run([sys.executable, "-c", USE_VARIANT, str(tmp_path)], env=environment, cwd=tmp_path).stdout.split()
    sizes = [f"-D{size.upper()}" for size in starts[4:]]
    (tmp_path / "main.cc").write_text(INSERT_VARIANT)
    program = str(tmp_path / "insert")
    sources = [str(tmp_path / "main.cc"), str(CSRC / "kernels" / "state" / "insert_requests.cc")]
    run([compiler(), "-std=c++17", "-O1", f"-I{tmp_path}", f"-I{CSRC}", *sizes, *sources, "-o", program])
    assert subprocess.run([program, *starts[:4]]).returncode == 0
