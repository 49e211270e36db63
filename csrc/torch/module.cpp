// The Python module: the short way in (add_norm, add_norm_stream), the backend's functions (forward, backward), the
// operators' short way, and the autograd of kernels in Python (record).
#include <Python.h>

#include <ATen/record_function.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/object_ptr.h>

#include <algorithm>
#include <array>
#include <limits>
#include <stdexcept>
#include <string>

#include "call.h"
#include "gil.h"
#include "in_python.h"
#include "kinds.h"
#include "node.h"
#include "short_call.h"
#include "short_operators.h"

namespace addnorm {
namespace {

// -- reading arguments that ops.py or call.py have checked: a wrong one throws ------------------------------

[[noreturn]] void refuse(const char* what) { throw std::invalid_argument(std::string("addnorm: expected ") + what); }

const at::Tensor* tensor_or_none(PyObject* object) {
  if (object == Py_None) return nullptr;
  if (!THPVariable_Check(object)) refuse("a tensor or None");
  return &THPVariable_Unpack(object);
}

double number(PyObject* object) {
  const double value = PyFloat_AsDouble(object);
  if (value == -1.0 && PyErr_Occurred()) throw python_error();
  return value;
}

at::ScalarType dtype(PyObject* object) {
  if (!THPDtype_Check(object)) refuse("a dtype");
  return reinterpret_cast<THPDtype*>(object)->scalar_type;
}

Norm norm(PyObject* object) {
  if (PyUnicode_CompareWithASCIIString(object, "layer") == 0) return Norm::layer;
  if (PyUnicode_CompareWithASCIIString(object, "rms") == 0) return Norm::rms;
  refuse("norm 'layer' or 'rms'");
}

PyObject* wrap(at::Tensor tensor) {
  if (!tensor.defined()) Py_RETURN_NONE;
  return THPVariable_Wrap(std::move(tensor));
}

template <class... Tensors>
PyObject* wrap_tuple(Tensors&&... tensors) {
  return Py_BuildValue(sizeof...(tensors) == 2 ? "(NN)" : sizeof...(tensors) == 3 ? "(NNN)" : "(NNNNNNN)",
                       wrap(std::forward<Tensors>(tensors))...);
}

void expect_arguments(Py_ssize_t got, Py_ssize_t wanted) {
  if (got != wanted) refuse("another number of arguments");
}

// The arguments that forward and backward share, from norm on.
Options read_options(PyObject* const* args, Operands& operands) {
  Options options;
  options.norm = norm(args[0]);
  options.eps = number(args[1]);
  options.dropout_p = number(args[2]);
  if (const at::Tensor* seed = tensor_or_none(args[3])) options.seed = seed_value(*seed);
  operands[kBranchBias] = tensor_or_none(args[4]);
  operands[kBranchScale] = tensor_or_none(args[5]);
  operands[kRowScale] = tensor_or_none(args[6]);
  options.residual_scale = number(args[7]);
  options.weight_offset = number(args[8]);
  return options;
}

// forward(the fields of Call, keep_stream, keep_stats, out, stream_out) -> (y, z | None, stats | None)
PyObject* py_forward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  expect_arguments(count, 19);
  Operands operands{};
  for (const Operand i : {kX, kResidual, kWeight, kBias}) operands[i] = tensor_or_none(args[i]);
  Options options = read_options(args + 4, operands);
  options.out_dtype = dtype(args[13]);
  options.stream_dtype = dtype(args[14]);
  const bool keep_stream = args[15] == Py_True, keep_stats = args[16] == Py_True;
  const at::Tensor *out = tensor_or_none(args[17]), *stream_out = tensor_or_none(args[18]);
  Results results;
  {
    const ReleaseGil release(operands[kX]->numel() > kReleaseElements);
    results = forward(operands, options, keep_stream, keep_stats, out, stream_out);
  }
  return wrap_tuple(results.y, results.z, results.stats);
  END_HANDLE_TH_ERRORS
}

// backward(the fields of Gradient) -> a gradient or None for each operand
PyObject* py_backward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  expect_arguments(count, 19);
  const Incoming incoming{tensor_or_none(args[0]), tensor_or_none(args[1]), tensor_or_none(args[2]),
                          tensor_or_none(args[3])};
  Operands operands{};
  operands[kWeight] = tensor_or_none(args[5]);
  const Options options = read_options(args + 6, operands);
  operands[kX] = tensor_or_none(args[15]);
  const GradientTypes types{dtype(args[16]), dtype(args[17]), dtype(args[18])};
  const THPObjectPtr asked(PySequence_Fast(args[4], "addnorm: expected a sequence of bools"));
  if (!asked) throw python_error();
  if (PySequence_Fast_GET_SIZE(asked.get()) != kOperands) refuse("7 bools");
  std::array<bool, kOperands> needs;
  for (size_t i = 0; i < kOperands; ++i) needs[i] = PySequence_Fast_GET_ITEM(asked.get(), i) == Py_True;
  Gradients grads;
  {
    const ReleaseGil release(incoming.z->numel() > kReleaseElements);
    grads = backward(incoming, operands, options, types, needs);
  }
  return wrap_tuple(grads[0], grads[1], grads[2], grads[3], grads[4], grads[5], grads[6]);
  END_HANDLE_TH_ERRORS
}

