// bireme_run_op: calls an op of this library from Python, beside Paddle's own way, which copies its table of all custom ops at each
// call: 20 to 60 us, and 50 to 130 on a machine with a GPU. A CPU step has a dozen calls, and its helpers fall asleep between two of
// them. A GPU step that replays graphs has four or five, with which the host holds up a small model. With CUDA ops that return new
// tensors are left to Paddle: they run while graphs are captured, and Paddle's header of dense tensors includes all of CUDA's.
#include <algorithm>

#include "bindings/checks.h"
#include "paddle/common/ddim.h"
#ifndef BIREME_WITH_CUDA
#include "paddle/phi/core/dense_tensor.h"
#endif
#include "paddle/utils/pybind.h"

namespace {

enum class AttrKind { kInt, kFloat, kBool, kText };

// What is registered of an op, read once.
struct Op {
  struct Input {
    std::string name;
    bool is_vector, is_optional;
  };
  const paddle::KernelFunc* kernel;
  std::vector<Input> inputs;
  std::vector<AttrKind> attrs;
  std::vector<int> outputs;  // the input that one is, -1: a tensor that the kernel returns
  size_t num_made = 0;       // of these
  bool waits = false;        // for the GPU; all others enqueue there, which is done sooner than the interpreter lock changes hands
};

class PythonError {};  // Python knows it already

[[noreturn]] void raise(PyObject* type, const std::string& message) {
  PyErr_SetString(type, message.c_str());
  throw PythonError();
}

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

AttrKind attr_kind(const std::string& attr) {
  const std::string type = attr.substr(attr.find_last_of(": ") + 1);
  if (type == "int64_t") return AttrKind::kInt;
  if (type == "float") return AttrKind::kFloat;
  if (type == "bool") return AttrKind::kBool;
  PD_CHECK(type == "string", attr, ": needs to be int64_t, float, bool or std::string");
  return AttrKind::kText;
}

Op read_op(const std::string& name) {
  using Helper = paddle::OpMetaInfoHelper;
  const auto& all = paddle::OpMetaInfoMap::Instance().GetMap();
  const auto found = all.find(name);
  PD_CHECK(found != all.end(), name, ": is no op of this library");
  const paddle::OpMetaInfo& info = found->second.front();
  Op op{&Helper::GetKernelFn(info), {}, {}, {}};
  op.waits = name == "bireme_event_wait";
  const auto& names = Helper::GetInputs(info);
  for (const auto& input : names) op.inputs.push_back({input, contains(input, "@VECTOR"), contains(input, "@OPTIONAL")});
  for (const auto& attr : Helper::GetAttrs(info)) op.attrs.push_back(attr_kind(attr));
  const auto& in_place = Helper::GetInplaceReverseMap(info);
  for (const auto& output : Helper::GetOutputs(info)) {
    const auto input = in_place.find(output);
    op.outputs.push_back(input == in_place.end() ? -1 : std::find(names.begin(), names.end(), input->second) - names.begin());
    PD_CHECK(op.outputs.back() >= 0 || !contains(output, "@VECTOR"), output, ": a list of tensors is returned by no op");
    op.num_made += op.outputs.back() < 0;
  }
  return op;
}

std::string text_of(PyObject* object) {
  Py_ssize_t size;
  const char* text = PyUnicode_AsUTF8AndSize(object, &size);
  if (text == nullptr) throw PythonError();
  return {text, static_cast<size_t>(size)};
}

// The interpreter lock guards the table; what stands in it stays.
const Op& find_op(PyObject* name) {
  static std::unordered_map<std::string, Op> ops;
  const std::string key = text_of(name);
  const auto found = ops.find(key);
  return found != ops.end() ? found->second : ops.emplace(key, read_op(key)).first->second;
}

bool is_contiguous(const paddle::Tensor& tensor) {
  if (tensor.numel() == 0) return true;  // whatever its strides are
  const auto &dims = tensor.dims(), &strides = tensor.strides();
  int64_t expected = 1;
  for (int axis = dims.size() - 1; axis >= 0; --axis) {
    if (dims[axis] != 1 && strides[axis] != expected) return false;
    expected *= dims[axis];
  }
  return true;
}

const paddle::Tensor& tensor_of(PyObject* object, const Op::Input& input) {
  if (!paddle::pybind::PyCheckTensor(object)) {
    raise(PyExc_TypeError, input.name + ": is a " + Py_TYPE(object)->tp_name + ", needs a tensor");
  }
  return paddle::pybind::CastPyArg2Tensor(object, 0);
}

// False: a tensor that is a view with gaps, of which Paddle's way makes a copy.
bool take_input(PyObject* object, const Op::Input& input, paddle::CustomOpKernelContext* context) {
  if (object == Py_None && input.is_optional) {
    context->EmplaceBackInput(paddle::Tensor());
    return true;
  }
  if (!input.is_vector) {
    const paddle::Tensor& tensor = tensor_of(object, input);
    context->EmplaceBackInput(tensor);
    return is_contiguous(tensor);
  }
  if (!PyTuple_Check(object) && !PyList_Check(object)) raise(PyExc_TypeError, input.name + ": needs a list or tuple of tensors");
  std::vector<paddle::Tensor> tensors;
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(object);
  tensors.reserve(count);
  for (Py_ssize_t i = 0; i < count; ++i) {
    tensors.push_back(tensor_of(PySequence_Fast_GET_ITEM(object, i), input));
    if (!is_contiguous(tensors.back())) return false;
  }
  context->EmplaceBackInputs(tensors);
  return true;
}

paddle::any attr_of(PyObject* object, AttrKind kind) {
  if (kind == AttrKind::kText) return text_of(object);
  const auto checked = [](auto value) {
    if (PyErr_Occurred()) throw PythonError();
    return paddle::any(value);
  };
  if (kind == AttrKind::kInt) return checked(static_cast<int64_t>(PyLong_AsLongLong(object)));
  if (kind == AttrKind::kFloat) return checked(static_cast<float>(PyFloat_AsDouble(object)));
  return checked(PyObject_IsTrue(object) == 1);
}

PyObject* outputs_of(const Op& op, PyObject* arguments, const std::vector<paddle::Tensor>& made) {
  py::list outputs(op.outputs.size());
  auto next = made.begin();
  for (size_t i = 0; i < op.outputs.size(); ++i) {
    PyObject* output = op.outputs[i] < 0 ? paddle::pybind::ToPyObject(*next++) : PyTuple_GET_ITEM(arguments, op.outputs[i]);
    if (op.outputs[i] >= 0) Py_INCREF(output);
    PyList_SET_ITEM(outputs.ptr(), i, output);
  }
  return outputs.release().ptr();
}

// Tensors that the kernel will return.
std::vector<paddle::Tensor> empty_outputs(const Op& op, [[maybe_unused]] paddle::CustomOpKernelContext* context) {
  std::vector<paddle::Tensor> made(op.num_made);
#ifndef BIREME_WITH_CUDA
  for (paddle::Tensor& tensor : made) {
    tensor.set_impl(std::make_shared<phi::DenseTensor>());
    context->AllMutablePlainOutput()->push_back(&tensor);
  }
#endif
  return made;
}

void run_kernel(const Op& op, paddle::CustomOpKernelContext* context) {
#ifdef BIREME_WITH_CUDA
  const paddle::Tensor& first = context->InputAt(0);
  if (!op.waits && (first.is_gpu() || first.is_gpu_pinned())) return (*op.kernel)(context);
#endif
  const py::gil_scoped_release without_lock;
  (*op.kernel)(context);
}

PyObject* run_op(PyObject* name, PyObject* arguments) {
  const Op& op = find_op(name);
#ifdef BIREME_WITH_CUDA
  if (op.num_made) Py_RETURN_NOTIMPLEMENTED;
#endif
  const size_t count = op.inputs.size() + op.attrs.size();
  if (static_cast<size_t>(PyTuple_GET_SIZE(arguments)) != count) {
    raise(PyExc_TypeError, "got " + std::to_string(PyTuple_GET_SIZE(arguments)) + " arguments, needs " + std::to_string(count));
  }
  paddle::CustomOpKernelContext context;
  Py_ssize_t at = 0;
  for (const Op::Input& input : op.inputs) {
    if (!take_input(PyTuple_GET_ITEM(arguments, at++), input, &context)) Py_RETURN_NOTIMPLEMENTED;
  }
  for (const AttrKind kind : op.attrs) context.EmplaceBackAttr(attr_of(PyTuple_GET_ITEM(arguments, at++), kind));
  const std::vector<paddle::Tensor> made = empty_outputs(op, &context);
  run_kernel(op, &context);
  return outputs_of(op, arguments, made);
}

}  // namespace

// The op called str `name` with the tuple `arguments`: a list of its outputs, an input that it writes among them as itself.
// NotImplemented where Paddle has to call it. Called with the interpreter lock, which is released while a kernel computes on the CPU
// or waits.
extern "C" PyObject* bireme_run_op(PyObject* name, PyObject* arguments) {
  try {
    return run_op(name, arguments);
  } catch (const PythonError&) {
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}
