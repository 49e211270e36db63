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

// The working memory of one thread: R rows of z, each padded to whole steps, and the dropout lanes of R rows.
template <class T> struct RowBuffers {
  T* z;
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

template <class Norm, class Access, bool kPlain, int R>
inline void forward_rows(const ForwardPlan<Access>& p, int64_t row, const RowBuffers<typename Access::T>& buffers) {
  using T = typename Access::T;
  using Row = typename Norm::template Row<T>;
  const Forward& f = p.call;
  const int64_t d = f.d;
  const T width = static_cast<T>(d), eps = static_cast<T>(f.eps);

  const char *x[R], *residual[R];
  char *y[R], *z[R];
  T row_scale[R];
  Row rows[R];
  const bool store_z = f.z.data != nullptr, streaming = p.streaming;
  each<R>([&](auto i) ADDNORM_LAMBDA {
    constexpr int r = i.value;
    x[r] = row_pointer(f.x, row + r);
    residual[r] = kPlain || f.residual.data ? row_pointer(f.residual, row + r) : nullptr;
    y[r] = row_pointer(f.y, row + r);
    z[r] = store_z ? row_pointer(f.z, row + r) : nullptr;
    if constexpr (!kPlain) {
      row_scale[r] = row_value<T>(f.row_scale, row + r);
      if (f.dropout.threshold) random_lanes(buffers.lanes + r * lane_space(d), d, f.dropout.seed, static_cast<uint64_t>(row + r));
    }
  });

  T first[R * Norm::kFirstSums];
  row_sums<Access::kCompact>(d, first, [&](int64_t c, auto n, Pair<T>* sums) ADDNORM_LAMBDA {
    each<R>([&](auto i) ADDNORM_LAMBDA {
      constexpr int r = i.value;
      const uint16_t* lanes = buffers.lanes + r * lane_space(d);
      const Pair<T> v = add_columns<Access, kPlain>(p, x[r], residual[r], lanes, kPlain ? T(1) : row_scale[r], c, n);
      if (store_z) Access::store(f.z.dtype, z[r], c, n, v, streaming);
      const Pair<T> kept = only<Access::kOrder>(n, v);
      store_pair(buffers.z + r * buffers.stride + c, Whole{}, kept);
      Norm::add_first(sums + r * Norm::kFirstSums, kept);
    });
  });
  each<R>([&](auto i) ADDNORM_LAMBDA { Norm::after_first(rows[i.value], first + i.value * Norm::kFirstSums, width, eps); });

  if constexpr (Norm::kSecondSums > 0) {
    T second[R * Norm::kSecondSums];
    row_sums<Access::kCompact>(d, second, [&](int64_t c, auto n, Pair<T>* sums) ADDNORM_LAMBDA {
      each<R>([&](auto i) ADDNORM_LAMBDA {
        constexpr int r = i.value;
        const Pair<T> term = Norm::second_term(rows[r], load_pair<T>(buffers.z + r * buffers.stride + c, Whole{}));
        Norm::add_second(sums + r * Norm::kSecondSums, only<Access::kOrder>(n, term));
      });
    });
    each<R>([&](auto i) ADDNORM_LAMBDA { Norm::after_second(rows[i.value], second + i.value * Norm::kSecondSums, width, eps); });
  }
  if (f.stats) each<R>([&](auto i) ADDNORM_LAMBDA { static_cast<Row*>(f.stats)[row + i.value] = rows[i.value]; });

  columns<Access::kCompact>(0, d, [&](int64_t c, auto n) ADDNORM_LAMBDA {
    const Pair<T> zero = {splat(T(0)), splat(T(0))};
    const Pair<T> weight = p.weight ? load_parameter<Access>(p.weight + c, n) : zero;
    const Pair<T> bias = p.bias ? load_parameter<Access>(p.bias + c, n) : zero;
    each<R>([&](auto i) ADDNORM_LAMBDA {
      constexpr int r = i.value;
      Pair<T> v = Norm::normalise(rows[r], load_pair<T>(buffers.z + r * buffers.stride + c, Whole{}));
      if (p.weight && p.bias) v = fma(v, weight, bias);
      else if (p.weight) v = v * weight;
      else if (p.bias) v = v + bias;
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
  T* z = scratch.take<T>(R * stride);
  const RowBuffers<T> buffers = {z, scratch.take<uint16_t>(lanes), stride};
  for (; begin + R <= end; begin += R) forward_rows<Norm, Access, kPlain, R>(plan, begin, buffers);
  if constexpr (R > 1)
    for (; begin < end; ++begin) forward_rows<Norm, Access, kPlain, 1>(plan, begin, buffers);
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
  if (same && f.x.dtype == DType::f16 && plain) return forward_with<Norm, Same<F16>, true>(f, runtime);
  forward_with<Norm, Any<float>, false>(f, runtime);
}

}  // namespace addnorm::ADDNORM_ISA