template <bool stream>
PyObject* py_short(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  expect_arguments(count, 18);
  ShortCall call;
  if (!call.read(args)) Py_RETURN_NONE;
  for (const at::Tensor* written : {call.out, call.stream_out}) {
    if (written != nullptr) torch::autograd::impl::bump_version(*written);
  }
  Results results;
  {
    const ReleaseGil release(call.operands[kX]->numel() > kReleaseElements);
    RECORD_FUNCTION("addnorm::forward", c10::ArrayRef<const c10::IValue>{});
    results = wants_gradient(call.operands)
                  ? forward_recorded(call.operands, call.options, stream)
                  : forward(call.operands, call.options, stream, false, call.out, call.stream_out);
  }
  if constexpr (stream) return wrap_tuple(std::move(results.y), std::move(results.z));
  return wrap(std::move(results.y));
  END_HANDLE_TH_ERRORS
}

// stream_floor(reads, writes, non_temporal): the bytes of flat float32 tensors moved; what is left of the last 32 is not.
PyObject* py_stream_floor(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  expect_arguments(count, 3);
  Stream stream;
  stream.count = std::numeric_limits<int64_t>::max();
  const auto flat = [&](PyObject* list, int most, auto put) {
    if (!PyList_Check(list) || PyList_GET_SIZE(list) < 1 || PyList_GET_SIZE(list) > most) refuse("1 to 4 reads and 1 or 2 writes");
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i) {
      const at::Tensor* t = tensor_or_none(PyList_GET_ITEM(list, i));
      if (t == nullptr || !t->is_cpu() || t->scalar_type() != at::kFloat || !t->is_contiguous()) refuse("flat float32 CPU tensors");
      stream.count = std::min(stream.count, t->numel() / 32 * 32);
      put(static_cast<int>(i), t->data_ptr<float>());
    }
    return static_cast<int>(PyList_GET_SIZE(list));
  };
  stream.read_count = flat(args[0], kMaxStreamReads, [&](int i, float* data) { stream.reads[i] = data; });
  stream.write_count = flat(args[1], kMaxStreamWrites, [&](int i, float* data) { stream.writes[i] = data; });
  stream.non_temporal = args[2] == Py_True;
  const auto aligned = [](const float* data) { return reinterpret_cast<uintptr_t>(data) % 64 == 0; };
  if (stream.non_temporal && !std::all_of(stream.writes, stream.writes + stream.write_count, aligned)) {
    refuse("writes aligned to 64 bytes, as non-temporal ones must be");
  }
  kernels().stream(stream, torch_runtime());
  Py_RETURN_NONE;
  END_HANDLE_TH_ERRORS
}

