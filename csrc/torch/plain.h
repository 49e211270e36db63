// The plain case: what may go straight to the kernels, past the dispatcher.
#pragma once

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
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

// Whether autograd records this thread's calls: not where torch passes it over, as inside torch.inference_mode(), which
// torch.enable_grad() does not change, and in __torch_dispatch__.
inline bool is_recording() {
  const auto excluded = c10::impl::tls_local_dispatch_key_set().excluded_;
  return c10::GradMode::is_enabled() && !excluded.has(c10::DispatchKey::AutogradFunctionality);
}

// Whether this thread runs as it does by default: no mode, transform or tracing. Autocast has chosen the dtypes before.
inline bool is_plain_thread() {
  using c10::DispatchKey;
  constexpr c10::DispatchKeySet included({DispatchKey::BackendSelect, DispatchKey::ADInplaceOrView});
  return within(c10::impl::tls_local_dispatch_key_set().included_, included) && !at::impl::torch_function_mode_enabled();
}

}  // namespace addnorm
