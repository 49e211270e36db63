// A call on torch tensors, and how it reaches the kernels. Nothing here knows autograd or Python.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "cpu/kernels.h"

namespace addnorm {

// The tensors that differentiate, in the order of OPERANDS in call.py.
enum Operand : size_t { kX, kResidual, kWeight, kBias, kBranchBias, kBranchScale, kRowScale, kOperands };

// Borrowed tensors; nullptr: absent.
using Operands = std::array<const at::Tensor*, kOperands>;

struct Options {
  Norm norm = Norm::layer;
  double eps = 1e-5;
  double residual_scale = 1.0;
  double dropout_p = 0.0;  // 0 where dropout is off
  double weight_offset = 0.0;
  std::optional<double> branch_factor;  // branch_scale where it is a number
  uint64_t seed = 0;
  at::ScalarType out_dtype = at::kFloat;
  at::ScalarType stream_dtype = at::kFloat;
};

struct Results {
  at::Tensor y, z, stats;  // z and stats undefined unless kept
};

// y goes to `out` and z to `stream_out` where given; else both are new and contiguous.
Results forward(const Operands& operands, const Options& options, bool keep_stream, bool keep_stats,
                const at::Tensor* out = nullptr, const at::Tensor* stream_out = nullptr);

struct Incoming {
  const at::Tensor* dy = nullptr;  // nullptr: zero
  const at::Tensor* ds = nullptr;
  const at::Tensor* z = nullptr;
  const at::Tensor* stats = nullptr;
};

struct GradientTypes {
  at::ScalarType x = at::kFloat, residual = at::kFloat, bias = at::kFloat;
};

using Gradients = std::array<at::Tensor, kOperands>;

// The gradients that `needs` asks for; the others stay undefined. Of the operands the backward reads x (for the
// gradient of a scale), weight, branch_bias, branch_scale and row_scale.
Gradients backward(const Incoming& incoming, const Operands& operands, const Options& options,
                   const GradientTypes& types, const std::array<bool, kOperands>& needs);

// min(round(65536 p), 65535), rounding halves to even as Python does.
uint32_t dropout_threshold(double p);

// The norm that a kernel has by this name, or an error.
Norm kernel_norm(const std::string& name);
const char* kernel_name(Norm norm);

// A seed as the kernels take it, read from its tensor on the CPU.
uint64_t seed_value(const at::Tensor& seed);

// torch's own thread pool.
const Runtime& torch_runtime();

inline bool is_supported(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf;
}

}  // namespace addnorm