PyObject* py_isas(PyObject*, PyObject*) {
  HANDLE_TH_ERRORS
  THPObjectPtr names(PyList_New(0));
  for (const Kernels* set : available_kernels()) {
    THPObjectPtr name(PyUnicode_FromString(set->name));
    if (!names || !name || PyList_Append(names.get(), name.get()) != 0) throw python_error();
  }
  return names.release();
  END_HANDLE_TH_ERRORS
}

PyObject* py_isa(PyObject*, PyObject*) {
  HANDLE_TH_ERRORS
  return PyUnicode_FromString(kernels().name);
  END_HANDLE_TH_ERRORS
}

// record(the arguments of addnorm::forward, y, stream or None where it is x, stats): makes y and the stream differentiable, as kernels
// in Python have made them.
PyObject* py_record(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  expect_arguments(count, 21);
  ForwardArguments call;
  if (read(args, call) == Way::kDispatched) refuse("plain tensors");
  Results results;
  const std::array<at::Tensor*, 3> given{&results.y, &results.z, &results.stats};
  for (size_t i = 0; i < given.size(); ++i) {
    if (const at::Tensor* t = tensor_or_none(args[18 + i])) *given[i] = *t;
  }
  record(call.operands, call.settings, results, !results.z.defined());
  Py_RETURN_NONE;
  END_HANDLE_TH_ERRORS
}

PyObject* py_set_in_python(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  expect_arguments(count, kInPython);
  for (size_t i = 0; i < kInPython; ++i) Py_XSETREF(in_python[i], Py_NewRef(args[i]));
  Py_RETURN_NONE;
  END_HANDLE_TH_ERRORS
}

PyObject* py_set_dispatched(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  expect_arguments(count, 2);
  set_dispatched(args[0], args[1]);
  Py_RETURN_NONE;
  END_HANDLE_TH_ERRORS
}

template <class Function>
PyCFunction as_method(Function function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {
    {"add_norm", as_method(py_short<false>), METH_FASTCALL, "y, or None where the call is not plain."},
    {"add_norm_stream", as_method(py_short<true>), METH_FASTCALL, "(y, stream), or None where the call is not plain."},
    {"short_forward", as_method(short_forward), METH_FASTCALL | METH_KEYWORDS, "addnorm::forward, past the dispatcher where the call is plain."},
    {"short_backward", as_method(short_backward), METH_FASTCALL | METH_KEYWORDS, "addnorm::backward, past the dispatcher where the call is plain."},
    {"set_dispatched", as_method(py_set_dispatched), METH_FASTCALL, "The operators that take what is not plain."},
    {"forward", as_method(py_forward), METH_FASTCALL, "(y, z or None, stats or None)."},
    {"backward", as_method(py_backward), METH_FASTCALL, "A gradient or None for each operand."},
    {"stream_floor", as_method(py_stream_floor), METH_FASTCALL, "Moves bytes as fast as this machine can."},
    {"isa", py_isa, METH_NOARGS, "The instruction set that runs."},
    {"isas", py_isas, METH_NOARGS, "The instruction sets that this processor runs, best first."},
    {"record", as_method(py_record), METH_FASTCALL, "Makes the results of addnorm::forward differentiable."},
    {"kinds", kinds, METH_O, "What a prepared launch depends on of its tensors, and where they lie."},
    {"set_in_python", as_method(py_set_in_python), METH_FASTCALL, "What is done in Python: see in_python.h."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module{PyModuleDef_HEAD_INIT, "addnorm C++ extension", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace addnorm

#define ADDNORM_INIT_(name) PyInit_##name
#define ADDNORM_INIT(name) ADDNORM_INIT_(name)

extern "C" __attribute__((visibility("default"))) PyObject* ADDNORM_INIT(ADDNORM_MODULE)() {
  try {
    addnorm::kernels();  // a wrong ADDNORM_CPU_ISA is an error at import: what is asked for never falls back
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
  return PyModule_Create(&addnorm::module);
}
