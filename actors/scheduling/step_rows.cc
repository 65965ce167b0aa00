// What a step does for each of its rows, on the scheduler's own objects (step_rows.py, with the plain twin of each function).
//
// An extension module, called with the interpreter lock held. A row's fields are read where the interpreter itself keeps them: their
// classes have slots.

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

namespace {

// ---- Fields of Python objects.

PyTypeObject* sequence_type;
PyTypeObject* request_type;
PyObject* running;
PyObject* preempting;
PyObject* no_tokens;  // makes a subscriber's four lists

struct Field {
  PyTypeObject** type;
  const char* name;
  Py_ssize_t offset;

  // Null where nothing was set.
  PyObject*& of(PyObject* object) const {
    return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + offset);
  }
};

Field state{&sequence_type, "state", 0}, slot{&sequence_type, "slot", 0}, request{&sequence_type, "request", 0},
    token_ids{&sequence_type, "token_ids", 0}, block_ids{&sequence_type, "block_ids", 0},
    samples_plainly{&sequence_type, "samples_plainly", 0}, num_tokens{&sequence_type, "num_tokens", 0},
    max_num_tokens{&sequence_type, "max_num_tokens", 0}, num_prompt_tokens{&sequence_type, "num_prompt_tokens", 0},
    num_computed_tokens{&sequence_type, "num_computed_tokens", 0},
    num_registered_blocks{&sequence_type, "num_registered_blocks", 0}, request_id{&request_type, "request_id", 0},
    attempt{&request_type, "attempt", 0}, subscriber{&request_type, "subscriber", 0},
    output_token_ids{&request_type, "output_token_ids", 0};

Field* const kFields[] = {&state, &slot, &request, &token_ids, &block_ids, &samples_plainly, &num_tokens, &max_num_tokens,
                          &num_prompt_tokens, &num_computed_tokens, &num_registered_blocks, &request_id, &attempt, &subscriber,
                          &output_token_ids};

bool find(Field* field) {
  PyObject* member = PyDict_GetItemString((*field->type)->tp_dict, field->name);
  if (member == nullptr || !Py_IS_TYPE(member, &PyMemberDescr_Type)) {
    PyErr_Format(PyExc_TypeError, "%s has no slot %s", (*field->type)->tp_name, field->name);
    return false;
  }
  const PyMemberDef* def = reinterpret_cast<PyMemberDescrObject*>(member)->d_member;
  if (def->type != T_OBJECT_EX) {
    PyErr_Format(PyExc_TypeError, "%s.%s is no object", (*field->type)->tp_name, field->name);
    return false;
  }
  field->offset = def->offset;
  return true;
}

bool is_a(PyObject* object, PyTypeObject* type) {
  if (object != nullptr && Py_IS_TYPE(object, type)) return true;
  PyErr_Format(PyExc_TypeError, "needs a %s, got %s", type->tp_name, object == nullptr ? "nothing" : Py_TYPE(object)->tp_name);
  return false;
}

// The sequence's request; null with an error set.
PyObject* request_of(PyObject* sequence) {
  if (!is_a(sequence, sequence_type)) return nullptr;
  PyObject* held = request.of(sequence);
  return is_a(held, request_type) ? held : nullptr;
}

Py_ssize_t integer(PyObject* object, const Field& field) {
  PyObject* value = field.of(object);
  return value == nullptr ? (PyErr_BadInternalCall(), -1) : PyLong_AsSsize_t(value);
}

Py_ssize_t length(PyObject* object, const Field& field) {
  PyObject* value = field.of(object);
  return value == nullptr ? (PyErr_BadInternalCall(), -1) : PyList_Size(value);
}

bool set_integer(PyObject* object, const Field& field, Py_ssize_t number) {
  PyObject* made = PyLong_FromSsize_t(number);
  if (made == nullptr) return false;
  Py_XSETREF(field.of(object), made);
  return true;
}

// ---- The functions.

