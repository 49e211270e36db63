#include "short_operators.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/python/pybind_utils.h>

#include <algorithm>
#include <array>
#include <vector>

#include "gil.h"
#include "in_python.h"
#include "node.h"
#include "operators.h"
#include "plain.h"

namespace addnorm {
namespace {

constexpr size_t kMostArguments = 20;
using Values = std::array<PyObject*, kMostArguments>;

// An operator's arguments: their names, and the values of those that are left out. Lives as long as the process.
struct Signature {
  PyObject* dispatched = nullptr;
  std::vector<PyObject*> names, defaults;  // interned; no default: nullptr

  Signature(const char* name, PyObject* callable) : dispatched(callable) {
    Py_INCREF(dispatched);
    for (const c10::Argument& argument : c10::Dispatcher::singleton().findSchemaOrThrow(name, "").schema().arguments()) {
      names.push_back(PyUnicode_InternFromString(argument.name().c_str()));
      const auto value = argument.default_value();
      defaults.push_back(value ? torch::jit::toPyObject(*value).release().ptr() : nullptr);
    }
    TORCH_CHECK(names.size() <= kMostArguments, name, " has ", names.size(), " arguments");
  }

  // The values in the order of the schema; false where they do not fit it.
  bool bind(PyObject* const* args, Py_ssize_t count, PyObject* keywords, Values& values) const {
    const Py_ssize_t named = keywords == nullptr ? 0 : PyTuple_GET_SIZE(keywords);
    if (static_cast<size_t>(count + named) > names.size()) return false;
    values.fill(nullptr);
    std::copy_n(args, count, values.begin());
    auto place = names.begin();
    for (Py_ssize_t i = 0; i < named; ++i) {
      PyObject* keyword = PyTuple_GET_ITEM(keywords, i);
      place = std::find(place, names.end(), keyword);  // mostly in the schema's order
      if (place == names.end()) place = std::find(names.begin(), names.end(), keyword);
      if (place == names.end()) return false;
      PyObject*& value = values[static_cast<size_t>(place - names.begin())];
      if (value != nullptr) return false;
      value = args[count + i];
    }
    for (size_t i = 0; i < names.size(); ++i) {
      if (values[i] == nullptr && (values[i] = defaults[i]) == nullptr) return false;
    }
    return true;
  }
};

const Signature* forward_signature = nullptr;
const Signature* backward_signature = nullptr;

// Below this the GIL is kept: releasing it would cost more than it frees.
bool is_large(const at::Tensor& t) { return t.numel() > kReleaseElements; }

// Whether autograd might have something to record.
bool is_watched(const ForwardArguments& call) { return wants_gradient(call.operands); }
bool is_watched(const BackwardArguments&) { return is_recording(); }

template <size_t N>
PyObject* as_tuple(std::array<at::Tensor, N> results) {
  THPObjectPtr tuple(PyTuple_New(N));
  if (!tuple) throw python_error();
  for (size_t i = 0; i < N; ++i) PyTuple_SET_ITEM(tuple.get(), i, THPVariable_Wrap(std::move(results[i])));
  return tuple.release();
}

template <class Arguments>
PyObject* answer(const Signature* signature, const char* name, auto run, InPython function, PyObject* const* args, Py_ssize_t count,
                 PyObject* keywords) {
  HANDLE_TH_ERRORS
  Values values;
  Arguments call;
  const bool fits = is_plain_thread() && signature->bind(args, count, keywords, values);
  const Way way = fits ? read(values.data(), call) : Way::kDispatched;
  if (way == Way::kDispatched || is_watched(call)) {
    return PyObject_Vectorcall(signature->dispatched, args, static_cast<size_t>(count), keywords);
  }
  if (way == Way::kPython) {
    RECORD_FUNCTION(name, c10::ArrayRef<const c10::IValue>{});
    return PyObject_Vectorcall(in_python[function], values.data(), signature->names.size(), nullptr);
  }
  const auto results = [&] {
    const ReleaseGil release(is_large(call.main()));
    RECORD_FUNCTION(name, c10::ArrayRef<const c10::IValue>{});
    return run(call);
  }();
  return as_tuple(results);
  END_HANDLE_TH_ERRORS
}

}  // namespace

PyObject* short_forward(PyObject*, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  return answer<ForwardArguments>(forward_signature, "addnorm::forward", run_forward, kForward, args, count, names);
}

PyObject* short_backward(PyObject*, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  return answer<BackwardArguments>(backward_signature, "addnorm::backward", run_backward, kBackward, args, count, names);
}

void set_dispatched(PyObject* forward, PyObject* backward) {
  forward_signature = new Signature("addnorm::forward", forward);
  backward_signature = new Signature("addnorm::backward", backward);
}

}  // namespace addnorm
