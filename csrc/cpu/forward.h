// The forward, one text for every norm, access policy and instruction set.
#pragma once

#include <initializer_list>

#include "kernels.h"
#include "memory.h"
#include "parameters.h"
#include "philox.h"
#include "sums.h"

namespace addnorm::ADDNORM_ISA {

// Below so many elements a second thread costs more than it brings.
constexpr int64_t kParallelElements = 16384;

inline int64_t row_grain(int64_t d) { return d < kParallelElements ? kParallelElements / (d > 0 ? d : 1) : 1; }

template <class Access> struct ForwardPlan {
  using T = typename Access::T;
  const Forward& call;
  const T *weight, *bias, *branch_bias, *branch_scale;
  T residual_scale, keep_scale;
  bool streaming;
};

// The working memory of one thread: the terms of R rows, each padded to whole steps, and their dropout lanes.
template <class T> struct RowBuffers {
  T* terms;
  uint16_t* lanes;
  int64_t stride;
};

// z = residual_scale * residual + row_scale * branch_scale * dropout(x + branch_bias), 32 columns of it; the products are
// rounded one by one, so that every instruction set gives the bits of the composite.
template <class Access, bool kPlain, class N, class T = typename Access::T>
ADDNORM_INLINE Pair<T> add_columns(const ForwardPlan<Access>& p, const void* x, const void* residual, const uint16_t* lanes,
                                   T row_scale, int64_t c, N n) {
  const Forward& f = p.call;
  Pair<T> z = Access::load(f.x.dtype, x, c, n);
  if constexpr (kPlain) return z + Access::load(f.residual.dtype, residual, c, n);
  if (p.branch_bias) z = z + load_parameter<Access>(p.branch_bias + c, n);
  if (f.dropout.threshold) z = z * keep<Access::kOrder>(lanes + c, f.dropout.threshold, p.keep_scale);
  if (p.branch_scale) z = z * load_parameter<Access>(p.branch_scale + c, n);
  z = z * splat(row_scale);
  if (!residual) return z;
  return z + Access::load(f.residual.dtype, residual, c, n) * splat(p.residual_scale);
}

// R rows at once: their reductions wait on each other's latency, and weight and bias are loaded once for all.
template <class Norm, class Access, bool kPlain, int R>
inline void forward_rows(const ForwardPlan<Access>& p, int64_t row, RowBuffers<typename Access::T> buffers) {
  using T = typename Access::T;
  using Row = typename Norm::template Row<T>;
  const Forward& f = p.call;
  const int64_t d = f.d;
  const char *x[R], *residual[R];
  char *y[R], *z[R];
  T row_scale[R];
  Row rows[R];
  const bool store_z = f.z.data != nullptr, streaming = p.streaming;
  each<R>([&](auto r) ADDNORM_LAMBDA {
    x[r] = row_pointer(f.x, row + r);
    residual[r] = kPlain || f.residual.data ? row_pointer(f.residual, row + r) : nullptr;
    y[r] = row_pointer(f.y, row + r);
    z[r] = store_z ? row_pointer(f.z, row + r) : nullptr;
    if constexpr (!kPlain) {
      row_scale[r] = row_value<T>(f.row_scale, row + r);
      if (f.dropout.threshold) random_lanes(buffers.lanes + r * lane_space(d), d, f.dropout.seed, static_cast<uint64_t>(row + r));
    }
  });
  const auto sum_columns = [&](auto r, int64_t c, auto n) ADDNORM_LAMBDA {
    return add_columns<Access, kPlain>(p, x[r], residual[r], buffers.lanes + r * lane_space(d), kPlain ? T(1) : row_scale[r], c, n);
  };

  if constexpr (Norm::kShifts) {
    const Some head = {static_cast<int>(d < kStep ? d : kStep)};
    each<R>([&](auto r) ADDNORM_LAMBDA { Norm::begin(rows[r], only<Access::kOrder>(head, sum_columns(r, 0, head)), T(head.count)); });
  }
  T sums[R * Norm::kSums];
  row_sums<Access::kCompact>(d, sums, [&](int64_t c, auto n, Pair<T>* accumulators) ADDNORM_LAMBDA {
    each<R>([&](auto r) ADDNORM_LAMBDA {
      const Pair<T> v = sum_columns(r, c, n);
      if (store_z) Access::store(f.z.dtype, z[r], c, n, v, streaming);
      const Pair<T> term = only<Access::kOrder>(n, Norm::term(rows[r], v));
      store_pair(buffers.terms + r * buffers.stride + c, Whole{}, term);
      Norm::add(accumulators + r * Norm::kSums, term);
    });
  });
  each<R>([&](auto r) ADDNORM_LAMBDA {
    const T eps = static_cast<T>(f.eps);
    const bool good = Norm::finish(rows[r], sums + r * Norm::kSums, static_cast<T>(d), eps);
    if constexpr (Norm::kShifts)
      if (!good) Norm::template refine<Access::kOrder>(rows[r], buffers.terms + r * buffers.stride, d, eps);
    if (f.stats) static_cast<Row*>(f.stats)[row + r] = Norm::statistics(rows[r]);
  });

  const T *const weights = p.weight, *const biases = p.bias;
  columns<Access::kCompact>(0, d, [&](int64_t c, auto n) ADDNORM_LAMBDA {
    Pair<T> weight = {splat(T(1)), splat(T(1))}, bias = {splat(T(0)), splat(T(0))};
    if (weights) weight = load_parameter<Access>(weights + c, n);
    if (biases) bias = load_parameter<Access>(biases + c, n);
    each<R>([&](auto r) ADDNORM_LAMBDA {
      Pair<T> v = Norm::normalise_term(rows[r], load_pair<T>(buffers.terms + r * buffers.stride + c, Whole{}));
      if (weights && biases) v = fma(v, weight, bias);
      else if (weights) v = v * weight;
      else if (biases) v = v + bias;
      Access::store(f.y.dtype, y[r], c, n, v, streaming);
    });
  });
}

// Rows [begin, end), as many together as the registers hold; a row's bits do not depend on its company.
template <class Norm, class Access, bool kPlain> inline void forward_range(void* context, int64_t begin, int64_t end) {
  using T = typename Access::T;
  const auto& plan = *static_cast<const ForwardPlan<Access>*>(context);
  constexpr int R = kPlain ? kRowsTogether : 1;
  const int64_t d = plan.call.d, stride = padded(d);
  const int64_t lanes = plan.call.dropout.threshold ? R * lane_space(d) : 0;
  Scratch scratch(Scratch::rows, Scratch::space<T>(R * stride) + Scratch::space<uint16_t>(lanes));
  T* terms = scratch.take<T>(R * stride);
  const RowBuffers<T> buffers = {terms, scratch.take<uint16_t>(lanes), stride};
  for (; begin + R <= end; begin += R) forward_rows<Norm, Access, kPlain, R>(plan, begin, buffers);
  if constexpr (R > 1)  // the full form is at hand already, and gives the same bits
    for (; begin < end; ++begin) forward_rows<Norm, Access, false, 1>(plan, begin, buffers);
  if (plan.streaming) stream_fence();
}

// Streaming stores want whole aligned steps.
inline bool aligned_rows(const Matrix& m, int64_t d) {
  if (!m.data) return true;
  const int bytes = element_bytes(m.dtype);
  uint64_t bits = reinterpret_cast<uintptr_t>(m.data) | static_cast<uint64_t>(d * bytes);
  for (int i = 0; i < m.dims; ++i) bits |= static_cast<uint64_t>(m.stride[i] * bytes);
  return bits % 64 == 0;
}

template <class Norm, class Access, bool kPlain> inline void forward_with(const Forward& f, const Runtime& runtime) {
  using T = typename Access::T;
  using P = Parameter<Access>;
  Scratch scratch(Scratch::call, P::space(f.weight, f.d, f.weight_offset) + P::space(f.bias, f.d) + P::space(f.branch_bias, f.d) +
                                     P::space(f.branch_scale, f.d));
  const int64_t written = f.rows * f.d * (element_bytes(f.y.dtype) + (f.z.data ? element_bytes(f.z.dtype) : 0));
  ForwardPlan<Access> plan = {
      f,
      P::of(f.weight, f.d, scratch, f.weight_offset),
      P::of(f.bias, f.d, scratch),
      P::of(f.branch_bias, f.d, scratch),
      P::of(f.branch_scale, f.d, scratch),
      static_cast<T>(f.residual_scale),
      static_cast<T>(f.dropout.keep_scale),
      streaming_pays(written, f.fresh_pages) && aligned_rows(f.y, f.d) && aligned_rows(f.z, f.d),
  };
  if (f.rows * f.d < kParallelElements) return forward_range<Norm, Access, kPlain>(&plan, 0, f.rows);
  runtime.parallel_for(f.rows, row_grain(f.d), &plan, forward_range<Norm, Access, kPlain>);
}

inline bool is_plain(const Forward& f) {
  return f.residual.data && f.residual_scale == 1 && !f.branch_bias.data && !f.branch_scale.data && !f.row_scale.data &&
         !f.dropout.threshold;
}

// The element type that all matrices of a call share; false where they differ.
inline bool share(DType dtype, std::initializer_list<const Matrix*> matrices) {
  for (const Matrix* m : matrices)
    if (m->data && m->dtype != dtype) return false;
  return true;
}

template <class Norm> inline void forward(const Forward& f, const Runtime& runtime) {
  if (f.f64) return forward_with<Norm, Any<double>, false>(f, runtime);
  const bool plain = is_plain(f), same = share(f.x.dtype, {&f.residual, &f.y, &f.z});
  const auto run = [&](auto access) {
    using Access = decltype(access);
    plain ? forward_with<Norm, Access, true>(f, runtime) : forward_with<Norm, Access, false>(f, runtime);
  };
  if (same && f.x.dtype == DType::f32) return run(Same<F32>{});
  if (same && f.x.dtype == DType::bf16) return run(Same<BF16>{});
  if (same && f.x.dtype == DType::f16) return forward_with<Norm, Same<F16>, false>(f, runtime);
  forward_with<Norm, Any<float>, false>(f, runtime);
}

}  // namespace addnorm::ADDNORM_ISA
