#include "node.h"

#include <ATen/record_function.h>
#include <ATen/ops/scalar_tensor.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/DynamicTypes.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/utils/object_ptr.h>
#include <torch/csrc/utils/pybind.h>

#include <mutex>
#include <type_traits>

#include "plain.h"

namespace addnorm {
namespace {

using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

PyObject* reference_backward = nullptr;

// How this torch holds its nodes: by shared_ptr up to 2.12, by intrusive_ptr since.
using NodePointer = decltype(torch::autograd::Edge::function);

template <class T>
auto make_node() {
  if constexpr (std::is_same_v<NodePointer, std::shared_ptr<Node>>) {
    return std::make_shared<T>();
  } else {
    return c10::make_intrusive<T>();
  }
}

// Whether z = x bit for bit, so that x itself can be kept.
bool stream_is_x(const Operands& operands, const Options& options) {
  return operands[kResidual] == nullptr && operands[kBranchBias] == nullptr && operands[kBranchScale] == nullptr &&
         operands[kRowScale] == nullptr && !options.branch_factor && options.dropout_p == 0 &&
         options.stream_dtype == operands[kX]->scalar_type();
}

struct AddNormBackward : public Node {
  Options options;
  GradientTypes types;
  bool has_residual = false;
  bool z_is_x = false;
  SavedVariable z, stats;
  std::array<SavedVariable, kOperands> saved;  // x only for the gradient of a scale; never residual or bias
  std::array<bool, kOperands> is_saved{};
  std::mutex released;

  std::string name() const override { return "AddNormBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(released);
    z.reset_data();
    stats.reset_data();
    for (auto& variable : saved) variable.reset_data();
  }

  // dx and dresidual are one tensor where z is a plain sum.
  bool dx_is_dresidual() const {
    return has_residual && !is_saved[kBranchScale] && !is_saved[kRowScale] && !options.branch_factor &&
           options.dropout_p == 0 && options.residual_scale == 1 && types.x == types.residual;
  }

  variable_list apply(variable_list&& incoming) override {
    const at::Tensor dy = incoming[0];
    const at::Tensor ds = incoming.size() > 1 ? incoming[1] : at::Tensor();
    variable_list results(kOperands);
    if (!dy.defined() && !ds.defined()) return results;

    at::Tensor kept_z, kept_stats;
    std::array<at::Tensor, kOperands> kept;
    Operands operands{};
    std::array<bool, kOperands> needs{};
    {
      const std::lock_guard<std::mutex> lock(released);
      kept_z = z_is_x ? z.unpack() : z.unpack(getptr());
      kept_stats = stats.unpack();
      for (size_t i = 0; i < kOperands; ++i) {
        needs[i] = task_should_compute_output(i);
        if (!is_saved[i]) continue;
        kept[i] = saved[i].unpack();
        operands[i] = &kept[i];
      }
    }
    const bool shared = needs[kX] && needs[kResidual] && dx_is_dresidual();
    if (shared) needs[kX] = false;

    const bool plain = !c10::GradMode::is_enabled() && is_plain_or_undefined(dy) && is_plain_or_undefined(ds) &&
                       is_plain(kept_z) && is_plain(kept_stats);
    const Incoming gradients{dy.defined() ? &dy : nullptr, ds.defined() ? &ds : nullptr, &kept_z, &kept_stats};
    RECORD_FUNCTION("addnorm::backward", c10::ArrayRef<const c10::IValue>{});
    Gradients grads = plain ? backward(gradients, operands, options, types, needs)
                            : differentiable(gradients, operands, needs);
    if (shared) grads[kX] = grads[kResidual];
    std::move(grads.begin(), grads.end(), results.begin());
    return results;
  }

  // The same through the reference in Python, which is made of operations that differentiate and batch.
  Gradients differentiable(const Incoming& incoming, const Operands& operands,
                           const std::array<bool, kOperands>& needs) const {
    const py::gil_scoped_acquire gil;
    TORCH_CHECK(reference_backward != nullptr, "addnorm: the reference backward is not registered");
    const auto tensor = [](const at::Tensor* t) -> py::object {
      return t == nullptr ? py::none() : py::reinterpret_steal<py::object>(THPVariable_Wrap(*t));
    };
    const auto dtype = [](at::ScalarType type) {
      return py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(torch::getTHPDtype(type)));
    };
    at::Tensor factor, seed;
    if (options.branch_factor) factor = at::scalar_tensor(*options.branch_factor, at::kDouble);
    if (options.dropout_p > 0) seed = at::scalar_tensor(static_cast<int64_t>(options.seed), at::kLong);
    const py::object grads = py::reinterpret_borrow<py::object>(reference_backward)(
        tensor(incoming.dy), tensor(incoming.ds), tensor(incoming.z), tensor(incoming.stats), tensor(operands[kX]),
        tensor(operands[kWeight]), tensor(operands[kBranchBias]),
        options.branch_factor ? tensor(&factor) : tensor(operands[kBranchScale]), tensor(operands[kRowScale]),
        seed.defined() ? tensor(&seed) : py::none(),
        options.norm == Norm::layer ? "layer" : "rms", options.eps, options.residual_scale, options.dropout_p,
        options.weight_offset, dtype(types.x), dtype(types.residual), dtype(types.bias), py::cast(needs));
    Gradients results;
    for (size_t i = 0; i < kOperands; ++i) {
      const py::object grad = grads[py::int_(i)];
      if (!grad.is_none()) results[i] = THPVariable_Unpack(grad.ptr());
    }
    return results;
  }
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

Results forward_recorded(const Operands& operands, const Options& options, bool stream) {
  const bool z_is_x = !stream && stream_is_x(operands, options);
  auto node = make_node<AddNormBackward>();
  node->set_next_edges(torch::autograd::collect_next_edges(as_list(operands)));
  Results results = forward(operands, options, !z_is_x, true);

  node->options = options;
  node->has_residual = operands[kResidual] != nullptr;
  node->types.x = operands[kX]->scalar_type();
  node->types.residual = node->has_residual ? operands[kResidual]->scalar_type() : node->types.x;
  node->types.bias = operands[kBias] != nullptr ? operands[kBias]->scalar_type() : options.out_dtype;
  node->z_is_x = z_is_x;
  const bool wants_x = (operands[kBranchScale] != nullptr && operands[kBranchScale]->requires_grad()) ||
                       (operands[kRowScale] != nullptr && operands[kRowScale]->requires_grad());
  const auto save = [&](Operand i, bool wanted) {
    node->is_saved[i] = wanted && operands[i] != nullptr;
    if (node->is_saved[i]) node->saved[i] = SavedVariable(*operands[i], false);
  };
  save(kX, wants_x);
  save(kWeight, true);
  save(kBranchBias, true);
  save(kBranchScale, true);
  save(kRowScale, true);

  torch::autograd::set_history(results.y, node);
  if (z_is_x) {
    node->z = SavedVariable(*operands[kX], false);
  } else {
    torch::autograd::set_history(results.z, node);
    node->z = SavedVariable(results.z, true);
  }
  node->stats = SavedVariable(results.stats, false);
  return results;
}

void set_reference_backward(PyObject* callable) {
  Py_XINCREF(callable);
  Py_XSETREF(reference_backward, callable);
}

}  // namespace addnorm
