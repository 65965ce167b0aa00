// Types of an extension module, whose structs begin with PyObject_HEAD.

#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

// A struct's `each` goes through the objects that it holds, for Python's collector of garbage; its `end` destroys all else.
template <class Object>
int traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  int stop = 0;
  reinterpret_cast<Object*>(self)->each([&](auto*& held) {
    if (stop == 0 && held != nullptr) stop = visit(reinterpret_cast<PyObject*>(held), arg);
  });
  return stop;
}

template <class Object>
int clear(PyObject* self) {
  reinterpret_cast<Object*>(self)->each([](auto*& held) { Py_CLEAR(held); });
  return 0;
}

template <class Object>
void dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  if (PyType_IS_GC(type)) PyObject_GC_UnTrack(self);
  clear<Object>(self);
  reinterpret_cast<Object*>(self)->end();
  type->tp_free(self);
  Py_DECREF(type);
}
