// addnorm::forward and addnorm::backward as the dispatcher calls them, with no Python in between: their autograd on every device, and
// the kernels of the CPU. What compiled graphs run.
//
// ops.py defines the operators and implements them in Python for every other key; a call that names another backend goes there too.
#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "arguments.h"
#include "call.h"
#include "node.h"
#include "operators.h"
#include "plain.h"

namespace addnorm {
namespace {

// The operators are public, where add_norm checks all and says more: they check what would end the process.
void check_operands(const Operands& operands, at::IntArrayRef sizes) {
  TORCH_CHECK(!sizes.empty(), "addnorm: there is no dimension to normalise over");
  const at::IntArrayRef rows = sizes.slice(0, sizes.size() - 1), columns = sizes.slice(sizes.size() - 1);
  for (size_t i = 0; i < kOperands; ++i) {
    if (operands[i] == nullptr) continue;
    const at::Tensor& t = *operands[i];
    TORCH_CHECK(is_supported(t.scalar_type()), "addnorm: there is no kernel for ", t.scalar_type());
    const bool is_number = i == kBranchScale && t.dim() == 0;
    const at::IntArrayRef expected = i == kX || i == kResidual ? sizes : i == kRowScale ? rows : columns;
    TORCH_CHECK(is_number || t.sizes() == expected, "addnorm: an operand of shape ", t.sizes(), " where ", expected, " is due");
  }
}

// The texts are those of call.py.
void check_numbers(const Options& options) {
  const double p = options.dropout_p;
  TORCH_CHECK_VALUE(std::isfinite(options.eps) && options.eps >= 0, "eps must be a finite number >= 0, got ", options.eps);
  TORCH_CHECK_VALUE(p >= 0 && p < 1, "dropout_p must be in [0, 1), got ", p);
  TORCH_CHECK_VALUE(std::isfinite(options.residual_scale), "residual_scale must be a finite number, got ", options.residual_scale);
  TORCH_CHECK_VALUE(std::isfinite(options.weight_offset), "weight_offset must be a finite number, got ", options.weight_offset);
}

Options kernel_options(const Settings& settings) {
  Options options = settings.options;
  options.norm = kernel_norm(settings.norm);
  check_numbers(options);
  if (settings.seed != nullptr) options.seed = seed_value(*settings.seed);
  TORCH_CHECK(settings.seed != nullptr || options.dropout_p == 0, "addnorm: dropout needs a seed");
  for (const at::ScalarType type : {options.out_dtype, options.stream_dtype}) {
    TORCH_CHECK(is_supported(type), "addnorm: there is no kernel for ", type);
  }
  return options;
}

// Results that are not asked for are empty tensors.
template <size_t N>
void fill(std::array<at::Tensor, N>& results, at::ScalarType dtype) {
  for (at::Tensor& result : results) {
    if (!result.defined()) result = at::detail::empty_cpu({0}, dtype);
  }
}

template <size_t N>
void give(Stack* stack, size_t arguments, std::array<at::Tensor, N> results) {
  torch::jit::drop(*stack, arguments);
  for (at::Tensor& result : results) stack->emplace_back(std::move(result));
}

// These have no autograd of their own: below it, as the caller is.
void in_python(const char* name, Stack* stack) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  c10::Dispatcher::singleton().findSchemaOrThrow(name, "").callBoxed(stack);
}

void cpu_forward(const c10::OperatorHandle& op, Stack* stack) {
  const size_t count = op.schema().arguments().size();
  const ForwardArguments call = forward_arguments(*stack, count);
  if (!call.settings.for_cpu_kernels(call.main())) return in_python("addnorm::_forward", stack);
  give<3>(stack, count, run_forward(call));
}

void cpu_backward(const c10::OperatorHandle& op, Stack* stack) {
  const size_t count = op.schema().arguments().size();
  const BackwardArguments call = backward_arguments(*stack, count);
  if (!call.settings.for_cpu_kernels(call.main())) return in_python("addnorm::_backward", stack);
  give<kOperands>(stack, count, run_backward(call));
}

void below_autograd(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
}

// Whether autograd would record a call with the last `count` values of a stack as its arguments.
bool wants_gradient(const Stack& stack, size_t count) {
  if (!is_recording()) return false;
  const auto arguments = torch::jit::last(stack, count);
  return std::any_of(arguments.begin(), arguments.end(),
                     [](const c10::IValue& value) { return value.isTensor() && value.toTensor().requires_grad(); });
}

// The results would come without their tangents, which means zero.
void refuse_tangents(const c10::OperatorHandle& op, const Stack& stack, size_t count) {
  for (const c10::IValue& value : torch::jit::last(stack, count)) {
    TORCH_CHECK_NOT_IMPLEMENTED(!value.isTensor() || !value.toTensor().defined() || !has_tangent(value.toTensor()), op.schema().name(),
                                " has no forward-mode derivative: differentiate addnorm.add_norm");
  }
}

void autograd_forward(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  const size_t count = op.schema().arguments().size();
  refuse_tangents(op, *stack, count);
  if (!wants_gradient(*stack, count)) return below_autograd(op, keys, stack);
  const Stack arguments(stack->end() - static_cast<std::ptrdiff_t>(count), stack->end());  // outlives the call
  const ForwardArguments call = forward_arguments(arguments, count);
  const bool z_is_x = !call.keep_stream && stream_is_x(call.operands, call.settings.options);
  TORCH_CHECK(call.keep_stats && (call.keep_stream || z_is_x),
              "addnorm::forward keeps what its backward needs only with keep_stats and keep_stream");
  below_autograd(op, keys, stack);
  const auto result = [&](size_t i) { return torch::jit::peek(*stack, i, 3).toTensor(); };
  record(call.operands, call.settings, {result(0), result(1), result(2)}, z_is_x);
}

void autograd_backward(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  const size_t count = op.schema().arguments().size();
  refuse_tangents(op, *stack, count);
  if (!wants_gradient(*stack, count)) return below_autograd(op, keys, stack);
  torch::autograd::variable_list tensors;
  for (const c10::IValue& argument : torch::jit::last(*stack, count)) {
    if (argument.isTensor()) tensors.push_back(argument.toTensor());
  }
  below_autograd(op, keys, stack);
  const auto node = make_node<torch::autograd::Error>(
      "addnorm::backward has no derivative of its own: differentiate addnorm.add_norm with create_graph=True",
      torch::autograd::collect_next_edges(tensors));
  for (size_t i = 0; i < kOperands; ++i) {
    at::Tensor grad = torch::jit::peek(*stack, i, kOperands).toTensor();
    torch::autograd::set_history(grad, node);
  }
}

template <auto kernel>
torch::CppFunction boxed() {
  return torch::CppFunction::makeFromBoxedFunction<kernel>();
}

}  // namespace

