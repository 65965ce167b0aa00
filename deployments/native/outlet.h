// Connections, and what a step writes to them: it is sent once the step is over.

#pragma once

#include "python_objects.h"

#include <errno.h>
#include <sys/socket.h>

#include <new>
#include <string>
#include <vector>

namespace {

PyTypeObject* outlet_type;
PyObject* name_write_paused;

// Calls `function` without arguments; -1 with an exception, else whether the answer is true, or how much it is.
Py_ssize_t asked(PyObject* function) {
  PyObject* answer = PyObject_CallNoArgs(function);
  if (answer == nullptr) return -1;
  const Py_ssize_t value = PyLong_AsSsize_t(answer);
  Py_DECREF(answer);
  return value;
}

struct Outlet;

struct StepWriter {
  PyObject_HEAD
  std::vector<Outlet*> unsent;  // owned
  bool gathers;

  template <class Do>
  void each(Do what) {
    for (Outlet*& outlet : unsent) what(outlet);
  }
  void end() { unsent.~vector(); }
};

struct Outlet {
  PyObject_HEAD
  StepWriter* writer;
  PyObject* write;        // of the transport
  PyObject* buffer_size;  // of the transport
  PyObject* is_closing;   // of the transport
  PyObject* flow;         // its write_paused says that the transport holds much already
  int fd;
  bool listed;  // among the writer's `unsent`
  std::string pending;

