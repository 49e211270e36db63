// The forward, one text for every norm, access policy and instruction set.
#pragma once

#include <initializer_list>
#include <optional>

#include "kernels.h"
#include "memory.h"
#include "parameters.h"
#include "philox.h"
#include "sums.h"

namespace addnorm::ADDNORM_ISA {

// Below so many elements a second thread costs more than it brings.
constexpr int64_t kParallelElements = 16384;

// Rows that are finished together, as long as the near caches hold their terms and the results; from memory one row at a time is
// quicker, since each row is a stream of its own there (4096x1024 bfloat16: 1.65 ms against 2.7).
constexpr int kRowsTogether = 4;
constexpr int64_t kNearColumns = 4096, kNearBytes = int64_t{2} << 20;

inline int64_t row_grain(int64_t d) { return d < kParallelElements ? kParallelElements / (d > 0 ? d : 1) : 1; }

template <class Access> struct ForwardPlan {
  using T = typename Access::T;
  const Forward& call;
  const T *weight, *bias, *branch_bias, *branch_scale;
  T residual_scale, keep_scale;
  bool streaming;
  bool near;  // rows are finished together; what is near is not streamed
};

// The usual calls have a text of their own, with no detour in it; `full` is everything else.
enum class Sum { plain, dropout, full };

// The working memory of one thread: the terms of R rows, `stride` apart, and the dropout lanes of one.
template <class T> struct RowBuffers {
  T* terms;
  uint16_t* lanes;
  int64_t stride;
};

// z = residual_scale * residual + row_scale * branch_scale * dropout(x + branch_bias) of a row, step by step: step(c, n, use) calls
// use(u, z) for each piece; the products are rounded one by one, so that every instruction set gives the bits of the composite.
template <class Access, Sum kSum> struct RowSum {
  using T = typename Access::T;
  const ForwardPlan<Access>& p;
  const char *x, *residual;
  const uint16_t* lanes;
  T row_scale;

  template <class N, class Use> ADDNORM_INLINE void step(int64_t c, N n, Use&& use) const {
    const Forward& f = p.call;
    const auto xs = Access::reader(f.x.dtype, x, c, n);
    if constexpr (kSum == Sum::full) {
      const auto branch_bias = parameter<Access>(p.branch_bias, c, n), branch_scale = parameter<Access>(p.branch_scale, c, n);
      const auto branch = [&](auto u) ADDNORM_LAMBDA {
        Piece<T> z = xs.get(u);
        if (p.branch_bias) z = z + branch_bias.get(u);
        if (f.dropout.on) z = z * keep<Access::kOrder>(lanes + c, u, p.keep_scale);
        if (p.branch_scale) z = z * branch_scale.get(u);
        return z * row_scale;
      };
      if (!residual) return each<kPieces<T>>([&](auto u) ADDNORM_LAMBDA { use(u, branch(u)); });
      const auto residuals = Access::reader(f.residual.dtype, residual, c, n);
      each<kPieces<T>>([&](auto u) ADDNORM_LAMBDA { use(u, branch(u) + residuals.get(u) * p.residual_scale); });
    } else {
      const auto residuals = Access::reader(f.residual.dtype, residual, c, n);
      each<kPieces<T>>([&](auto u) ADDNORM_LAMBDA {
        Piece<T> z = xs.get(u);
        if constexpr (kSum == Sum::dropout) z = z * keep<Access::kOrder>(lanes + c, u, p.keep_scale);
        use(u, z + residuals.get(u));
      });
    }
  }
};

template <class Norm, class Access, Sum kSum>
ADDNORM_INLINE RowSum<Access, kSum> row_sum(const ForwardPlan<Access>& p, int64_t row, const uint16_t* lanes) {
  using T = typename Access::T;
  return {p, row_pointer(p.call.x, row), row_pointer(p.call.residual, row), lanes, kSum == Sum::full ? row_value<T>(p.call.row_scale, row) : T(1)};
}

// What a norm begins with: the mean of the first columns.
template <class Norm, class Access, Sum kSum, class T = typename Access::T>
ADDNORM_INLINE void begin_row(const RowSum<Access, kSum>& z, typename Norm::template Row<T>& stats) {
  const auto mean = [&](auto head) ADDNORM_LAMBDA {
    Vec<T> first;
    z.step(0, head, [&](auto u, Piece<T> v) ADDNORM_LAMBDA {
      v = only<Access::kOrder>(head, u, v);
      first.part[u] = v.a + v.b;
    });
    Norm::begin(stats, sum(first), T(head.count));
  };
  const int64_t d = z.p.call.d;
  if (!Access::kCompact && d >= kStep) mean(Whole{});
  else mean(Some{static_cast<int>(d < kStep ? d : kStep)});
}

// The first pass over a row: z goes to memory if asked for, its terms to the buffer, and their sums into `sums`.
template <class Norm, class Access, Sum kSum, class Streaming, class T = typename Access::T>
ADDNORM_INLINE void sum_row(const RowSum<Access, kSum>& z, int64_t row, T* terms, const typename Norm::template Row<T> begun, Streaming streaming,
                    T (&sums)[Norm::kSums]) {
  const Forward& f = z.p.call;
  const auto pass = [&]<bool kStores>(Flags<kStores>) ADDNORM_LAMBDA {
    char* const stored = kStores ? row_pointer(f.z, row) : nullptr;
    row_sums<Access::kCompact>(f.d, sums, [&](int64_t c, auto n, auto accumulators) ADDNORM_LAMBDA {
      auto target = Access::writer(f.z.dtype, stored, c, n, streaming);
      z.step(c, n, [&](auto u, Piece<T> v) ADDNORM_LAMBDA {
        if constexpr (kStores) target.put(u, v);
        const Piece<T> term = only<Access::kOrder>(n, u, Norm::term(begun, v));
        store_piece(terms + c, u, term);
        Norm::add(accumulators[u], term);
      });
      if constexpr (kStores) target.close();
    });
  };
  f.z.data ? pass(Flags<true>{}) : pass(Flags<false>{});
}

// R rows at once: their reductions wait on each other's latency, and weight and bias are loaded once for all.
template <class Norm, class Access, Sum kSum, int R, class Streaming>
inline void forward_rows(const ForwardPlan<Access>& p, const std::optional<RoundKeys>& keys, int64_t row, RowBuffers<typename Access::T> buffers,
                         Streaming streaming) {
  using T = typename Access::T;
  using Row = typename Norm::template Row<T>;
  const Forward& f = p.call;
  const int64_t d = f.d;
  Row rows[R];
  T sums[R][Norm::kSums];
  char* y[R];
  const auto row_at = [&](int r) ADDNORM_LAMBDA { return row_sum<Norm, Access, kSum>(p, row + r, buffers.lanes); };
  const auto begin = [&](int r) ADDNORM_LAMBDA {
    if constexpr (Norm::kShifts) begin_row<Norm>(row_at(r), rows[r]);
  };
  if constexpr (kSum == Sum::plain) each<R>(begin);  // they wait on each other's latency too, but one mask is at hand at a time
  for (int r = 0; r < R; ++r) {
    if constexpr (kSum != Sum::plain) {
      if (keys) kept_lanes(buffers.lanes, d, f.dropout.threshold, *keys, static_cast<uint64_t>(row + r));
      begin(r);
    }
    sum_row<Norm>(row_at(r), row + r, buffers.terms + r * buffers.stride, rows[r], streaming, sums[r]);
  }
  each<R>([&](auto r) ADDNORM_LAMBDA {
    const T eps = static_cast<T>(f.eps);
    const bool good = Norm::finish(rows[r], sums[r], static_cast<T>(d), eps);
    if constexpr (Norm::kShifts)
      if (!good) Norm::template refine<Access::kOrder>(rows[r], buffers.terms + r * buffers.stride, d, eps);
    if (f.stats) static_cast<Row*>(f.stats)[row + r] = Norm::statistics(rows[r]);
    y[r] = row_pointer(f.y, row + r);
  });

  const auto write = [&]<bool kWeight, bool kBias>(Flags<kWeight, kBias>) ADDNORM_LAMBDA {
    columns<Access::kCompact>(0, d, [&](int64_t c, auto n) ADDNORM_LAMBDA {
      const auto weights = parameter<Access>(p.weight, c, n), biases = parameter<Access>(p.bias, c, n);
      auto targets = writers<Access, R>(f.y, y, c, n, streaming);
      each<kPieces<T>>([&](auto u) ADDNORM_LAMBDA {
        Piece<T> weight, bias;
        if constexpr (kWeight) weight = weights.get(u);
        if constexpr (kBias) bias = biases.get(u);
        each<R>([&](auto r) ADDNORM_LAMBDA {
          Piece<T> v = Norm::normalise_term(rows[r], load_piece<T>(buffers.terms + r * buffers.stride + c, u));
          if constexpr (kWeight && kBias) v = fma(v, weight, bias);
          else if constexpr (kWeight) v = v * weight;
          else if constexpr (kBias) v = v + bias;
          targets[r].put(u, v);
        });
      });
      each<R>([&](auto r) ADDNORM_LAMBDA { targets[r].close(); });
    });
  };
  if (p.weight) p.bias ? write(Flags<true, true>{}) : write(Flags<true, false>{});
  else p.bias ? write(Flags<false, true>{}) : write(Flags<false, false>{});
}

// Rows [begin, end), several together while they are near; a row's bits do not depend on its company.
template <class Norm, class Access, Sum kSum, class Streaming> inline void forward_range(void* context, int64_t begin, int64_t end) {
  using T = typename Access::T;
  const auto& plan = *static_cast<const ForwardPlan<Access>*>(context);
  const Streaming streaming(plan.streaming);
  const bool drops = plan.call.dropout.on;
  const int64_t d = plan.call.d, stride = skewed(d), lanes = drops ? lane_space(d) : 0;
  const int together = kSum != Sum::full && plan.near ? kRowsTogether : 1;
  Scratch scratch(Scratch::rows, Scratch::space<T>(together * stride) + Scratch::space<uint16_t>(lanes));
  T* terms = scratch.take<T>(together * stride);
  const RowBuffers<T> buffers = {terms, scratch.take<uint16_t>(lanes), stride};
  std::optional<RoundKeys> keys;
  if (drops) keys.emplace(plan.call.dropout.seed);
  if constexpr (std::is_same_v<Streaming, Cached>) {
    constexpr int R = kRowsTogether;
    if (together > 1)
      for (; begin + R <= end; begin += R) forward_rows<Norm, Access, kSum, R>(plan, keys, begin, buffers, streaming);
  }
  for (; begin < end; ++begin) forward_rows<Norm, Access, kSum, 1>(plan, keys, begin, buffers, streaming);
  if (streaming) stream_fence();
}

// Streaming stores want whole aligned steps.
inline bool aligned_rows(const Matrix& m, int64_t d) {
  if (!m.data) return true;
  const int bytes = element_bytes(m.dtype);
  uint64_t bits = reinterpret_cast<uintptr_t>(m.data) | static_cast<uint64_t>(d * bytes);
  for (int i = 0; i < m.dims; ++i) bits |= static_cast<uint64_t>(m.stride[i] * bytes);
  return bits % 64 == 0;
}

template <class Norm, class Access, Sum kSum> inline void forward_with(const Forward& f, const Runtime& runtime) {
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
      written <= kNearBytes && f.d <= kNearColumns,
  };
  const auto run = [&]<class Streaming>(Streaming) {
    if (f.rows * f.d < kParallelElements) return forward_range<Norm, Access, kSum, Streaming>(&plan, 0, f.rows);
    runtime.parallel_for(f.rows, row_grain(f.d), &plan, forward_range<Norm, Access, kSum, Streaming>);
  };
  if constexpr (kSum == Sum::full) run(plan.streaming);
  else plan.streaming ? run(Streamed(true)) : run(Cached(false));
}

