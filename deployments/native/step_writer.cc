// The tokens of an engine's step on their way to many connections: each becomes the next chunk of its stream, and what a step
// brings to a connection is sent once the whole step is there.
//
// An extension module (step_writer.py), called with the interpreter lock held. Nothing here waits for a socket.

#include "outlet.h"

#include <structmember.h>

#include <cstdio>
#include <new>
#include <string>
#include <utility>
#include <vector>

namespace {

constexpr long kMaxTokens = 1L << 24;

PyTypeObject* texts_type;
PyObject* name_num_sent;

// ---- TokenTexts: what tokens say that are whole characters, filled as they come.

struct Text {
  PyObject* text = nullptr;  // str; null if it is not known, or the token has none of its own
  PyObject* json = nullptr;  // bytes: the text between a JSON string's quotes
  bool known = false;
};

struct TokenTexts {
  PyObject_HEAD
  PyObject* learn;
  std::vector<Text> table;

  template <class Do>
  void each(Do what) {
    what(learn);
    for (Text& text : table) what(text.text), what(text.json);
  }
  void end() { table.~vector(); }
};

// The text of a token; without one if it has none of its own, or there is an exception.
Text texts_of(TokenTexts* texts, PyObject* token) {
  const long id = PyLong_AsLong(token);
  if (id < 0 || id >= kMaxTokens) return Text();
  if (static_cast<size_t>(id) < texts->table.size() && texts->table[id].known) return texts->table[id];
  PyObject* learnt = PyObject_CallOneArg(texts->learn, token);
  if (learnt == nullptr) return Text();
  Text text;
  text.known = true;
  if (learnt != Py_None) {
    if (!PyArg_ParseTuple(learnt, "US", &text.text, &text.json)) {
      Py_DECREF(learnt);
      return Text();
    }
    Py_INCREF(text.text);
    Py_INCREF(text.json);
  }
  Py_DECREF(learnt);
  if (texts->table.size() <= static_cast<size_t>(id)) texts->table.resize(id + 1);
  std::swap(texts->table[id], text);
  Py_XDECREF(text.text);
  Py_XDECREF(text.json);
  return texts->table[id];
}

PyObject* texts_new(PyTypeObject* type, PyObject* args, PyObject*) {
  PyObject* learn;
  if (!PyArg_ParseTuple(args, "O", &learn)) return nullptr;
  TokenTexts* texts = reinterpret_cast<TokenTexts*>(type->tp_alloc(type, 0));
  if (texts == nullptr) return nullptr;
  new (&texts->table) std::vector<Text>();
  Py_INCREF(learn);
  texts->learn = learn;
  return reinterpret_cast<PyObject*>(texts);
}

PyType_Slot texts_slots[] = {{Py_tp_new, reinterpret_cast<void*>(texts_new)},
                             {Py_tp_dealloc, reinterpret_cast<void*>(dealloc<TokenTexts>)},
                             {0, nullptr}};

PyType_Spec texts_spec = {"step_writer.TokenTexts", sizeof(TokenTexts), 0, Py_TPFLAGS_DEFAULT, texts_slots};

// ---- TokenLane: from a choice's next token to the chunk of it.

struct TokenLane {
  PyObject_HEAD
  PyObject* slow;       // takes (index, token) where this does not
  PyObject* arrived;    // is told that a token came
  PyObject* choice;     // its num_sent is kept
  PyObject* token_ids;  // list
  PyObject* pieces;     // list
  TokenTexts* texts;
  Outlet* outlet;
  std::string before, between, after;  // of a chunk, around its text and its token ids
  bool has_ids;
  char is_open;
  char has_written;

