// The short way in: reads the raw Python arguments of a call, and gives up at the first that is not plainly right.
#pragma once

#include <Python.h>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ExpandUtils.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/autograd/python_variable.h>

#include <cmath>
#include <mutex>
#include <utility>

#include "call.h"
#include "node.h"
#include "plain.h"

namespace addnorm {

inline bool plain_tensor(PyObject* object, const at::Tensor*& result) {
  if (object == Py_None) return true;
  if (!THPVariable_CheckExact(object)) return false;
  result = &THPVariable_Unpack(object);
  return is_plain(*result) && result->is_cpu();
}

inline bool plain_number(PyObject* object, double& result) {
  if (PyFloat_CheckExact(object)) {
    result = PyFloat_AS_DOUBLE(object);
  } else if (PyLong_CheckExact(object)) {
    result = PyLong_AsDouble(object);
    if (PyErr_Occurred()) PyErr_Clear(), result = NAN;
  } else {
    return false;
  }
  return std::isfinite(result);
}

inline bool plain_dtype(PyObject* object, at::ScalarType& result) {
  if (object == Py_None) return true;
  if (!THPDtype_Check(object)) return false;
  result = reinterpret_cast<THPDtype*>(object)->scalar_type;
  return is_supported(result);
}

// As torch.randint(2**63 - 1, ()) draws it, so that either way in gives the same mask.
inline uint64_t draw_seed() {
  auto* generator = at::get_generator_or_default<at::CPUGeneratorImpl>(std::nullopt, at::detail::getDefaultCPUGenerator());
  const std::lock_guard<std::mutex> lock(generator->mutex_);
  return generator->random64() % ((1ULL << 63) - 1);
}

// Whether the spans of memory that two tensors cover are disjoint.
inline bool are_apart(const at::Tensor& a, const at::Tensor& b) {
  const auto span = [](const at::Tensor& t) {
    int64_t last = 0;
    for (int64_t i = 0; i < t.dim(); ++i) last += (t.sizes()[i] - 1) * t.strides()[i];
    const char* begin = static_cast<const char*>(t.const_data_ptr());
    return std::pair{begin, t.numel() == 0 ? begin : begin + (last + 1) * static_cast<int64_t>(t.element_size())};
  };
  const auto [begin_a, end_a] = span(a);
  const auto [begin_b, end_b] = span(b);
  return end_a <= begin_b || end_b <= begin_a;
}

class ShortCall {
 public:
  Operands operands{};
  Options options;
  const at::Tensor *out = nullptr, *stream_out = nullptr;

  // The arguments in the order of functional.py; false: the ordinary path takes them, errors included.
  bool read(PyObject* const* args) {
    return is_plain_thread() && read_operands(args) && read_branch_scale(args[7]) && read_row_scale(args[8]) &&
           read_options(args) && read_out(args[16], options.out_dtype, out) &&
           read_out(args[17], options.stream_dtype, stream_out) &&
           (out == nullptr || stream_out == nullptr || are_apart(*out, *stream_out)) && read_seed(args[12]);
  }

 private:
  at::Tensor row_scale_;  // expanded

  bool read_operands(PyObject* const* args) {
    if (!plain_tensor(args[0], operands[kX]) || !plain_tensor(args[1], operands[kResidual]) ||
        !plain_tensor(args[2], operands[kWeight]) || !plain_tensor(args[3], operands[kBias]) ||
        !plain_tensor(args[6], operands[kBranchBias]) || operands[kX] == nullptr || operands[kX]->dim() == 0) {
      return false;
    }
    const at::Tensor& x = *operands[kX];
    if (operands[kResidual] != nullptr && operands[kResidual]->sizes() != x.sizes()) return false;
    for (Operand i : {kWeight, kBias, kBranchBias}) {
      if (operands[i] != nullptr && !is_vector(*operands[i])) return false;
    }
    return true;
  }

  bool is_vector(const at::Tensor& t) const { return t.dim() == 1 && t.sizes()[0] == operands[kX]->sizes().back(); }

