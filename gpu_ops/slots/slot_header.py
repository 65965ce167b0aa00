"""The C++ header of the slot fields: what each state op gets of a slot, and how a request fills it."""

from __future__ import annotations

from gpu_ops.slots import insert_columns
from gpu_ops.slots.slot_fields import FIELDS, STATE_OPS, TOKENS, SlotField, StateOp

NAME = "generated/slot_fields.h"
_CPP = {"bool": "bool", "int32": "int32_t", "int64": "int64_t", "float32": "float"}
_INSERT = "insert_requests"


def text() -> str:
    """The header, generated/slot_fields.h; free of Paddle, and the same for CPU and CUDA kernels."""
    structs = "\n".join(_struct(op) for op in STATE_OPS)
    return f"""// Generated from gpu_ops/slots/slot_fields.py: the slot fields of each state op, and how a request fills them.
#pragma once
#include <cstdint>

#include "kernels/device/host_device.h"

namespace bireme {{

{structs}
{_insert()}
}}  // namespace bireme
"""


def camel(name: str) -> str:
    """A name in the C++ style: `stop_flags` becomes `StopFlags`."""
    return "".join(part.capitalize() for part in name.split("_"))


def _struct(op: StateOp) -> str:
    sizes = dict.fromkeys(size for entry in op.fields for size in entry.sizes if isinstance(size, str))
    members = "".join(
        f"  {'' if entry.name in op.writes else 'const '}{_CPP[entry.dtype]}* {entry.name} = nullptr;"
        f"  // [{', '.join(map(str, entry.sizes))}] {entry.doc}\n"
        for entry in op.fields
    )
    visits = "".join(
        f'    visit("{entry.name}", {entry.name}, {", ".join(_size(size) for size in entry.sizes)});\n'
        for entry in op.fields
    )
    return f"""// Sizes are -1 until they are known.
struct {camel(op.name)}State {{
  int64_t {", ".join(f"{size} = -1" for size in sizes)};
{members}
  static constexpr int kFields = {len(op.fields)};
  // visit(name, data, size of each axis) for each field, in the order of the op's arguments.
  template <typename Visit>
  void visit_fields(Visit&& visit) {{
{visits}  }}
}};
"""


def _size(size: str | int) -> str:
    return f"int64_t{{{size}}}" if isinstance(size, int) else size


def _count(entry: SlotField, state: str = "state.") -> str:
    """C++ for the number of elements of a slot's row."""
    factors = [state + size for size in entry.row_sizes if isinstance(size, str)]
    factors += [str(size) for size in entry.row_sizes if isinstance(size, int) and size != 1]
    return " * ".join(factors) or "1"


def _literal(entry: SlotField) -> str:
    return str(entry.inserted).lower() if entry.dtype == "bool" else repr(entry.inserted)


def _insert() -> str:
    array_of = {column.field.name: "ints" for column in insert_columns.INTS}
    array_of |= {column.field.name: "floats" for column in insert_columns.FLOATS}
    scalars, rows = [], []
    for entry in FIELDS:
        if not entry.per_slot or entry.request == TOKENS:
            continue
        count = _count(entry)
        if array := array_of.get(entry.name):
            at = f"{entry.name}_column(state) + i" if count != "1" else f"insert_{array}::k{camel(entry.request)}"
            value = f"{array}[{at}]" if entry.dtype != "int32" else f"static_cast<int32_t>({array}[{at}])"
        else:
            value = _literal(entry)
        if count == "1":
            scalars.append(f"  state.{entry.name}[slot] = {value};\n")
        else:
            rows.append(
                f"  for (int64_t i = worker, n = {count}; i < n; i += workers) state.{entry.name}[slot * n + i] = {value};\n"
            )
    return f"""{_columns("ints", insert_columns.INTS, first=["Slot"])}
{_columns("floats", insert_columns.FLOATS, first=[])}
// Fields of one value a slot.
BIREME_HOST_DEVICE inline void insert_values(const InsertRequestsState& state, const int64_t* ints, const float* floats) {{
  const int64_t slot = ints[insert_ints::kSlot];
{"".join(scalars)}}}

// Fields of several values a slot, but its tokens: the part of one of `workers`.
BIREME_HOST_DEVICE inline void insert_rows(const InsertRequestsState& state, const int64_t* ints, const float* floats,
                                           int64_t worker, int64_t workers) {{
  const int64_t slot = ints[insert_ints::kSlot];
{"".join(rows)}}}
"""


def _columns(array: str, columns: tuple[insert_columns.Column, ...], first: list[str]) -> str:
    names = first + [camel(column.field.request) for column in columns if not column.shape]
    code = f"""// The columns of a request's {array}: single values, then rows of several, then how many there are.
namespace insert_{array} {{
enum : int64_t {{ {", ".join(f"k{name}" for name in names)}, kSingle }};
}}
"""
    begin = f"insert_{array}::kSingle"
    for column in columns:
        if column.shape:
            code += _function(f"{column.field.name}_column", begin)
            begin = f"{column.field.name}_column(state) + {_count(column.field)}"
    return code + _function(f"insert_{array[:-1]}_columns", begin)


def _function(name: str, value: str) -> str:
    return f"BIREME_HOST_DEVICE inline int64_t {name}(const InsertRequestsState& state) {{ return {value}; }}\n"
