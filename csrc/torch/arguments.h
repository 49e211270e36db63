// The arguments of addnorm::forward and addnorm::backward in the order of ops.py: as the dispatcher has them, on a stack, and as Python
// does.
#pragma once

#include <Python.h>

#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>

#include <array>
#include <optional>
#include <string>

#include "call.h"

namespace addnorm {

using torch::jit::Stack;

// What the two operators share, from the norm's name on.
struct Settings {
  std::string norm = "layer";
  std::optional<std::string> backend;  // none: the kernels of x's device
  const at::Tensor* seed = nullptr;
  Options options;  // but for the norm and the seed, which only the CPU's kernels can read

  // Of a call whose x, or z, is this tensor.
  bool for_cpu_kernels(const at::Tensor& t) const { return backend ? *backend == "cpu" : t.is_cpu(); }
};

struct ForwardArguments {
  Operands operands{};
  bool keep_stream = false, keep_stats = false;
  Settings settings;

  const at::Tensor& main() const { return *operands[kX]; }
};

struct BackwardArguments {
  Incoming incoming;
  std::array<bool, kOperands> needs{};
  Operands operands{};
  Settings settings;
  GradientTypes types;

  const at::Tensor& main() const { return *incoming.z; }
};

// They borrow what lies on the stack, whose last `count` values they are.
ForwardArguments forward_arguments(const Stack& stack, size_t count);
BackwardArguments backward_arguments(const Stack& stack, size_t count);

// The same of a call's Python objects, borrowed too. Dispatched: they are not plainly right, and for the dispatcher to judge.
enum class Way { kCpuKernels, kPython, kDispatched };
Way read(PyObject* const* objects, ForwardArguments& call);
Way read(PyObject* const* objects, BackwardArguments& call);

// The other way round.
Stack as_stack(const BackwardArguments& arguments);
PyObject* as_tuple(const BackwardArguments& arguments);

}  // namespace addnorm
