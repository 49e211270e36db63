// The plain case: what may go straight to the kernels, past the dispatcher.
#pragma once

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/autograd/variable.h>

#include "call.h"

namespace addnorm {

// Set difference on the raw bits: operator- of DispatchKeySet keeps the backend's.
inline bool within(c10::DispatchKeySet keys, c10::DispatchKeySet allowed) {
  return (keys.raw_repr() & ~allowed.raw_repr()) == 0;
}

// A dense tensor of a CPU or a GPU with nothing behind it that the dispatcher would have to see: no subclass, no batching,
// no functional or conjugate wrapper.
inline bool is_dense(const at::Tensor& t) {
  using c10::DispatchKey;
  constexpr c10::DispatchKeySet plain({DispatchKey::CPU, DispatchKey::AutogradCPU, DispatchKey::AutocastCPU, DispatchKey::CUDA,
                                       DispatchKey::AutogradCUDA, DispatchKey::AutocastCUDA, DispatchKey::ADInplaceOrView});
  return within(t.key_set(), plain);
}

// Whether there is a forward-mode tangent; one whose level has ended leaves an empty place.
inline bool has_tangent(const at::Tensor& t) {
  const auto* meta = torch::autograd::impl::get_autograd_meta(t);
  return meta != nullptr && meta->fw_grad_ != nullptr && !meta->fw_grad_->empty();
}

// One that the kernels take.
inline bool is_plain(const at::Tensor& t) { return is_dense(t) && is_supported(t.scalar_type()) && !has_tangent(t); }

// Whether this thread's calls are recorded. torch.enable_grad() inside torch.inference_mode() does not bring that back.
inline bool is_recording() { return c10::GradMode::is_enabled() && !c10::InferenceMode::is_enabled(); }

// Whether this thread runs as it does by default: no mode, transform or tracing. Autocast has chosen the dtypes before.
inline bool is_plain_thread() {
  using c10::DispatchKey;
  constexpr c10::DispatchKeySet included({DispatchKey::BackendSelect, DispatchKey::ADInplaceOrView});
  const auto keys = c10::impl::tls_local_dispatch_key_set();
  const bool below_autograd = keys.excluded_.has(DispatchKey::AutogradCPU) && !c10::InferenceMode::is_enabled();
  return within(keys.included_, included) && !below_autograd &&
         !at::impl::torch_function_mode_enabled();
}

}  // namespace addnorm
