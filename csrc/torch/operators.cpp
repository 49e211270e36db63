// addnorm::forward and addnorm::backward for the dispatcher's CPU key: what a compiled graph calls, with no Python in between.
//
// ops.py defines the operators and implements them in Python for every other key; a call that names another backend goes there too.
#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <torch/library.h>

#include <string>
#include <utility>

#include "call.h"

namespace addnorm {
namespace {

using torch::jit::Stack;

// The last arguments on a stack, one after the other. They are checked as far as a wrong one would end the process: the operators are
// public, where add_norm checks all and says more.
class Arguments {
 public:
  Arguments(const Stack& stack, size_t count) : next_(stack.end() - static_cast<std::ptrdiff_t>(count)) {}

  const at::Tensor* tensor() {
    const c10::IValue& value = *next_++;
    if (value.isNone()) return nullptr;
    const at::Tensor& t = value.toTensor();
    TORCH_CHECK(is_supported(t.scalar_type()), "addnorm: there is no kernel for ", t.scalar_type());
    return &t;
  }
  double number() { return (next_++)->toDouble(); }
  bool flag() { return (next_++)->toBool(); }
  at::ScalarType dtype() {
    const at::ScalarType type = (next_++)->toScalarType();
    TORCH_CHECK(is_supported(type), "addnorm: there is no kernel for ", type);
    return type;
  }
  Norm norm() {
    const std::string& name = (next_++)->toStringRef();
    TORCH_CHECK(name == "layer" || name == "rms", "addnorm: there is no kernel for norm='", name, "'");
    return name == "layer" ? Norm::layer : Norm::rms;
  }
  uint64_t seed() {
    const c10::IValue& value = *next_++;
    has_seed_ = !value.isNone();
    return has_seed_ ? static_cast<uint64_t>(*value.toTensor().const_data_ptr<int64_t>()) : 0;
  }
  // What the forward and the backward share, from the seed on.
  Options options() {
    Options options;
    options.seed = seed();
    options.norm = norm();
    options.eps = number();
    options.residual_scale = number();
    options.dropout_p = number();
    options.weight_offset = number();
    TORCH_CHECK(has_seed_ || options.dropout_p == 0, "addnorm: dropout needs a seed");
    return options;
  }
  c10::List<bool> flags() { return (next_++)->toBoolList(); }

 private:
  Stack::const_iterator next_;
  bool has_seed_ = false;
};

template <size_t N>
void give(Stack* stack, size_t arguments, std::array<at::Tensor, N> results, at::ScalarType dtype) {
  torch::jit::drop(*stack, arguments);
  for (at::Tensor& result : results) stack->emplace_back(result.defined() ? std::move(result) : at::detail::empty_cpu({0}, dtype));
}

// These have no autograd of their own: below it, as the caller is.
void in_python(const char* name, Stack* stack) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  c10::Dispatcher::singleton().findSchemaOrThrow(name, "").callBoxed(stack);
}

// forward(the fields of Call, keep_stream, keep_stats, backend)
void dispatch_forward(const c10::OperatorHandle& op, Stack* stack) {
  if (stack->back().toStringRef() != "cpu") return in_python("addnorm::_forward", stack);
  const size_t count = op.schema().arguments().size();
  Arguments next(*stack, count);
  Operands operands{};
  for (const at::Tensor*& operand : operands) operand = next.tensor();
  TORCH_CHECK(operands[kX]->dim() > 0, "addnorm: x has no dimension to normalise over");
  Options options = next.options();
  options.out_dtype = next.dtype();
  options.stream_dtype = next.dtype();
  const bool keep_stream = next.flag(), keep_stats = next.flag();
  Results results = forward(operands, options, keep_stream, keep_stats);
  give<3>(stack, count, {std::move(results.y), std::move(results.z), std::move(results.stats)}, options.out_dtype);
}

// backward(the fields of Gradient, backend)
void dispatch_backward(const c10::OperatorHandle& op, Stack* stack) {
  if (stack->back().toStringRef() != "cpu") return in_python("addnorm::_backward", stack);
  const size_t count = op.schema().arguments().size();
  Arguments next(*stack, count);
  Incoming incoming;
  for (const at::Tensor** t : {&incoming.dy, &incoming.ds, &incoming.z, &incoming.stats}) *t = next.tensor();
  Operands operands{};
  for (const Operand i : {kX, kWeight, kBranchBias, kBranchScale, kRowScale}) operands[i] = next.tensor();
  Options options = next.options();
  GradientTypes types;
  for (at::ScalarType* type : {&types.x, &types.residual, &types.bias}) *type = next.dtype();
  const c10::List<bool> asked = next.flags();
  TORCH_CHECK(asked.size() == kOperands, "addnorm: needs must be ", kOperands, " bools, got ", asked.size());
  std::array<bool, kOperands> needs;
  for (size_t i = 0; i < kOperands; ++i) needs[i] = asked[i];
  for (const Operand i : {kWeight, kBranchBias, kBranchScale, kRowScale}) {
    TORCH_CHECK(!needs[i] || operands[i] != nullptr, "addnorm: a gradient is asked for of an operand that is not given");
  }
  Gradients grads = backward(incoming, operands, options, types, needs);
  const at::ScalarType like = incoming.z->scalar_type();  // before the stack lets go of z
  give<kOperands>(stack, count, std::move(grads), like);
}

}  // namespace
}  // namespace addnorm

TORCH_LIBRARY_IMPL(addnorm, CPU, m) {
  m.impl("forward", torch::CppFunction::makeFromBoxedFunction<&addnorm::dispatch_forward>());
  m.impl("backward", torch::CppFunction::makeFromBoxedFunction<&addnorm::dispatch_backward>());
}