inline Sum sum_of(const Forward& f) {
  const bool full = !f.residual.data || f.residual_scale != 1 || f.branch_bias.data || f.branch_scale.data || f.row_scale.data;
  return full ? Sum::full : f.dropout.on ? Sum::dropout : Sum::plain;
}

// The element type that all matrices of a call share; false where they differ.
inline bool share(DType dtype, std::initializer_list<const Matrix*> matrices) {
  for (const Matrix* m : matrices)
    if (m->data && m->dtype != dtype) return false;
  return true;
}

template <class Norm, class Access> inline void forward_sum(const Forward& f, const Runtime& runtime) {
  switch (sum_of(f)) {
    case Sum::plain: return forward_with<Norm, Access, Sum::plain>(f, runtime);
    case Sum::dropout: return forward_with<Norm, Access, Sum::dropout>(f, runtime);
    case Sum::full: return forward_with<Norm, Access, Sum::full>(f, runtime);
  }
}

template <class Norm> inline void forward(const Forward& f, const Runtime& runtime) {
  if (f.f64) return forward_with<Norm, Any<double>, Sum::full>(f, runtime);
  const bool same = share(f.x.dtype, {&f.residual, &f.y, &f.z});
  if (same && f.x.dtype == DType::f32) return forward_sum<Norm, Same<F32>>(f, runtime);
  if (same && f.x.dtype == DType::bf16) return forward_sum<Norm, Same<BF16>>(f, runtime);
  if (same && f.x.dtype == DType::f16) return forward_with<Norm, Same<F16>, Sum::full>(f, runtime);
  forward_with<Norm, Any<float>, Sum::full>(f, runtime);
}

}  // namespace addnorm::ADDNORM_ISA
