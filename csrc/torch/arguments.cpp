#include "arguments.h"

#include <ATen/core/List.h>
#include <c10/core/ScalarType.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/DynamicTypes.h>
#include <torch/csrc/autograd/python_variable.h>

#include "plain.h"

namespace addnorm {
namespace {

class StackReader {
 public:
  StackReader(const Stack& stack, size_t count) : next_(stack.end() - static_cast<std::ptrdiff_t>(count)) {}

  const at::Tensor* tensor() {
    const c10::IValue& value = *next_++;
    return value.isNone() ? nullptr : &value.toTensor();
  }
  const at::Tensor* seed() { return tensor(); }
  double number() { return (next_++)->toDouble(); }
  bool flag() { return (next_++)->toBool(); }
  std::string name() { return (next_++)->toStringRef(); }
  std::optional<std::string> optional_name() {
    const c10::IValue& value = *next_++;
    return value.isNone() ? std::nullopt : std::optional(value.toStringRef());
  }
  at::ScalarType dtype(at::ScalarType otherwise) {
    const c10::IValue& value = *next_++;
    return value.isNone() ? otherwise : value.toScalarType();
  }
  std::array<bool, kOperands> flags() {
    const c10::List<bool> given = (next_++)->toBoolList();
    TORCH_CHECK(given.size() == kOperands, "addnorm: needs must be ", kOperands, " bools, got ", given.size());
    std::array<bool, kOperands> flags;
    for (size_t i = 0; i < kOperands; ++i) flags[i] = given[i];
    return flags;
  }

 private:
  Stack::const_iterator next_;
};

// Takes what is exactly of the type that it should be, names of any type of string, and the plain tensors; `plain` turns false at
// anything else, `on_cpu` at a tensor elsewhere.
class PythonReader {
 public:
  explicit PythonReader(PyObject* const* objects) : next_(objects) {}

  bool plain = true, on_cpu = true;

  const at::Tensor* tensor() {
    const at::Tensor* t = any_tensor();
    if (t != nullptr) plain = plain && is_plain(*t);
    return t;
  }
  const at::Tensor* seed() {
    const at::Tensor* t = any_tensor();
    if (t != nullptr) plain = plain && is_dense(*t) && t->scalar_type() == at::kLong && t->numel() == 1;
    return t;
  }
  double number() {
    PyObject* object = *next_++;
    plain = plain && PyFloat_CheckExact(object);
    return plain ? PyFloat_AS_DOUBLE(object) : 0;
  }
  bool flag() { return as_flag(*next_++); }
  std::string name() {
    PyObject* object = *next_++;
    Py_ssize_t size = 0;
    const char* text = PyUnicode_Check(object) ? PyUnicode_AsUTF8AndSize(object, &size) : nullptr;
    if (text == nullptr) PyErr_Clear();
    plain = plain && text != nullptr;
    return {text == nullptr ? "" : text, static_cast<size_t>(size)};
  }
  std::optional<std::string> optional_name() {
    if (*next_ != Py_None) return name();
    ++next_;
    return std::nullopt;
  }
  at::ScalarType dtype(at::ScalarType otherwise) {
    PyObject* object = *next_++;
    if (object == Py_None) return otherwise;
    plain = plain && THPDtype_Check(object);
    return plain ? reinterpret_cast<THPDtype*>(object)->scalar_type : otherwise;
  }
  std::array<bool, kOperands> flags() {
    PyObject* object = *next_++;
    std::array<bool, kOperands> flags{};
    plain = plain && PyList_CheckExact(object) && PyList_GET_SIZE(object) == kOperands;
    for (size_t i = 0; plain && i < kOperands; ++i) flags[i] = as_flag(PyList_GET_ITEM(object, static_cast<Py_ssize_t>(i)));
    return flags;
  }

 private:
  const at::Tensor* any_tensor() {
    PyObject* object = *next_++;
    if (object == Py_None) return nullptr;
    plain = plain && THPVariable_CheckExact(object);
    if (!plain) return nullptr;
    const at::Tensor& t = THPVariable_Unpack(object);
    on_cpu = on_cpu && t.is_cpu();
    return &t;
  }
  bool as_flag(PyObject* object) {
    plain = plain && PyBool_Check(object);
    return object == Py_True;
  }

