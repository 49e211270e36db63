// The backward, one text for every norm, access policy and instruction set. With G = (weight_offset + weight) * dy:
//
//   dz = (G - mean(G) - xhat * mean(G * xhat)) * rstd + ds        (rms: without mean(G))
//   dresidual = residual_scale * dz;  dx = row_scale * branch_scale * keep * dz
//
// xhat comes from the stored z and statistics. A few rows at a time: first their means, then, column by column while they
// are in cache, everything else, so that the column accumulators are touched once for all of them.
#pragma once

#include "column_sums.h"
#include "forward.h"

namespace addnorm::ADDNORM_ISA {

constexpr int kBackwardRows = 4;

template <class Access> struct BackwardPlan {
  using T = typename Access::T;
  const Backward& call;
  const T *weight, *branch_bias, *branch_scale;
  T residual_scale, keep_scale;
  RowBlocks blocks;
  Partials<Access> partials;
  bool needs_branch;  // x and branch_bias, for a scale's gradient
  bool streaming;
};

// The rows that are at hand.
template <class Norm, class T, int R> struct BackwardRows {
  const char *dy[R], *ds[R], *z[R], *x[R];
  char *dx[R], *dresidual[R];
  typename Norm::template Row<T> stats[R];
  T means[R * Norm::kGradientSums] = {};
  T row_scale[R];
};

inline char* optional_row(const Matrix& m, int64_t row) { return m.data ? row_pointer(m, row) : nullptr; }

template <bool kUnrolled, class Norm, class T, int R>
ADDNORM_INLINE void find_rows(BackwardRows<Norm, T, R>& rows, const Backward& b, int64_t row, int count) {
  using Row = typename Norm::template Row<T>;
  each_row<kUnrolled, R>(count, [&](auto r) ADDNORM_LAMBDA {
    rows.dy[r] = optional_row(b.dy, row + r);
    rows.ds[r] = optional_row(b.ds, row + r);
    rows.z[r] = optional_row(b.z, row + r);
    rows.x[r] = optional_row(b.x, row + r);
    rows.dx[r] = optional_row(b.dx, row + r);
    rows.dresidual[r] = optional_row(b.dresidual, row + r);
    rows.stats[r] = static_cast<const Row*>(b.stats)[row + r];
    rows.row_scale[r] = row_value<T>(b.row_scale, row + r);
  });
}

// mean(G) and mean(G * xhat), or what else the norm's gradient rests on, of the rows from `from` on.
template <class Norm, class Access, int kCount, int R, class T = typename Access::T>
ADDNORM_INLINE void gradient_means(const BackwardPlan<Access>& p, BackwardRows<Norm, T, R>& rows, int from) {
  const Backward& b = p.call;
  constexpr int kSums = Norm::kGradientSums;
  T sums[kCount * kSums];
  row_sums<Access::kCompact>(b.d, sums, [&](int64_t c, auto n, Pair<T>* accumulators) ADDNORM_LAMBDA {
    const Pair<T> weight = p.weight ? load_parameter<Access>(p.weight + c, n) : Pair<T>{splat(T(1)), splat(T(1))};
    each<kCount>([&](auto i) ADDNORM_LAMBDA {
      const int r = from + i;
      const Pair<T> xhat = Norm::normalise(rows.stats[r], Access::load(b.z.dtype, rows.z[r], c, n));
      const Pair<T> g = Access::load(b.dy.dtype, rows.dy[r], c, n) * weight;
      Norm::add_gradient(accumulators + i * kSums, g, only<Access::kOrder>(n, xhat));
    });
  });
  each<kCount * kSums>([&](auto i) ADDNORM_LAMBDA { rows.means[from * kSums + i] = sums[i] / static_cast<T>(b.d); });
}

// What the branch's side of the sum wants of dz: dx, dbranch_bias, dbranch_scale and a term of drow_scale.
template <class Access, class Norm, int R, class N, class T = typename Access::T>
ADDNORM_INLINE void branch_columns(const BackwardPlan<Access>& p, const BackwardRows<Norm, T, R>& rows, int r, const uint16_t* lanes,
                                   int64_t c, N n, Pair<T> dz, Pair<T>* sums, Pair<T>* row_sum) {
  const Backward& b = p.call;
  const Pair<T> one = {splat(T(1)), splat(T(1))};
  const Pair<T> kept = b.dropout.threshold ? keep<Access::kOrder>(lanes + c, b.dropout.threshold, p.keep_scale) : one;
  const Pair<T> scale = p.branch_scale ? load_parameter<Access>(p.branch_scale + c, n) : one;
  const Vec<T> row_scale = splat(rows.row_scale[r]);
  if (p.needs_branch) {
    Pair<T> u = Access::load(b.x.dtype, rows.x[r], c, n);
    if (p.branch_bias) u = u + load_parameter<Access>(p.branch_bias + c, n);
    const Pair<T> term = u * kept * dz;
    sums[kBranchScale] = sums[kBranchScale] + term * row_scale;
    *row_sum = *row_sum + only<Access::kOrder>(n, term * scale);
  }
  const Pair<T> dx = dz * row_scale * scale * kept;
  if (rows.dx[r]) Access::store(b.dx.dtype, rows.dx[r], c, n, dx, p.streaming);
  sums[kBranchBias] = sums[kBranchBias] + dx;
}

// dz of 32 columns of a row, and their terms of dweight and dbias.
template <class Norm, class Access, int R, class N, class T = typename Access::T>
ADDNORM_INLINE Pair<T> stream_columns(const BackwardPlan<Access>& p, const BackwardRows<Norm, T, R>& rows, int r, int64_t c, N n,
                                      Pair<T> weight, Pair<T>* sums) {
  const Backward& b = p.call;
  if (!b.dy.data) return rows.ds[r] ? Access::load(b.ds.dtype, rows.ds[r], c, n) : Pair<T>{splat(T(0)), splat(T(0))};
  const Pair<T> xhat = Norm::normalise(rows.stats[r], Access::load(b.z.dtype, rows.z[r], c, n));
  const Pair<T> dy = Access::load(b.dy.dtype, rows.dy[r], c, n);
  sums[kWeight] = fma(dy, xhat, sums[kWeight]);
  sums[kBias] = sums[kBias] + dy;
  const Pair<T> dz = Norm::gradient(rows.stats[r], rows.means + r * Norm::kGradientSums, dy * weight, xhat);
  return rows.ds[r] ? dz + Access::load(b.ds.dtype, rows.ds[r], c, n) : dz;
}

// `count` rows, R of them where kPlain; `first` where the block's accumulators are still to be set. The plain case is written
// out row by row, the full one loops.
template <class Norm, class Access, bool kPlain, int R>
inline void backward_rows(const BackwardPlan<Access>& p, int64_t row, int count, const Columns<typename Access::T>& totals, bool first,
                          uint16_t* lanes) {
  using T = typename Access::T;
  const Backward& b = p.call;
  const int64_t d = b.d;
  BackwardRows<Norm, T, R> rows;
  find_rows<kPlain>(rows, b, row, count);
  if (b.dropout.threshold)
    for (int r = 0; r < count; ++r) random_lanes(lanes + r * lane_space(d), d, b.dropout.seed, static_cast<uint64_t>(row + r));
  if (b.dy.data) {
    constexpr int kTogether = kPlain && kRowsTogether < R ? kRowsTogether : kPlain ? R : 1;
    each_row<kPlain, R / kTogether>(count, [&](auto i) ADDNORM_LAMBDA {
      gradient_means<Norm, Access, kTogether>(p, rows, i * kTogether);
    });
  }

  const Pair<T> zero = {splat(T(0)), splat(T(0))}, one = {splat(T(1)), splat(T(1))};
  const auto body = [&](int64_t c, auto n, Pair<T>* row_sum) ADDNORM_LAMBDA {
    const Pair<T> weight = p.weight ? load_parameter<Access>(p.weight + c, n) : one;
    Pair<T> sums[kColumnSums] = {zero, zero, zero, zero};
    each_row<kPlain, R>(count, [&](auto r) ADDNORM_LAMBDA {
      const Pair<T> dz = stream_columns(p, rows, r, c, n, weight, sums);
      if constexpr (kPlain) {
        if (rows.dresidual[r]) Access::store(b.dresidual.dtype, rows.dresidual[r], c, n, dz, p.streaming);
        if (rows.dx[r]) Access::store(b.dx.dtype, rows.dx[r], c, n, dz, p.streaming);
      } else {
        const Pair<T> skip = dz * splat(p.residual_scale);
        if (rows.dresidual[r]) Access::store(b.dresidual.dtype, rows.dresidual[r], c, n, skip, p.streaming);
        branch_columns(p, rows, r, lanes + r * lane_space(d), c, n, dz, sums, row_sum + r);
      }
    });
    constexpr int kSums = kPlain ? kBias + 1 : kColumnSums;
    each<kSums>([&](auto k) ADDNORM_LAMBDA {
      if (totals.sum[k]) totals.add(k, c, sums[k], first);
    });
  };
  if constexpr (kPlain) {
    columns<Access::kCompact>(0, d, [&](int64_t c, auto n) ADDNORM_LAMBDA { body(c, n, static_cast<Pair<T>*>(nullptr)); });
  } else {
    T row_totals[R];
    row_sums<Access::kCompact>(d, row_totals, body);
    if (b.drow_scale.data)
      for (int r = 0; r < count; ++r) store_scalar(b.drow_scale, row + r, row_totals[r]);
  }
}

template <class Norm, class Access, bool kPlain> inline void backward_blocks(void* context, int64_t begin, int64_t end) {
  constexpr int R = kBackwardRows;
  const auto& plan = *static_cast<const BackwardPlan<Access>*>(context);
  const int64_t space = plan.call.dropout.threshold ? R * lane_space(plan.call.d) : 0;
  Scratch scratch(Scratch::rows, Scratch::space<uint16_t>(space));
  uint16_t* lanes = scratch.take<uint16_t>(space);
  for (int64_t block = begin; block < end; ++block) {
    const auto totals = plan.partials.columns_of(block);
    const int64_t first = plan.blocks.begin(block), last = plan.blocks.end(block);
    int64_t row = first;
    for (; row + R <= last; row += R) backward_rows<Norm, Access, kPlain, R>(plan, row, R, totals, row == first, lanes);
    if constexpr (kPlain) {
      for (; row < last; ++row) backward_rows<Norm, Access, kPlain, 1>(plan, row, 1, totals, row == first, lanes);
    } else if (row < last) {
      backward_rows<Norm, Access, kPlain, R>(plan, row, static_cast<int>(last - row), totals, row == first, lanes);
    }
  }
  if (plan.streaming) stream_fence();
}

template <class Norm, class Access, bool kPlain> inline void backward_with(const Backward& b, const Runtime& runtime) {
  using T = typename Access::T;
  using P = Parameter<Access>;
  const RowBlocks blocks(b.rows);
  Partials<Access> partials(b, blocks.count());
  Scratch scratch(Scratch::call, P::space(b.weight, b.d, b.weight_offset) + P::space(b.branch_bias, b.d) +
                                     P::space(b.branch_scale, b.d) + partials.space());
  const T* weight = P::of(b.weight, b.d, scratch, b.weight_offset);
  const T* branch_bias = P::of(b.branch_bias, b.d, scratch);
  const T* branch_scale = P::of(b.branch_scale, b.d, scratch);
  partials.place(scratch);
  int64_t written = 0;
  for (const Matrix* m : {&b.dx, &b.dresidual})
    if (m->data) written += b.rows * b.d * element_bytes(m->dtype);
  BackwardPlan<Access> plan = {
      b,
      weight,
      branch_bias,
      branch_scale,
      static_cast<T>(b.residual_scale),
      static_cast<T>(b.dropout.keep_scale),
      blocks,
      partials,
      b.dbranch_scale.data || b.drow_scale.data,
      streaming_pays(written, b.fresh_pages) && aligned_rows(b.dx, b.d) && aligned_rows(b.dresidual, b.d),
  };
  const int64_t elements = b.rows * b.d;
  if (elements < kParallelElements || blocks.count() < 2) backward_blocks<Norm, Access, kPlain>(&plan, 0, blocks.count());
  else runtime.parallel_for(blocks.count(), 1, &plan, backward_blocks<Norm, Access, kPlain>);
  if (plan.partials.any()) plan.partials.finish(runtime);
}

inline bool is_plain(const Backward& b) {
  return b.residual_scale == 1 && !b.branch_scale.data && !b.row_scale.data && !b.dropout.threshold && !b.dbranch_bias.data &&
         !b.dbranch_scale.data && !b.drow_scale.data;
}

template <class Norm> inline void backward(const Backward& b, const Runtime& runtime) {
  if (b.f64) return backward_with<Norm, Any<double>, false>(b, runtime);
  const DType dtype = b.dy.data ? b.dy.dtype : b.ds.dtype;
  const bool plain = is_plain(b), same = share(dtype, {&b.ds, &b.z, &b.x, &b.dx, &b.dresidual});
  const auto run = [&](auto access) {
    using Access = decltype(access);
    plain ? backward_with<Norm, Access, true>(b, runtime) : backward_with<Norm, Access, false>(b, runtime);
  };
  if (same && dtype == DType::f32) return run(Same<F32>{});
  if (same && dtype == DType::bf16) return run(Same<BF16>{});
  if (same && dtype == DType::f16 && plain) return backward_with<Norm, Same<F16>, true>(b, runtime);
  backward_with<Norm, Any<float>, false>(b, runtime);
}

}  // namespace addnorm::ADDNORM_ISA
