// The backward, one text for every norm, access policy and instruction set. With G = (weight_offset + weight) * dy:
//
//   dz = (G - mean(G) - xhat * mean(G * xhat)) * rstd + ds        (rms: without mean(G))
//   dresidual = residual_scale * dz;  dx = row_scale * branch_scale * keep * dz
//
// xhat comes from the stored z and statistics. A few rows at a time: first their means, then, column by column while they
// are in cache, everything else, so that the column accumulators are touched once for all of them.
#pragma once

#include <optional>

#include "column_sums.h"
#include "forward.h"
#include "isa/denormals.h"

namespace addnorm::ADDNORM_ISA {

constexpr int kBackwardRows = 2;

template <class Access> struct BackwardPlan {
  using T = typename Access::T;
  const Backward& call;
  const T *weight, *branch_bias, *branch_scale;
  T residual_scale, keep_scale;
  bool has_dy, has_ds;
  bool needs_branch;  // x and branch_bias, for a scale's gradient
  bool streaming;
};

template <class Access> struct BackwardJob {
  BackwardPlan<Access> plan;
  RowBlocks blocks;
  Partials<Access> partials;
};

// The usual calls have a text of their own, with neither branch nor detour in it: dz alone is written (`dy`), or also its kept part
// (`dropout`), with or without a gradient of the stream. `full` is everything else.
enum class Form { dy, dy_ds, dropout, dropout_ds, full };

// The rows that are at hand; pointers are null where there is nothing.
template <class Norm, class T, int R> struct BackwardRows {
  const char *dy[R], *ds[R], *z[R], *x[R];
  char *dx[R], *dresidual[R];
  typename Norm::template Row<T> stats[R];
  typename Norm::template Gradient<T> gradients[R];
  T row_scale[R];

  BackwardRows(const Backward& b, int64_t row, int count) {
    using Row = typename Norm::template Row<T>;
    const auto find = [&](const Matrix& m, int r) { return r < count ? row_pointer(m, row + r) : nullptr; };
    for (int r = 0; r < R; ++r) {
      dy[r] = find(b.dy, r), ds[r] = find(b.ds, r), z[r] = find(b.z, r), x[r] = find(b.x, r);
      dx[r] = find(b.dx, r), dresidual[r] = find(b.dresidual, r);
      gradients[r] = {};
      if (r >= count) continue;
      stats[r] = static_cast<const Row*>(b.stats)[row + r];
      row_scale[r] = row_value<T>(b.row_scale, row + r);
    }
  }
};

// The sums that the norm's gradient through a row rests on.
template <class Norm, class Access, int R, class T = typename Access::T>
inline void gradient_sums(const BackwardPlan<Access>& p, BackwardRows<Norm, T, R>& rows, int r) {
  const Backward& b = p.call;
  T sums[Norm::kGradientSums];
  const auto stats = rows.stats[r];
  const char *const dy = rows.dy[r], *const z = rows.z[r];
  row_sums<Access::kCompact>(b.d, sums, [&](int64_t c, auto n, auto accumulators) ADDNORM_LAMBDA {
    const auto dys = Access::reader(b.dy.dtype, dy, c, n), zs = Access::reader(b.z.dtype, z, c, n);
    const auto weights = parameter<Access>(p.weight, c, n);
    each<kPieces<T>>([&](auto u) ADDNORM_LAMBDA {
      Piece<T> g = dys.get(u);
      if (p.weight) g = g * weights.get(u);
      Norm::add_gradient(stats, accumulators[u], g, zs.get(u));
    });
  });
  rows.gradients[r] = Norm::gradient(stats, sums, static_cast<T>(b.d));
}

// Column sums of a piece: what one group of rows adds to the block's accumulators.
template <class T> struct PieceSums {
  Piece<T> sum[kColumnSums] = {all(T(0)), all(T(0)), all(T(0)), all(T(0))};
};

// dz in 32 columns of the rows at hand, and what they add to dweight and dbias on the way.
template <class Norm, class Access, Form kForm, int R, class N> struct SumGradient {
  using T = typename Access::T;
  using Readers = decltype(readers<Access, R>(Matrix{}, nullptr, 0, N{}));
  const BackwardPlan<Access>& p;
  const BackwardRows<Norm, T, R>& rows;
  decltype(parameter<Access>(static_cast<const T*>(nullptr), 0, N{})) weights;
  Readers dys, zs, dss;

  ADDNORM_INLINE SumGradient(const BackwardPlan<Access>& p, const BackwardRows<Norm, T, R>& rows, int64_t c, N n)
      : p(p), rows(rows), weights(parameter<Access>(p.weight, c, n)), dys(readers<Access, R>(p.call.dy, rows.dy, c, n)),
        zs(readers<Access, R>(p.call.z, rows.z, c, n)), dss(readers<Access, R>(p.call.ds, rows.ds, c, n)) {}

  ADDNORM_INLINE Piece<T> weight(int u) const { return p.weight ? weights.get(u) : all(T(1)); }

  template <class I> ADDNORM_INLINE Piece<T> get(I r, int u, Piece<T> weight, PieceSums<T>& sums) const {
    if constexpr (kForm == Form::full)
      if (!p.has_dy) return dss.item[r].get(u);
    const Piece<T> xhat = Norm::normalise(rows.stats[r], rows.gradients[r], zs.item[r].get(u)), dy = dys.item[r].get(u);
    sums.sum[kWeight] = fma(dy, xhat, sums.sum[kWeight]);
    sums.sum[kBias] = sums.sum[kBias] + dy;
    const Piece<T> dz = Norm::apply(rows.stats[r], rows.gradients[r], dy * weight, xhat);
    constexpr bool kHasDs = kForm == Form::dy_ds || kForm == Form::dropout_ds;
    return kHasDs || (kForm == Form::full && p.has_ds) ? dz + dss.item[r].get(u) : dz;
  }
};

// What the branch's side of the sum wants of dz in 32 columns: dx, dbranch_bias, dbranch_scale and a term of drow_scale.
template <class Access, class N> struct BranchSide {
  using T = typename Access::T;
  using Columns32 = decltype(parameter<Access>(static_cast<const T*>(nullptr), 0, N{}));
  const BackwardPlan<Access>& p;
  N n;
  Columns32 bias, scale;
  BranchSide(const BackwardPlan<Access>& p, int64_t c, N n)
      : p(p), n(n), bias(parameter<Access>(p.branch_bias, c, n)), scale(parameter<Access>(p.branch_scale, c, n)) {}

  template <class Xs> ADDNORM_INLINE Piece<T> dx(int u, const Xs& xs, const uint16_t* lanes, T row_scale, Piece<T> dz, PieceSums<T>& sums,
                                                 Piece<T>* row_sum) const {
    const Piece<T> kept = p.call.dropout.on ? keep<Access::kOrder>(lanes, u, p.keep_scale) : all(T(1));
    const Piece<T> scales = p.branch_scale ? scale.get(u) : all(T(1));
    if (p.needs_branch) {
      Piece<T> v = xs.get(u);
      if (p.branch_bias) v = v + bias.get(u);
      const Piece<T> term = v * kept * dz;
      sums.sum[kBranchScale] = sums.sum[kBranchScale] + term * row_scale;
      *row_sum = *row_sum + only<Access::kOrder>(n, u, term * scales);
    }
    const Piece<T> result = dz * row_scale * scales * kept;
    sums.sum[kBranchBias] = sums.sum[kBranchBias] + result;
    return result;
  }
};

// 32 columns of R rows, in the forms without detour.
template <class Norm, class Access, Form kForm, int R, class N, class Streaming>
ADDNORM_INLINE void backward_step(const BackwardPlan<Access>& p, const BackwardRows<Norm, typename Access::T, R>& rows,
                                  const ColumnTotals<typename Access::T>& totals, const uint16_t* lanes, int64_t c, N n, Streaming streaming) {
  using T = typename Access::T;
  constexpr bool kDrops = kForm == Form::dropout || kForm == Form::dropout_ds;
  const Backward& b = p.call;
  const bool is_dx = !kDrops && b.dx.data;  // what is written first: dx, else dresidual
  const SumGradient<Norm, Access, kForm, R, N> gradient(p, rows, c, n);
  auto outs = writers<Access, R>(is_dx ? b.dx : b.dresidual, is_dx ? rows.dx : rows.dresidual, c, n, streaming);
  auto dxs = writers<Access, R>(b.dx, rows.dx, c, n, streaming);
  each<kPieces<T>>([&](auto u) ADDNORM_LAMBDA {
    const Piece<T> weight = gradient.weight(u);
    PieceSums<T> sums;
    each<R>([&](auto r) ADDNORM_LAMBDA {
      const Piece<T> dz = gradient.get(r, u, weight, sums);
      outs[r].put(u, dz);
      if constexpr (kDrops) dxs[r].put(u, dz * keep<Access::kOrder>(lanes + r * lane_space(b.d) + c, u, p.keep_scale));
    });
    totals.template add<kBias + 1>(c, u, sums.sum);
  });
  each<R>([&](auto r) ADDNORM_LAMBDA {
    outs[r].close();
    if constexpr (kDrops) dxs[r].close();
  });
}

// 32 columns of the first `count` rows with everything that can be asked for; row_terms takes the terms of drow_scale.
template <class Norm, class Access, int R, class N, class Streaming, class RowTerms>
ADDNORM_INLINE void backward_full_step(const BackwardPlan<Access>& p, const BackwardRows<Norm, typename Access::T, R>& rows, int count,
                                       const ColumnTotals<typename Access::T>& totals, const uint16_t* lanes, int64_t c, N n, Streaming streaming,
                                       RowTerms row_terms) {
  using T = typename Access::T;
  const Backward& b = p.call;
  const SumGradient<Norm, Access, Form::full, R, N> gradient(p, rows, c, n);
  const BranchSide<Access, N> branch(p, c, n);
  const auto xs = readers<Access, R>(b.x, rows.x, c, n);
  auto dxs = writers<Access, R>(b.dx, rows.dx, c, n, streaming), dresiduals = writers<Access, R>(b.dresidual, rows.dresidual, c, n, streaming);
  each<kPieces<T>>([&](auto u) ADDNORM_LAMBDA {
    const Piece<T> weight = gradient.weight(u);
    PieceSums<T> sums;
    for (int r = 0; r < count; ++r) {
      const Piece<T> dz = gradient.get(r, u, weight, sums);
      if (rows.dresidual[r]) dresiduals[r].put(u, dz * p.residual_scale);
      const Piece<T> dx = branch.dx(u, xs.item[r], lanes + r * lane_space(b.d) + c, rows.row_scale[r], dz, sums, &row_terms[u][r]);
      if (rows.dx[r]) dxs[r].put(u, dx);
    }
    totals.template add<kColumnSums>(c, u, sums.sum);
  });
  for (int r = 0; r < count; ++r) {
    if (rows.dresidual[r]) dresiduals[r].close();
    if (rows.dx[r]) dxs[r].close();
  }
}

// `count` rows, R of them but in the full form.
template <class Norm, class Access, Form kForm, int R, class Streaming>
inline void backward_rows(const BackwardPlan<Access>& plan, const std::optional<RoundKeys>& keys, int64_t row, int count,
                          ColumnTotals<typename Access::T> totals, uint16_t* lanes, Streaming streaming) {
  using T = typename Access::T;
  constexpr bool kFull = kForm == Form::full;
  const BackwardPlan<Access> p = plan;  // a copy: what no store can change stays in registers
  const Backward& b = p.call;
  BackwardRows<Norm, T, R> rows(b, row, count);
  if (keys)
    for (int r = 0; r < count; ++r) kept_lanes(lanes + r * lane_space(b.d), b.d, b.dropout.threshold, *keys, static_cast<uint64_t>(row + r));
  if (!kFull || p.has_dy)
    for (int r = 0; r < count; ++r) gradient_sums<Norm, Access>(p, rows, r);

  if constexpr (kFull) {
    T row_totals[R];
    row_sums<Access::kCompact>(b.d, row_totals, [&](int64_t c, auto n, auto row_terms) ADDNORM_LAMBDA {
      backward_full_step(p, rows, count, totals, lanes, c, n, streaming, row_terms);
    });
    if (b.drow_scale.data)
      for (int r = 0; r < count; ++r) store_scalar(b.drow_scale, row + r, row_totals[r]);
  } else {
    columns<Access::kCompact>(0, b.d, [&](int64_t c, auto n) ADDNORM_LAMBDA {
      backward_step<Norm, Access, kForm>(p, rows, totals, lanes, c, n, streaming);
    });
  }
}

template <class Norm, class Access, Form kForm, class Streaming> inline void backward_blocks(void* context, int64_t begin, int64_t end) {
  constexpr int R = kBackwardRows;
  const auto& job = *static_cast<const BackwardJob<Access>*>(context);
  const BackwardPlan<Access>& plan = job.plan;
  const int64_t space = plan.call.dropout.on ? R * lane_space(plan.call.d) : 0;
  Scratch scratch(Scratch::rows, Scratch::space<uint16_t>(space));
  uint16_t* lanes = scratch.take<uint16_t>(space);
  std::optional<RoundKeys> keys;
  if (space > 0) keys.emplace(plan.call.dropout.seed);
  const FlushDenormals flush(plan.has_dy);  // without dy, ds passes as it is
  for (int64_t block = begin; block < end; ++block) {
    auto totals = job.partials.totals_of(block);
    int64_t row = job.blocks.begin(block);
    const int64_t last = job.blocks.end(block);
    for (; row + R <= last; row += R, totals.first = false) backward_rows<Norm, Access, kForm, R>(plan, keys, row, R, totals, lanes, Streaming(plan.streaming));
    if (row < last) backward_rows<Norm, Access, Form::full, R>(plan, keys, row, static_cast<int>(last - row), totals, lanes, plan.streaming);
  }
  if (plan.streaming) stream_fence();
}

template <class Norm, class Access, Form kForm> inline void backward_with(const Backward& b, const Runtime& runtime) {
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
  const BackwardPlan<Access> plan = {
      b,
      weight,
      branch_bias,
      branch_scale,
      static_cast<T>(b.residual_scale),
      static_cast<T>(b.dropout.keep_scale),
      b.dy.data != nullptr,
      b.ds.data != nullptr,
      b.dbranch_scale.data || b.drow_scale.data,
      streaming_pays(written, b.fresh_pages) && aligned_rows(b.dx, b.d) && aligned_rows(b.dresidual, b.d),
  };
  BackwardJob<Access> job = {plan, blocks, partials};
  const int64_t elements = b.rows * b.d;
  const auto run = [&]<class Streaming>(Streaming) ADDNORM_LAMBDA {
    if (elements < kParallelElements || blocks.count() < 2) backward_blocks<Norm, Access, kForm, Streaming>(&job, 0, blocks.count());
    else runtime.parallel_for(blocks.count(), 1, &job, backward_blocks<Norm, Access, kForm, Streaming>);
  };
  if constexpr (kForm == Form::full) run(plan.streaming);
  else known(plan.streaming, run);
  if (partials.any()) partials.finish(runtime);
}

inline Form form_of(const Backward& b) {
  const bool scaled = b.residual_scale != 1 || b.branch_scale.data || b.row_scale.data || b.dbranch_bias.data || b.dbranch_scale.data ||
                      b.drow_scale.data;
  const bool one = !b.dx.data != !b.dresidual.data, both = b.dx.data && b.dresidual.data, drops = b.dropout.on;
  if (scaled || !b.dy.data || !(drops ? both : one)) return Form::full;
  if (drops) return b.ds.data ? Form::dropout_ds : Form::dropout;
  return b.ds.data ? Form::dy_ds : Form::dy;
}

template <class Norm, class Access> inline void backward_form(const Backward& b, const Runtime& runtime) {
  switch (form_of(b)) {
    case Form::dy: return backward_with<Norm, Access, Form::dy>(b, runtime);
    case Form::dy_ds: return backward_with<Norm, Access, Form::dy_ds>(b, runtime);
    case Form::dropout: return backward_with<Norm, Access, Form::dropout>(b, runtime);
    case Form::dropout_ds: return backward_with<Norm, Access, Form::dropout_ds>(b, runtime);
    case Form::full: return backward_with<Norm, Access, Form::full>(b, runtime);
  }
}

template <class Norm> inline void backward(const Backward& b, const Runtime& runtime) {
  if (b.f64) return backward_with<Norm, Any<double>, Form::full>(b, runtime);
  const DType dtype = b.dy.data ? b.dy.dtype : b.ds.dtype;
  const bool same = share(dtype, {&b.ds, &b.z, &b.x, &b.dx, &b.dresidual});
  if (same && dtype == DType::f32) return backward_form<Norm, Same<F32>>(b, runtime);
  if (same && dtype == DType::bf16) return backward_form<Norm, Same<BF16>>(b, runtime);
  if (same && dtype == DType::f16) return backward_with<Norm, Same<F16>, Form::full>(b, runtime);
  backward_with<Norm, Any<float>, Form::full>(b, runtime);
}

}  // namespace addnorm::ADDNORM_ISA