  bool read_branch_scale(PyObject* object) {
    double factor = 1;
    if (plain_number(object, factor)) {
      options.branch_factor = factor;
      return true;
    }
    if (!plain_tensor(object, operands[kBranchScale])) return false;
    return operands[kBranchScale] == nullptr || operands[kBranchScale]->dim() == 0 || is_vector(*operands[kBranchScale]);
  }

  bool read_row_scale(PyObject* object) {
    const at::Tensor* given = nullptr;
    if (!plain_tensor(object, given)) return false;
    if (given == nullptr) return true;
    const auto rows = operands[kX]->sizes().slice(0, operands[kX]->dim() - 1);
    if (given->sizes() != rows) {
      if (given->requires_grad() || !at::is_expandable_to(given->sizes(), rows)) return false;
      row_scale_ = given->expand(rows);
      given = &row_scale_;
    }
    operands[kRowScale] = given;
    return true;
  }

  bool read_options(PyObject* const* args) {
    if (!PyUnicode_CheckExact(args[4])) return false;
    if (PyUnicode_CompareWithASCIIString(args[4], "layer") == 0) {
      options.norm = Norm::layer;
    } else if (PyUnicode_CompareWithASCIIString(args[4], "rms") == 0) {
      options.norm = Norm::rms;
    } else {
      return false;
    }
    const bool training = args[11] == Py_True;
    if (!training && args[11] != Py_False) return false;
    if (!plain_number(args[5], options.eps) || options.eps < 0 || !plain_number(args[9], options.residual_scale) ||
        !plain_number(args[10], options.dropout_p) || options.dropout_p < 0 || options.dropout_p >= 1 ||
        !plain_number(args[13], options.weight_offset)) {
      return false;
    }
    if (options.weight_offset != 0 && operands[kWeight] == nullptr) return false;
    if (!training) options.dropout_p = 0;
    const at::Tensor *x = operands[kX], *residual = operands[kResidual];
    options.out_dtype = residual == nullptr ? x->scalar_type() : c10::promoteTypes(x->scalar_type(), residual->scalar_type());
    options.stream_dtype = options.out_dtype;
    return plain_dtype(args[14], options.out_dtype) && plain_dtype(args[15], options.stream_dtype);
  }

  // Where a result goes: contiguous, nothing to differentiate, exactly x or residual or apart from all operands.
  bool read_out(PyObject* object, at::ScalarType dtype, const at::Tensor*& result) {
    if (!plain_tensor(object, result)) return false;
    if (result == nullptr) return true;
    const at::Tensor& t = *result;
    if (t.sizes() != operands[kX]->sizes() || t.scalar_type() != dtype || !t.is_contiguous()) return false;
    if (is_recording() && (t.requires_grad() || wants_gradient(operands))) return false;
    if (t.is_inference() && !c10::InferenceMode::is_enabled()) return false;
    for (size_t i = 0; i < kOperands; ++i) {
      if (operands[i] == nullptr || are_apart(t, *operands[i])) continue;
      const bool same = operands[i]->const_data_ptr() == t.const_data_ptr() && operands[i]->scalar_type() == dtype &&
                        operands[i]->is_contiguous();
      if (!same || (i != kX && i != kResidual)) return false;
    }
    return true;
  }

  // Last, and drawn only when all else is well: an error must not move torch's generator.
  bool read_seed(PyObject* object) {
    if (object == Py_None) {
      if (options.dropout_p > 0) options.seed = draw_seed();
      return true;
    }
    if (PyLong_CheckExact(object)) {
      options.seed = static_cast<uint64_t>(PyLong_AsLongLong(object));
      if (!PyErr_Occurred()) return true;
      PyErr_Clear();
      return false;
    }
    if (!THPVariable_CheckExact(object)) return false;
    const at::Tensor& seed = THPVariable_Unpack(object);
    if (!is_dense(seed) || !seed.is_cpu() || seed.scalar_type() != at::kLong || seed.numel() != 1) return false;
    options.seed = static_cast<uint64_t>(*seed.const_data_ptr<int64_t>());
    return true;
  }
};

}  // namespace addnorm
