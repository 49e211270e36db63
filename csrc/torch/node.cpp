#include "node.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>
#include <ATen/ops/scalar_tensor.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/utils/object_ptr.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <mutex>

#include "in_python.h"
#include "plain.h"

namespace addnorm {
namespace {

using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// Whether a gradient is batched or has a tangent, which no kernel knows of.
bool is_transformed(const at::Tensor* t) {
  using c10::DispatchKey;
  constexpr c10::DispatchKeySet transforms({DispatchKey::FuncTorchBatched, DispatchKey::FuncTorchGradWrapper, DispatchKey::Batched});
  return t != nullptr && (t->key_set().has_any(transforms) || has_tangent(*t));
}

struct AddNormBackward : public Node {
  Settings settings;  // without the seed, which `seed` keeps where it is a tensor
  GradientTypes types;
  bool has_residual = false;
  bool has_seed = false;
  bool z_is_x = false;
  SavedVariable z, stats, seed;
  std::array<SavedVariable, kOperands> saved;  // x only for the gradient of a scale; never residual or bias
  std::array<bool, kOperands> is_saved{};
  std::mutex released;

  std::string name() const override { return "AddNormBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(released);
    for (SavedVariable* variable : {&z, &stats, &seed}) variable->reset_data();
    for (auto& variable : saved) variable.reset_data();
  }

  // dx and dresidual are one tensor where z is a plain sum.
  bool dx_is_dresidual() const {
    const Options& options = settings.options;
    return has_residual && !is_saved[kBranchScale] && !is_saved[kRowScale] && !options.branch_factor &&
           options.dropout_p == 0 && options.residual_scale == 1 && types.x == types.residual;
  }

  variable_list apply(variable_list&& incoming) override {
    const at::Tensor dy = incoming[0];
    const at::Tensor ds = incoming.size() > 1 ? incoming[1] : at::Tensor();
    variable_list results(kOperands);
    if (!dy.defined() && !ds.defined()) return results;

    at::Tensor kept_z, kept_stats, kept_seed;
    std::array<at::Tensor, kOperands> kept;
    BackwardArguments call{{dy.defined() ? &dy : nullptr, ds.defined() ? &ds : nullptr, &kept_z, &kept_stats}, {}, {}, settings, types};
    {
      const std::lock_guard<std::mutex> lock(released);
      kept_z = z_is_x ? z.unpack() : z.unpack(getptr());
      kept_stats = stats.unpack();
      if (has_seed) {
        kept_seed = seed.unpack();
        call.settings.seed = &kept_seed;
      }
      for (size_t i = 0; i < kOperands; ++i) {
        call.needs[i] = task_should_compute_output(i);
        if (!is_saved[i]) continue;
        kept[i] = saved[i].unpack();
        call.operands[i] = &kept[i];
      }
    }
    const bool shared = call.needs[kX] && call.needs[kResidual] && dx_is_dresidual();
    if (shared) call.needs[kX] = false;
    Gradients grads = gradients(call);
    if (shared) grads[kX] = grads[kResidual];
    std::move(grads.begin(), grads.end(), results.begin());
    return results;
  }

  // Straight to the kernels, here or in Python, where nothing stands in the way, else through the dispatcher, which records where it
  // is traced; where the gradients are themselves differentiated, are batched or have tangents, by the reference in Python.
  static Gradients gradients(BackwardArguments& call) {
    const Incoming& in = call.incoming;
    const bool transformed = is_transformed(in.dy) || is_transformed(in.ds);
    if (c10::GradMode::is_enabled() || transformed) return from_python(call, in_python[kReferenceBackward]);
    const auto fits = [](const at::Tensor* t) { return t == nullptr || is_plain(*t); };
    const bool plain = is_plain_thread() && fits(in.dy) && fits(in.ds) && fits(in.z) && fits(in.stats) &&
                       std::all_of(call.operands.begin(), call.operands.end(), fits);
    if (!plain) return from_dispatcher(call);
    RECORD_FUNCTION("addnorm::backward", c10::ArrayRef<const c10::IValue>{});
    if (!call.settings.for_cpu_kernels(*in.z)) return from_python(call, in_python[kGradients]);
    Options& options = call.settings.options;
    options.norm = kernel_norm(call.settings.norm);
    if (call.settings.seed != nullptr) options.seed = seed_value(*call.settings.seed);
    return backward(in, call.operands, options, call.types, call.needs);
  }