  template <class Do>
  void each(Do what) {
    what(slow), what(arrived), what(choice), what(token_ids), what(pieces), what(texts), what(outlet);
  }
  void end() {
    before.~basic_string();
    between.~basic_string();
    after.~basic_string();
  }
};

// Appends tokens from `begin` on, with commas; false with an exception.
bool append_ids(std::string& to, PyObject* token_ids, Py_ssize_t begin) {
  char digits[24];
  for (Py_ssize_t i = begin; i < PyList_GET_SIZE(token_ids); ++i) {
    const long id = PyLong_AsLong(PyList_GET_ITEM(token_ids, i));
    if (id == -1 && PyErr_Occurred()) return false;
    to.append(digits, std::snprintf(digits, sizeof digits, i == begin ? "%ld" : ",%ld", id));
  }
  return true;
}

PyObject* lane_put(PyObject* self, PyObject* const* args, Py_ssize_t num_args) {
  TokenLane* lane = reinterpret_cast<TokenLane*>(self);
  if (num_args != 2) {
    PyErr_SetString(PyExc_TypeError, "put takes an index and a token");
    return nullptr;
  }
  if (lane->slow == nullptr) Py_RETURN_NONE;  // collected as garbage
  Text text;
  if (lane->is_open) {
    if (is_paused(lane->outlet) == 0) text = texts_of(lane->texts, args[1]);
    // The slow way fails its own request alone.
    if (PyErr_Occurred()) PyErr_WriteUnraisable(self);
  }
  if (text.text == nullptr) return PyObject_Vectorcall(lane->slow, args, 2, nullptr);

  PyObject* told = PyObject_CallOneArg(lane->arrived, Py_True);
  if (told == nullptr) return nullptr;
  Py_DECREF(told);
  if (PyList_Append(lane->token_ids, args[1]) < 0 || PyList_Append(lane->pieces, text.text) < 0) return nullptr;

  std::string ids;
  if (lane->has_ids) {
    PyObject* num_sent = PyObject_GetAttr(lane->choice, name_num_sent);
    if (num_sent == nullptr) return nullptr;
    const Py_ssize_t begin = PyLong_AsSsize_t(num_sent);
    Py_DECREF(num_sent);
    if (begin < 0 || !append_ids(ids, lane->token_ids, begin)) return nullptr;
  }
  PyObject* num_tokens = PyLong_FromSsize_t(PyList_GET_SIZE(lane->token_ids));
  if (num_tokens == nullptr) return nullptr;
  const int is_set = PyObject_SetAttr(lane->choice, name_num_sent, num_tokens);
  Py_DECREF(num_tokens);
  if (is_set < 0) return nullptr;

  const size_t text_size = PyBytes_GET_SIZE(text.json);
  const size_t size = lane->before.size() + text_size + lane->between.size() + ids.size() + lane->after.size();
  std::string& pending = lane->outlet->pending;
  char header[24];
  pending.append(header, std::snprintf(header, sizeof header, "%zx\r\n", size));
  pending.append(lane->before).append(PyBytes_AS_STRING(text.json), text_size);
  pending.append(lane->between).append(ids).append(lane->after).append("\r\n", 2);
  lane->has_written = 1;
  if (!outlet_appended(lane->outlet)) return nullptr;
  Py_RETURN_NONE;
}

PyObject* lane_new(PyTypeObject* type, PyObject* args, PyObject*) {
  PyObject *slow, *arrived, *choice, *token_ids, *pieces, *texts, *outlet;
  const char *before, *between, *after;
  Py_ssize_t before_size, between_size, after_size;
  if (!PyArg_ParseTuple(args, "OOOO!O!O!O!y#y#y#", &slow, &arrived, &choice, &PyList_Type, &token_ids, &PyList_Type, &pieces,
                        texts_type, &texts, outlet_type, &outlet, &before, &before_size, &between, &between_size, &after,
                        &after_size)) {
    return nullptr;
  }
  TokenLane* lane = reinterpret_cast<TokenLane*>(type->tp_alloc(type, 0));
  if (lane == nullptr) return nullptr;
  for (PyObject* held : {slow, arrived, choice, token_ids, pieces, texts, outlet}) Py_INCREF(held);
  lane->slow = slow;
  lane->arrived = arrived;
  lane->choice = choice;
  lane->token_ids = token_ids;
  lane->pieces = pieces;
  lane->texts = reinterpret_cast<TokenTexts*>(texts);
  lane->outlet = reinterpret_cast<Outlet*>(outlet);
  new (&lane->before) std::string(before, before_size);
  new (&lane->between) std::string(between, between_size);
  new (&lane->after) std::string(after, after_size);
  lane->has_ids = between_size > 0;
  return reinterpret_cast<PyObject*>(lane);
}

PyMethodDef lane_methods[] = {
    {"put", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(lane_put)), METH_FASTCALL,
     "put(index, token): the choice's next token came."},
    {nullptr, nullptr, 0, nullptr}};

PyMemberDef lane_members[] = {{"is_open", T_BOOL, offsetof(TokenLane, is_open), 0, nullptr},
                              {"has_written", T_BOOL, offsetof(TokenLane, has_written), 0, nullptr},
                              {nullptr, 0, 0, 0, nullptr}};

PyType_Slot lane_slots[] = {{Py_tp_new, reinterpret_cast<void*>(lane_new)},
                            {Py_tp_dealloc, reinterpret_cast<void*>(dealloc<TokenLane>)},
                            {Py_tp_traverse, reinterpret_cast<void*>(traverse<TokenLane>)},
                            {Py_tp_clear, reinterpret_cast<void*>(clear<TokenLane>)},
                            {Py_tp_methods, lane_methods},
                            {Py_tp_members, lane_members},
                            {0, nullptr}};

PyType_Spec lane_spec = {"step_writer.TokenLane", sizeof(TokenLane), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, lane_slots};

PyModuleDef module_def = {PyModuleDef_HEAD_INIT, "step_writer", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};

bool add_type(PyObject* module, PyType_Spec* spec, const char* name, PyTypeObject** type = nullptr) {
  PyObject* made = PyType_FromSpec(spec);
  if (made == nullptr) return false;
  if (type != nullptr) *type = reinterpret_cast<PyTypeObject*>(made);
  return PyModule_AddObject(module, name, made) == 0;
}

}  // namespace

PyMODINIT_FUNC PyInit_step_writer() {
  PyObject* module = PyModule_Create(&module_def);
  name_num_sent = PyUnicode_InternFromString("num_sent");
  name_write_paused = PyUnicode_InternFromString("write_paused");
  if (module == nullptr || name_num_sent == nullptr || name_write_paused == nullptr || !add_type(module, &outlet_spec, "Outlet", &outlet_type) ||
      !add_type(module, &writer_spec, "StepWriter") || !add_type(module, &texts_spec, "TokenTexts", &texts_type) ||
      !add_type(module, &lane_spec, "TokenLane")) {
    Py_XDECREF(module);
    return nullptr;
  }
  return module;
}
