// Tensors as the kernels see them: a Matrix (rows, d) or a Vector.
#pragma once

#include <ATen/core/Tensor.h>

#include <deque>

#include "cpu/kernels.h"

namespace addnorm {

inline DType dtype_of(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kDouble: return DType::f64;
    case at::kBFloat16: return DType::bf16;
    case at::kHalf: return DType::f16;
    default: return DType::f32;
  }
}

// A storage may have been freed, as FSDP does. Its null would be an absent tensor.
inline void check_memory(const char* name, const at::Tensor& t) {
  TORCH_CHECK(t.unsafeGetTensorImpl()->storage_initialized(), "addnorm: the memory of ", name, " is not allocated");
}

// Makes views, and keeps the copies alive that awkward strides need.
class Views {
 public:
  Matrix matrix(const char* name, const at::Tensor* t) {
    Matrix view;
    if (t == nullptr || !t->defined()) return view;
    check_memory(name, *t);
    if (t->is_contiguous() && t->dim() > 0) return contiguous(*t);
    if (!collapse(*t, view)) return contiguous(copy(*t));
    return view;
  }

  Vector vector(const char* name, const at::Tensor* t) {
    if (t == nullptr || !t->defined()) return {};
    check_memory(name, *t);
    const at::Tensor& dense = t->is_contiguous() ? *t : copy(*t);
    return {place(dense), dtype_of(dense), dense.dim() == 0};
  }

  // Like vector, but a 0-d tensor is one row and not a number for all rows.
  Vector rows(const char* name, const at::Tensor* t) {
    Vector view = vector(name, t);
    view.scalar = false;
    return view;
  }

 private:
  const at::Tensor& copy(const at::Tensor& t) { return copies_.emplace_back(t.contiguous()); }

  // To read from, or to write where the memory is the tensor's alone: writing would end a copy-on-write tensor's sharing.
  static void* place(const at::Tensor& t) { return const_cast<void*>(t.const_data_ptr()); }

  static Matrix contiguous(const at::Tensor& t) {
    Matrix view;
    const int64_t d = t.sizes().back();
    view.data = place(t);
    view.dtype = dtype_of(t);
    view.size[0] = d == 0 ? 0 : t.numel() / d;
    view.stride[0] = d;
    return view;
  }

  // Merges the row dimensions that lie evenly in memory. False: too many are left, or columns are not adjacent.
  static bool collapse(const at::Tensor& t, Matrix& view) {
    const auto sizes = t.sizes(), strides = t.strides();
    const int64_t columns = t.dim() - 1;
    if (sizes[columns] > 1 && strides[columns] != 1) return false;
    view.data = place(t);
    view.dtype = dtype_of(t);
    int64_t size[kMaxRowDims] = {1}, stride[kMaxRowDims] = {sizes[columns]};  // innermost first
    int32_t dims = 0;
    for (int64_t i = columns - 1; i >= 0; --i) {
      if (sizes[i] == 1) continue;
      if (dims > 0 && strides[i] == stride[dims - 1] * size[dims - 1]) {
        size[dims - 1] *= sizes[i];
        continue;
      }
      if (dims == kMaxRowDims) return false;
      size[dims] = sizes[i];
      stride[dims++] = strides[i];
    }
    view.dims = dims == 0 ? 1 : dims;
    for (int32_t i = 0; i < view.dims; ++i) {
      view.size[i] = size[view.dims - 1 - i];
      view.stride[i] = stride[view.dims - 1 - i];
    }
    return true;
  }

  std::deque<at::Tensor> copies_;  // a deque, so that references stay good
};

}  // namespace addnorm
