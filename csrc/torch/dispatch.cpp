// addnorm::forward and addnorm::backward for the dispatcher's CPU key: what a compiled graph calls, with no Python in between.
//
// ops.py defines the operators and implements them in Python for every other key; a call that names another backend goes there too.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <string>
#include <utility>

#include "call.h"

namespace addnorm {
namespace {

using torch::jit::Stack;

// The last arguments on a stack, one after the other.
class Arguments {
 public:
  Arguments(const Stack& stack, size_t count) : next_(stack.end() - static_cast<std::ptrdiff_t>(count)) {}

  const at::Tensor* tensor() {
    const c10::IValue& value = *next_++;
    return value.isNone() ? nullptr : &value.toTensor();
  }
  double number() { return (next_++)->toDouble(); }
  bool flag() { return (next_++)->toBool(); }
  at::ScalarType dtype() { return (next_++)->toScalarType(); }
  Norm norm() {
    const std::string& name = (next_++)->toStringRef();
    TORCH_CHECK(name == "layer" || name == "rms", "addnorm: there is no kernel for norm='", name, "'");
    return name == "layer" ? Norm::layer : Norm::rms;
  }
  uint64_t seed() {
    const at::Tensor* t = tensor();
    return t == nullptr ? 0 : static_cast<uint64_t>(*t->const_data_ptr<int64_t>());
  }
  c10::List<bool> flags() { return (next_++)->toBoolList(); }

 private:
  Stack::const_iterator next_;
};

template <size_t N>
void give(Stack* stack, size_t arguments, std::array<at::Tensor, N> results, const at::TensorOptions& like) {
  torch::jit::drop(*stack, arguments);
  for (at::Tensor& result : results) stack->emplace_back(result.defined() ? std::move(result) : at::empty({0}, like));
}

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
  Options options;
  options.seed = next.seed();
  options.norm = next.norm();
  options.eps = next.number();
  options.residual_scale = next.number();
  options.dropout_p = next.number();
  options.weight_offset = next.number();
  options.out_dtype = next.dtype();
  options.stream_dtype = next.dtype();
  const bool keep_stream = next.flag(), keep_stats = next.flag();
  Results results = forward(operands, options, keep_stream, keep_stats);
  const at::TensorOptions like = results.y.options();
  give<3>(stack, count, {std::move(results.y), std::move(results.z), std::move(results.stats)}, like);
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
  Options options;
  options.seed = next.seed();
  options.norm = next.norm();
  options.eps = next.number();
  options.residual_scale = next.number();
  options.dropout_p = next.number();
  options.weight_offset = next.number();
  GradientTypes types;
  for (at::ScalarType* type : {&types.x, &types.residual, &types.bias}) *type = next.dtype();
  const c10::List<bool> asked = next.flags();
  TORCH_CHECK(asked.size() == kOperands, "addnorm: needs must be ", kOperands, " bools, got ", asked.size());
  std::array<bool, kOperands> needs;
  for (size_t i = 0; i < kOperands; ++i) needs[i] = asked[i];
  Gradients grads = backward(incoming, operands, options, types, needs);
  const at::TensorOptions like = incoming.z->options();
  give<kOperands>(stack, count, std::move(grads), like);
}

}  // namespace
}  // namespace addnorm

TORCH_LIBRARY_IMPL(addnorm, CPU, m) {
  m.impl("forward", torch::CppFunction::makeFromBoxedFunction<&addnorm::dispatch_forward>());
  m.impl("backward", torch::CppFunction::makeFromBoxedFunction<&addnorm::dispatch_backward>());
}
