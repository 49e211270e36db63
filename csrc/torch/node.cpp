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
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/csrc/utils/object_ptr.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <iterator>
#include <mutex>
#include <vector>

#include "in_python.h"
#include "operators.h"
#include "plain.h"

namespace addnorm {
namespace {

using torch::autograd::CompiledNodeArgs;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::SwapSavedVariables;
using torch::autograd::variable_list;

// Whether a gradient is batched or has a tangent, which no kernel knows of.
bool is_transformed(const at::Tensor* t) {
  using c10::DispatchKey;
  constexpr c10::DispatchKeySet transforms({DispatchKey::FuncTorchBatched, DispatchKey::FuncTorchGradWrapper, DispatchKey::Batched});
  return t != nullptr && (t->key_set().has_any(transforms) || has_tangent(*t));
}

constexpr size_t kNeeds = 4;  // where addnorm::backward has it

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
    const auto given = [&](size_t i) { return i < incoming.size() && incoming[i].defined() ? &incoming[i] : nullptr; };
    if (!given(0) && !given(1)) return variable_list(kOperands);
    Kept kept(*this, given(0) != nullptr);
    kept.call.incoming.dy = given(0);
    kept.call.incoming.ds = given(1);
    if (!given(0)) kept.call.incoming.z = given(1);  // of z only shape and type are asked
    return as_list(gradients(kept.call), kept.shared);
  }

  // The call without its gradients, on what is kept, which it borrows. Without the norm's gradient z is not wanted: who uses the sum
  // alone may change it in place, as with torch's own operations.
  struct Kept {
    Kept(AddNormBackward& node, bool wants_z) {
      const std::lock_guard<std::mutex> lock(node.released);
      call.settings = node.settings;
      call.types = node.types;
      if (wants_z) z = node.z_is_x ? node.z.unpack() : node.z.unpack(node.getptr());
      stats = node.stats.unpack();
      call.incoming.z = &z;
      call.incoming.stats = &stats;
      if (node.has_seed) {
        seed = node.seed.unpack();
        call.settings.seed = &seed;
      }
      for (size_t i = 0; i < kOperands; ++i) {
        call.needs[i] = node.task_should_compute_output(i);
        if (!node.is_saved[i]) continue;
        operands[i] = node.saved[i].unpack();
        call.operands[i] = &operands[i];
      }
      shared = call.needs[kX] && call.needs[kResidual] && node.dx_is_dresidual();
      if (shared) call.needs[kX] = false;
    }
    Kept(const Kept&) = delete;
    Kept& operator=(const Kept&) = delete;

    BackwardArguments call;
    bool shared = false;

   private:
    at::Tensor z, stats, seed;
    std::array<at::Tensor, kOperands> operands;
  };

  static variable_list as_list(Gradients grads, bool shared) {
    if (shared) grads[kX] = grads[kResidual];
    return {std::make_move_iterator(grads.begin()), std::make_move_iterator(grads.end())};
  }

  // ---- compiled autograd: what tells one kind of node from another, and the call in a graph, whose inputs are the tensors kept

  void compiled_args(CompiledNodeArgs& args) const override {
    const_cast<AddNormBackward*>(this)->keep_numbers_as_tensors();
    const Options& options = settings.options;
    args.collect(settings.norm);
    args.collect(settings.backend);
    for (const double number : {options.eps, options.dropout_p, options.residual_scale, options.weight_offset}) args.collect(number);
    for (const at::ScalarType type : {types.x, types.residual, types.bias}) args.collect(type);
    for (const bool flag : {has_residual, z_is_x, has_seed}) args.collect(flag);
    for (size_t i = 0; i < kOperands; ++i) {
      args.collect(is_saved[i]);
      args.collect(task_should_compute_output(i));
    }
    each_kept(*this, [&](const SavedVariable& variable, bool is_output) { args.collect(variable, is_output); });
  }