std::array<at::Tensor, 3> run_forward(const ForwardArguments& call) {
  check_operands(call.operands, call.operands[kX]->sizes());
  const Options options = kernel_options(call.settings);
  Results kept = forward(call.operands, options, call.keep_stream, call.keep_stats);
  std::array results{std::move(kept.y), std::move(kept.z), std::move(kept.stats)};
  fill(results, options.out_dtype);
  return results;
}

void check_backward(const BackwardArguments& call, Norm norm) {
  const at::Tensor& z = *call.incoming.z;
  check_operands(call.operands, z.sizes());
  TORCH_CHECK(is_supported(z.scalar_type()), "addnorm: there is no kernel for ", z.scalar_type());
  TORCH_CHECK(call.incoming.dy != nullptr || call.incoming.ds != nullptr, "addnorm: neither dy nor ds is given");
  TORCH_CHECK(call.operands[kX] != nullptr || !(call.needs[kBranchScale] || call.needs[kRowScale]),
              "addnorm: the gradient of a scale needs x");
  for (const at::Tensor* t : {call.incoming.dy, call.incoming.ds}) {
    if (t == nullptr) continue;
    TORCH_CHECK(is_supported(t->scalar_type()), "addnorm: there is no kernel for ", t->scalar_type());
    TORCH_CHECK(t->sizes() == z.sizes(), "addnorm: a gradient of shape ", t->sizes(), " where ", z.sizes(), " is due");
  }
  const at::Tensor& stats = *call.incoming.stats;
  at::DimVector kept(z.sizes());
  kept.back() = stats_per_row(norm);
  TORCH_CHECK(stats.sizes() == kept, "addnorm: statistics of shape ", stats.sizes(), " where ", kept, " is due");
  TORCH_CHECK(stats.scalar_type() == at::kFloat || stats.scalar_type() == at::kDouble, "addnorm: statistics are Float or Double, got ",
              stats.scalar_type());
  for (const Operand i : {kWeight, kBranchBias, kBranchScale, kRowScale}) {
    TORCH_CHECK(!call.needs[i] || call.operands[i] != nullptr,
                "addnorm: a gradient is asked for of an operand that is not given");
  }
  for (const at::ScalarType type : {call.types.x, call.types.residual, call.types.bias}) {
    TORCH_CHECK(is_supported(type), "addnorm: there is no kernel for ", type);
  }
}

std::array<at::Tensor, kOperands> run_backward(const BackwardArguments& call) {
  const Options options = kernel_options(call.settings);
  check_backward(call, options.norm);
  Gradients grads = backward(call.incoming, call.operands, options, call.types, call.needs);
  fill(grads, call.incoming.z->scalar_type());
  return grads;
}

}  // namespace addnorm

TORCH_LIBRARY_IMPL(addnorm, CPU, m) {
  m.impl("forward", addnorm::boxed<&addnorm::cpu_forward>());
  m.impl("backward", addnorm::boxed<&addnorm::cpu_backward>());
}

TORCH_LIBRARY_IMPL(addnorm, Autograd, m) {
  m.impl("forward", addnorm::boxed<&addnorm::autograd_forward>());
  m.impl("backward", addnorm::boxed<&addnorm::autograd_backward>());
}