  PyObject* const* next_;
};

template <class Reader>
Settings settings(Reader& next, Operands& operands) {
  Settings settings;
  settings.norm = next.name();
  settings.options.eps = next.number();
  settings.options.dropout_p = next.number();
  settings.seed = next.seed();
  for (const Operand i : {kBranchBias, kBranchScale, kRowScale}) operands[i] = next.tensor();
  settings.options.residual_scale = next.number();
  settings.options.weight_offset = next.number();
  return settings;
}

template <class Reader>
ForwardArguments forward_arguments(Reader& next) {
  ForwardArguments call;
  for (const Operand i : {kX, kResidual, kWeight, kBias}) call.operands[i] = next.tensor();
  call.keep_stream = next.flag();
  call.keep_stats = next.flag();
  call.settings = settings(next, call.operands);
  const at::Tensor *x = call.operands[kX], *residual = call.operands[kResidual];
  const at::ScalarType alone = x == nullptr ? at::kFloat : x->scalar_type();
  const at::ScalarType stored = residual == nullptr ? alone : c10::promoteTypes(alone, residual->scalar_type());
  call.settings.options.out_dtype = next.dtype(stored);
  call.settings.options.stream_dtype = next.dtype(stored);
  call.settings.backend = next.optional_name();
  return call;
}

template <class Reader>
BackwardArguments backward_arguments(Reader& next) {
  BackwardArguments call;
  Incoming& in = call.incoming;
  for (const at::Tensor** t : {&in.dy, &in.ds, &in.z, &in.stats}) *t = next.tensor();
  call.needs = next.flags();
  call.operands[kWeight] = next.tensor();
  call.settings = settings(next, call.operands);
  call.operands[kX] = next.tensor();
  const at::ScalarType stored = in.z == nullptr ? at::kFloat : in.z->scalar_type();
  for (at::ScalarType* type : {&call.types.x, &call.types.residual, &call.types.bias}) *type = next.dtype(stored);
  call.settings.backend = next.optional_name();
  return call;
}

Way way(const PythonReader& reader, const Settings& settings, const at::Tensor* main) {
  if (!reader.plain || main == nullptr) return Way::kDispatched;
  if (!settings.for_cpu_kernels(*main)) return Way::kPython;
  return reader.on_cpu ? Way::kCpuKernels : Way::kDispatched;
}

c10::IValue value(const at::Tensor* t) { return t == nullptr ? c10::IValue() : c10::IValue(*t); }

}  // namespace

ForwardArguments forward_arguments(const Stack& stack, size_t count) {
  StackReader next(stack, count);
  return forward_arguments(next);
}

BackwardArguments backward_arguments(const Stack& stack, size_t count) {
  StackReader next(stack, count);
  return backward_arguments(next);
}

Way read(PyObject* const* objects, ForwardArguments& call) {
  PythonReader next(objects);
  call = forward_arguments(next);
  return way(next, call.settings, call.operands[kX]);
}

Way read(PyObject* const* objects, BackwardArguments& call) {
  PythonReader next(objects);
  call = backward_arguments(next);
  return call.incoming.stats == nullptr ? Way::kDispatched : way(next, call.settings, call.incoming.z);
}

// Arguments at the end that have their default can be left out where a graph is traced: so a dtype that is z's is none.
Stack as_stack(const BackwardArguments& call) {
  const Incoming& in = call.incoming;
  const Options& options = call.settings.options;
  c10::List<bool> needs;
  needs.reserve(kOperands);
  for (const bool need : call.needs) needs.push_back(need);
  const auto dtype = [&](at::ScalarType type) {
    return type == in.z->scalar_type() ? c10::IValue() : c10::IValue(static_cast<int64_t>(type));
  };
  return {value(in.dy), value(in.ds), value(in.z), value(in.stats), std::move(needs), value(call.operands[kWeight]),
          call.settings.norm, options.eps, options.dropout_p, value(call.settings.seed),
          value(call.operands[kBranchBias]), value(call.operands[kBranchScale]), value(call.operands[kRowScale]),
          options.residual_scale, options.weight_offset, value(call.operands[kX]), dtype(call.types.x),
          dtype(call.types.residual), dtype(call.types.bias),
          call.settings.backend ? c10::IValue(*call.settings.backend) : c10::IValue()};
}

PyObject* as_tuple(const BackwardArguments& call) {
  const Incoming& in = call.incoming;
  const Options& options = call.settings.options;
  const auto tensor = [](const at::Tensor* t) { return t == nullptr ? Py_NewRef(Py_None) : THPVariable_Wrap(*t); };
  const auto dtype = [](at::ScalarType type) { return reinterpret_cast<PyObject*>(torch::getTHPDtype(type)); };
  PyObject* needs = PyTuple_New(kOperands);
  for (size_t i = 0; i < kOperands; ++i) PyTuple_SET_ITEM(needs, static_cast<Py_ssize_t>(i), PyBool_FromLong(call.needs[i]));
  return Py_BuildValue(
      "(NNNNNNsddNNNNddNOOOz)", tensor(in.dy), tensor(in.ds), tensor(in.z), tensor(in.stats), needs,
      tensor(call.operands[kWeight]), call.settings.norm.c_str(), options.eps, options.dropout_p, tensor(call.settings.seed),
      tensor(call.operands[kBranchBias]), tensor(call.operands[kBranchScale]), tensor(call.operands[kRowScale]),
      options.residual_scale, options.weight_offset, tensor(call.operands[kX]), dtype(call.types.x), dtype(call.types.residual),
      dtype(call.types.bias), call.settings.backend ? call.settings.backend->c_str() : nullptr);
}

}  // namespace addnorm