  template <class Do>
  void each(Do what) {
    what(writer), what(write), what(buffer_size), what(is_closing), what(flow);
  }
  void end() { pending.~basic_string(); }
};

// Sends what is pending, all that the kernel takes at once here, and the rest by the transport; false with an exception.
bool outlet_send(Outlet* outlet) {
  if (outlet->pending.empty() || outlet->write == nullptr) return true;
  std::string data;
  data.swap(outlet->pending);
  const Py_ssize_t closing = asked(outlet->is_closing);
  if (closing != 0) return closing > 0;  // nobody gets it
  size_t sent = 0;
  if (outlet->fd >= 0) {
    // What waits in the transport goes first.
    const Py_ssize_t waiting = asked(outlet->buffer_size);
    if (waiting < 0) return false;
    while (waiting == 0 && sent < data.size()) {
      const ssize_t taken = ::send(outlet->fd, data.data() + sent, data.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (taken > 0) {
        sent += taken;
      } else if (taken == 0 || errno != EINTR) {
        break;  // full, or broken: the transport finds out which
      }
    }
  }
  if (sent < data.size()) {
    PyObject* rest = PyBytes_FromStringAndSize(data.data() + sent, data.size() - sent);
    if (rest == nullptr) return false;
    PyObject* done = PyObject_CallOneArg(outlet->write, rest);
    Py_DECREF(rest);
    if (done == nullptr) return false;
    Py_DECREF(done);
  } else {
    data.clear();
    outlet->pending.swap(data);  // keeps its room
  }
  return true;
}

// What was appended to `pending` leaves now, or with the step.
bool outlet_appended(Outlet* outlet) {
  if (outlet->writer == nullptr || !outlet->writer->gathers) return outlet_send(outlet);
  if (!outlet->listed) {
    outlet->listed = true;
    Py_INCREF(outlet);
    outlet->writer->unsent.push_back(outlet);
  }
  return true;
}

// Whether the client reads too slowly for more; -1 with an exception.
int is_paused(Outlet* outlet) {
  PyObject* paused = PyObject_GetAttr(outlet->flow, name_write_paused);
  if (paused == nullptr) return -1;
  const int answer = PyObject_IsTrue(paused);
  Py_DECREF(paused);
  return answer;
}

PyObject* outlet_write(PyObject* self, PyObject* data) {
  Outlet* outlet = reinterpret_cast<Outlet*>(self);
  char* bytes;
  Py_ssize_t size;
  if (PyBytes_AsStringAndSize(data, &bytes, &size) < 0) return nullptr;
  outlet->pending.append(bytes, size);
  if (!outlet_appended(outlet)) return nullptr;
  Py_RETURN_NONE;
}

PyObject* outlet_flush(PyObject* self, PyObject*) {
  if (!outlet_send(reinterpret_cast<Outlet*>(self))) return nullptr;
  Py_RETURN_NONE;
}

PyMethodDef outlet_methods[] = {
    {"write", outlet_write, METH_O, "Write bytes behind all that was written before, at once or at the step's end."},
    {"flush", outlet_flush, METH_NOARGS, "Send what was written and is not sent yet."},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot outlet_slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(dealloc<Outlet>)},
                              {Py_tp_traverse, reinterpret_cast<void*>(traverse<Outlet>)},
                              {Py_tp_clear, reinterpret_cast<void*>(clear<Outlet>)},
                              {Py_tp_methods, outlet_methods},
                              {0, nullptr}};

PyType_Spec outlet_spec = {"step_writer.Outlet", sizeof(Outlet), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, outlet_slots};

PyObject* writer_new(PyTypeObject* type, PyObject* args, PyObject*) {
  if (!PyArg_ParseTuple(args, "")) return nullptr;
  StepWriter* writer = reinterpret_cast<StepWriter*>(type->tp_alloc(type, 0));
  if (writer == nullptr) return nullptr;
  new (&writer->unsent) std::vector<Outlet*>();
  return reinterpret_cast<PyObject*>(writer);
}

PyObject* writer_outlet(PyObject* self, PyObject* args) {
  PyObject *transport, *flow;
  int fd;
  if (!PyArg_ParseTuple(args, "OOi", &transport, &flow, &fd)) return nullptr;
  Outlet* outlet = reinterpret_cast<Outlet*>(outlet_type->tp_alloc(outlet_type, 0));
  if (outlet == nullptr) return nullptr;
  new (&outlet->pending) std::string();
  Py_INCREF(self);
  outlet->writer = reinterpret_cast<StepWriter*>(self);
  outlet->fd = fd;
  Py_INCREF(flow);
  outlet->flow = flow;
  outlet->write = PyObject_GetAttrString(transport, "write");
  outlet->buffer_size = PyObject_GetAttrString(transport, "get_write_buffer_size");
  outlet->is_closing = PyObject_GetAttrString(transport, "is_closing");
  if (outlet->write == nullptr || outlet->buffer_size == nullptr || outlet->is_closing == nullptr) Py_CLEAR(outlet);
  return reinterpret_cast<PyObject*>(outlet);
}

PyObject* writer_begin(PyObject* self, PyObject*) {
  reinterpret_cast<StepWriter*>(self)->gathers = true;
  Py_RETURN_NONE;
}

PyObject* writer_end(PyObject* self, PyObject*) {
  StepWriter* writer = reinterpret_cast<StepWriter*>(self);
  writer->gathers = false;
  std::vector<Outlet*> unsent;
  unsent.swap(writer->unsent);
  for (Outlet* outlet : unsent) {
    outlet->listed = false;
    // One connection's trouble is no other's.
    if (!outlet_send(outlet)) PyErr_WriteUnraisable(reinterpret_cast<PyObject*>(outlet));
    Py_DECREF(outlet);
  }
  unsent.clear();
  if (writer->unsent.empty()) writer->unsent.swap(unsent);  // keeps its room
  Py_RETURN_NONE;
}

PyMethodDef writer_methods[] = {
    {"outlet", writer_outlet, METH_VARARGS, "outlet(transport, flow, fd): what writes to a connection; fd is -1 if only the transport may."},
    {"begin", writer_begin, METH_NOARGS, "A step begins."},
    {"end", writer_end, METH_NOARGS, "The step is over: send what it brought."},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot writer_slots[] = {{Py_tp_new, reinterpret_cast<void*>(writer_new)},
                              {Py_tp_dealloc, reinterpret_cast<void*>(dealloc<StepWriter>)},
                              {Py_tp_methods, writer_methods},
                              {0, nullptr}};

PyType_Spec writer_spec = {"step_writer.StepWriter", sizeof(StepWriter), 0, Py_TPFLAGS_DEFAULT, writer_slots};

}  // namespace