  static Gradients from_dispatcher(const BackwardArguments& call) {
    static const c10::OperatorHandle op = c10::Dispatcher::singleton().findSchemaOrThrow("addnorm::backward", "");
    const Numbers numbers(call);
    Stack stack = as_stack(numbers.call);
    op.callBoxed(stack);
    Gradients grads;
    for (size_t i = 0; i < kOperands; ++i) {
      if (call.needs[i]) grads[i] = stack[i].toTensor();
    }
    return grads;
  }

  static Gradients from_python(const BackwardArguments& call, PyObject* function) {
    TORCH_CHECK(function != nullptr, "addnorm: what is done in Python is not registered");
    const Numbers numbers(call);
    const py::gil_scoped_acquire gil;
    THPObjectPtr arguments(as_tuple(numbers.call));
    THPObjectPtr grads(arguments ? PyObject_CallObject(function, arguments.get()) : nullptr);
    if (!grads) throw py::error_already_set();
    Gradients results;
    for (size_t i = 0; i < kOperands; ++i) {
      PyObject* grad = PyTuple_GET_ITEM(grads.get(), static_cast<Py_ssize_t>(i));
      if (grad != Py_None) results[i] = THPVariable_Unpack(grad);
    }
    return results;
  }

  // The call with what the short way has as numbers, branch_scale and the seed, as tensors.
  struct Numbers {
    explicit Numbers(const BackwardArguments& given) : call(given) {
      const Options& options = given.settings.options;
      if (options.branch_factor) {
        factor = at::scalar_tensor(*options.branch_factor, at::kDouble);
        call.operands[kBranchScale] = &factor;
      }
      if (options.dropout_p > 0 && given.settings.seed == nullptr) {
        seed = at::scalar_tensor(static_cast<int64_t>(options.seed), at::kLong);
        call.settings.seed = &seed;
      }
    }
    BackwardArguments call;
    at::Tensor factor, seed;
  };
};

variable_list as_list(const Operands& operands) {
  variable_list list;
  list.reserve(kOperands);
  for (const at::Tensor* t : operands) list.push_back(t == nullptr ? at::Tensor() : *t);
  return list;
}

}  // namespace

bool wants_gradient(const Operands& operands) {
  if (!c10::GradMode::is_enabled()) return false;
  return std::any_of(operands.begin(), operands.end(),
                     [](const at::Tensor* t) { return t != nullptr && t->requires_grad(); });
}

bool stream_is_x(const Operands& operands, const Options& options) {
  return operands[kResidual] == nullptr && operands[kBranchBias] == nullptr && operands[kBranchScale] == nullptr &&
         operands[kRowScale] == nullptr && !options.branch_factor && options.dropout_p == 0 &&
         options.stream_dtype == operands[kX]->scalar_type();
}

void record(const Operands& operands, const Settings& settings, const Results& results, bool z_is_x) {
  auto node = make_node<AddNormBackward>();
  node->set_next_edges(torch::autograd::collect_next_edges(as_list(operands)));
  node->settings = settings;
  node->settings.seed = nullptr;
  node->has_residual = operands[kResidual] != nullptr;
  node->types.x = operands[kX]->scalar_type();
  node->types.residual = node->has_residual ? operands[kResidual]->scalar_type() : node->types.x;
  node->types.bias = operands[kBias] != nullptr ? operands[kBias]->scalar_type() : settings.options.out_dtype;
  node->z_is_x = z_is_x;
  const bool wants_x = (operands[kBranchScale] != nullptr && operands[kBranchScale]->requires_grad()) ||
                       (operands[kRowScale] != nullptr && operands[kRowScale]->requires_grad());
  const auto save = [&](Operand i, bool wanted) {
    node->is_saved[i] = wanted && operands[i] != nullptr;
    if (node->is_saved[i]) node->saved[i] = SavedVariable(*operands[i], false);
  };
  save(kX, wants_x);
  for (const Operand i : {kWeight, kBranchBias, kBranchScale, kRowScale}) save(i, true);
  node->has_seed = settings.seed != nullptr;
  if (node->has_seed) node->seed = SavedVariable(*settings.seed, false);

  at::Tensor y = results.y, z = results.z;
  torch::autograd::set_history(y, node);
  if (z_is_x) {
    node->z = SavedVariable(*operands[kX], false);
  } else {
    torch::autograd::set_history(z, node);
    node->z = SavedVariable(z, true);
  }
  node->stats = SavedVariable(results.stats, false);
}

Results forward_recorded(const Operands& operands, const Options& options, bool stream) {
  const bool z_is_x = !stream && stream_is_x(operands, options);
  Results results = forward(operands, options, !z_is_x, true);
  record(operands, {kernel_name(options.norm), std::nullopt, nullptr, options}, results, z_is_x);
  return results;
}

}  // namespace addnorm