PyObject* plan_rows(PyObject*, PyObject* args) {
  PyObject *rows, *scheduled, *request_ids, *owners, *sampling, *not_plain;
  Py_ssize_t index, block_size;
  if (!PyArg_ParseTuple(args, "O!nnO!O!O!O!O!", &PyList_Type, &rows, &index, &block_size, &PyDict_Type, &scheduled, &PyDict_Type,
                        &request_ids, &PyDict_Type, &owners, &PyList_Type, &sampling, &PyList_Type, &not_plain)) {
    return nullptr;
  }
  PyObject* one = PyLong_FromLong(1);
  for (; one != nullptr && index < PyList_GET_SIZE(rows); ++index) {
    PyObject* sequence = PyList_GET_ITEM(rows, index);
    PyObject* its_request = request_of(sequence);
    if (its_request == nullptr) break;
    if (state.of(sequence) != running) continue;
    const Py_ssize_t tokens = integer(sequence, num_tokens), most = integer(sequence, max_num_tokens);
    const Py_ssize_t computed = integer(sequence, num_computed_tokens), blocks = length(sequence, block_ids);
    if (PyErr_Occurred()) break;
    if (tokens >= most) continue;
    if (computed >= blocks * block_size) break;
    PyObject *its_slot = slot.of(sequence), *its_id = request_id.of(its_request);
    if (its_slot == nullptr || its_id == nullptr) {
      PyErr_BadInternalCall();
      break;
    }
    if (PyDict_SetItem(scheduled, its_slot, one) != 0 || PyDict_SetItem(request_ids, its_slot, its_id) != 0 ||
        PyDict_SetItem(owners, its_slot, sequence) != 0 || !set_integer(sequence, num_computed_tokens, computed + 1)) {
      break;
    }
    if (computed + 1 != tokens) continue;
    if (PyList_Append(sampling, its_slot) != 0 || !set_integer(sequence, num_tokens, tokens + 1)) break;
    if (samples_plainly.of(sequence) != Py_True && PyList_Append(not_plain, sequence) != 0) break;
  }
  Py_XDECREF(one);
  return PyErr_Occurred() ? nullptr : PyLong_FromSsize_t(index);
}

PyObject* rows_with_new_blocks(PyObject*, PyObject* args) {
  PyObject *scheduled, *owners, *value, *its_slot;
  Py_ssize_t block_size, position = 0;
  if (!PyArg_ParseTuple(args, "O!O!n", &PyDict_Type, &scheduled, &PyDict_Type, &owners, &block_size)) return nullptr;
  PyObject* found = PyList_New(0);
  while (found != nullptr && PyDict_Next(scheduled, &position, &its_slot, &value)) {
    PyObject* sequence = PyDict_GetItemWithError(owners, its_slot);
    if (sequence == nullptr && !PyErr_Occurred()) PyErr_SetObject(PyExc_KeyError, its_slot);
    if (sequence == nullptr || !is_a(sequence, sequence_type)) break;
    const Py_ssize_t computed = integer(sequence, num_computed_tokens), known = integer(sequence, num_registered_blocks);
    if (PyErr_Occurred()) break;
    if (computed >= (known + 1) * block_size && PyList_Append(found, sequence) != 0) break;
  }
  if (PyErr_Occurred()) Py_CLEAR(found);
  return found;
}

PyObject* saved_rows(PyObject*, PyObject* args) {
  PyObject *request_ids, *goes_on, *tokens, *its_slot, *its_id;
  Py_ssize_t position = 0;
  if (!PyArg_ParseTuple(args, "O!O!O!", &PyDict_Type, &request_ids, &PyList_Type, &goes_on, &PyList_Type, &tokens)) return nullptr;
  PyObject* found = Py_BuildValue("([][][])");
  while (found != nullptr && PyDict_Next(request_ids, &position, &its_slot, &its_id)) {
    const Py_ssize_t number = PyLong_AsSsize_t(its_slot);
    if (number == -1 && PyErr_Occurred()) break;
    if (number < 0 || number >= PyList_GET_SIZE(goes_on) || number >= PyList_GET_SIZE(tokens)) {
      PyErr_Format(PyExc_IndexError, "slot %zd", number);
      break;
    }
    const bool is_plain = PyList_GET_ITEM(goes_on, number) == Py_True;
    if (PyList_Append(PyTuple_GET_ITEM(found, is_plain ? 0 : 2), its_slot) != 0) break;
    if (is_plain && PyList_Append(PyTuple_GET_ITEM(found, 1), PyList_GET_ITEM(tokens, number)) != 0) break;
  }
  if (PyErr_Occurred()) Py_CLEAR(found);
  return found;
}

// A new reference to the subscriber's four lists.
PyObject* lists_of(PyObject* plain, PyObject* name) {
  PyObject* lists = PyDict_GetItemWithError(plain, name);
  if (lists != nullptr) {
    Py_INCREF(lists);
  } else if (!PyErr_Occurred() && (lists = PyObject_CallNoArgs(no_tokens)) != nullptr && PyDict_SetItem(plain, name, lists) != 0) {
    Py_CLEAR(lists);
  }
  bool is_right = lists != nullptr && PyTuple_Check(lists) && PyTuple_GET_SIZE(lists) == 4;
  for (Py_ssize_t i = 0; is_right && i < 4; ++i) is_right = PyList_CheckExact(PyTuple_GET_ITEM(lists, i));
  if (!is_right) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "tokens of a subscriber are four lists");
    Py_CLEAR(lists);
  }
  return lists;
}