  variable_list apply_with_saved(const variable_list& incoming, SwapSavedVariables& swap) override {
    namespace compiled = torch::dynamo::autograd;
    each_kept(*this, [&](SavedVariable& variable, bool) { swap.before(variable); });
    Stack arguments;
    {
      const Kept kept(*this, true);
      arguments = as_stack(kept.call);
      arguments.emplace_back(kept.shared);
    }
    std::vector<at::TypePtr> types_of;
    for (const c10::IValue& value : arguments) types_of.push_back(value.isTensor() ? at::TensorType::get() : value.type());
    const auto& compiler = compiled::getPyCompilerInterface();
    const std::string function = compiler->bind_function(swap.get_py_compiler(), name(), in_a_graph, std::move(types_of),
                                                         /*is_custom_function=*/true, /*is_traceable=*/true);
    const c10::IValue metadata = compiled::IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
        compiled::get_input_metadata(next_edges()));
    variable_list results =
        compiler->call_function(swap.get_py_compiler(), "apply_functional", function, incoming, arguments, metadata);
    each_kept(*this, [&](SavedVariable& variable, bool) { swap.after(variable); });
    return results;
  }

  // The arguments are those of addnorm::backward, dy and ds but for their places, and whether dx is dresidual.
  static variable_list in_a_graph(const variable_list& incoming, const std::vector<c10::IValue>& arguments) {
    Stack stack(arguments);
    const bool shared = stack.back().toBool();
    stack.pop_back();
    for (size_t i = 0; i < incoming.size(); ++i) {
      if (incoming[i].defined()) stack[i] = incoming[i];
    }
    if (stack[0].isNone() && stack[1].isNone()) return variable_list(kOperands);
    if (!c10::GradMode::is_enabled()) return as_list(from_dispatcher(std::move(stack)), shared);
    return as_list(from_python(backward_arguments(stack, stack.size()), in_python[kReferenceBackward]), shared);
  }

  template <class Self> static void each_kept(Self& self, auto&& use) {
    use(self.z, !self.z_is_x);
    use(self.stats, false);
    if (self.has_seed) use(self.seed, false);
    for (size_t i = 0; i < kOperands; ++i) {
      if (self.is_saved[i]) use(self.saved[i], false);
    }
  }

  // Of a compiled graph a number would be a constant: with each seed it would be compiled again.
  void keep_numbers_as_tensors() {
    const std::lock_guard<std::mutex> lock(released);
    Options& options = settings.options;
    if (options.branch_factor) {
      saved[kBranchScale] = SavedVariable(at::scalar_tensor(*options.branch_factor, at::kDouble), false);
      is_saved[kBranchScale] = true;
      options.branch_factor.reset();
    }
    if (options.dropout_p > 0 && !has_seed) {
      seed = SavedVariable(at::scalar_tensor(static_cast<int64_t>(options.seed), at::kLong), false);
      has_seed = true;
    }
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
    if (!plain) return from_dispatcher(as_stack(Numbers(call).call));
    RECORD_FUNCTION("addnorm::backward", c10::ArrayRef<const c10::IValue>{});
    if (!call.settings.for_cpu_kernels(*in.z)) return from_python(call, in_python[kGradients]);
    Options& options = call.settings.options;
    options.norm = kernel_norm(call.settings.norm);
    if (call.settings.seed != nullptr) options.seed = seed_value(*call.settings.seed);
    check_backward(call, options.norm);
    return backward(in, call.operands, options, call.types, call.needs);
  }

  static Gradients from_dispatcher(Stack stack) {
    static const c10::OperatorHandle op = c10::Dispatcher::singleton().findSchemaOrThrow("addnorm::backward", "");
    const c10::List<bool> needs = stack[kNeeds].toBoolList();
    op.callBoxed(stack);
    Gradients grads;
    for (size_t i = 0; i < kOperands; ++i) {
      if (needs[i]) grads[i] = stack[i].toTensor();
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

variable_list tensors_of(const Operands& operands) {
  variable_list list;
  list.reserve(kOperands);
  for (const at::Tensor* t : operands) list.push_back(t == nullptr ? at::Tensor() : *t);
  return list;
}

}  // namespace

bool wants_gradient(const Operands& operands) {
  if (!is_recording()) return false;
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
  node->set_next_edges(torch::autograd::collect_next_edges(tensors_of(operands)));
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