PyObject* accept_rows(PyObject*, PyObject* args) {
  PyObject *slots, *tokens, *owners, *plain;
  if (!PyArg_ParseTuple(args, "O!O!O!O!", &PyList_Type, &slots, &PyList_Type, &tokens, &PyDict_Type, &owners, &PyDict_Type, &plain)) {
    return nullptr;
  }
  if (PyList_GET_SIZE(slots) != PyList_GET_SIZE(tokens)) {
    PyErr_SetString(PyExc_ValueError, "as many tokens as slots");
    return nullptr;
  }
  PyObject *first = PyList_New(0), *lists = nullptr, *whose = nullptr;  // whose: the subscriber of these lists
  Py_ssize_t accepted = 0;
  for (Py_ssize_t i = 0; first != nullptr && i < PyList_GET_SIZE(slots); ++i) {
    PyObject *its_slot = PyList_GET_ITEM(slots, i), *token = PyList_GET_ITEM(tokens, i);
    PyObject* sequence = PyDict_GetItemWithError(owners, its_slot);
    if (sequence == nullptr && !PyErr_Occurred()) PyErr_SetObject(PyExc_KeyError, its_slot);
    PyObject* its_request = sequence == nullptr ? nullptr : request_of(sequence);
    if (its_request == nullptr) break;
    if (state.of(sequence) != running && state.of(sequence) != preempting) continue;
    const Py_ssize_t known = length(sequence, token_ids), prompt = integer(sequence, num_prompt_tokens);
    const Py_ssize_t before = length(its_request, output_token_ids);
    PyObject *name = subscriber.of(its_request), *its_id = request_id.of(its_request), *its_attempt = attempt.of(its_request);
    if (!PyErr_Occurred() && (name == nullptr || its_id == nullptr || its_attempt == nullptr)) PyErr_BadInternalCall();
    if (PyErr_Occurred()) break;
    if (known - prompt == before) {
      PyObject* at = PyLong_FromSsize_t(i);
      if (at == nullptr || PyList_Append(first, at) != 0) {
        Py_XDECREF(at);
        break;
      }
      Py_DECREF(at);
      continue;
    }
    if (name != whose) {
      Py_XDECREF(lists);
      lists = lists_of(plain, name);
      if (lists == nullptr) break;
      whose = name;
    }
    PyObject* index = PyLong_FromSsize_t(known - prompt);
    const bool is_told = index != nullptr && PyList_Append(token_ids.of(sequence), token) == 0 &&
                         PyList_Append(PyTuple_GET_ITEM(lists, 0), its_id) == 0 &&
                         PyList_Append(PyTuple_GET_ITEM(lists, 1), its_attempt) == 0 &&
                         PyList_Append(PyTuple_GET_ITEM(lists, 2), index) == 0 &&
                         PyList_Append(PyTuple_GET_ITEM(lists, 3), token) == 0;
    Py_XDECREF(index);
    if (!is_told) break;
    ++accepted;
  }
  Py_XDECREF(lists);
  if (PyErr_Occurred()) Py_CLEAR(first);
  return first == nullptr ? nullptr : Py_BuildValue("nN", accepted, first);
}

PyObject* bind(PyObject*, PyObject* args) {
  if (!PyArg_ParseTuple(args, "O!O!OOO", &PyType_Type, &sequence_type, &PyType_Type, &request_type, &running, &preempting, &no_tokens)) {
    return nullptr;
  }
  for (Field* field : kFields) {
    if (!find(field)) return nullptr;
  }
  Py_INCREF(sequence_type);
  Py_INCREF(request_type);
  Py_INCREF(running);
  Py_INCREF(preempting);
  Py_INCREF(no_tokens);
  Py_RETURN_NONE;
}

PyMethodDef functions[] = {
    {"bind", bind, METH_VARARGS, "Classes of sequences and requests, two states, and what makes a subscriber's lists; to be called first."},
    {"plan_rows", plan_rows, METH_VARARGS, nullptr},
    {"rows_with_new_blocks", rows_with_new_blocks, METH_VARARGS, nullptr},
    {"saved_rows", saved_rows, METH_VARARGS, nullptr},
    {"accept_rows", accept_rows, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module_def = {PyModuleDef_HEAD_INIT, "step_rows", nullptr, -1, functions, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit_step_rows() { return PyModule_Create(&module_def); }
