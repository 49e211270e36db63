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

// The rows that are at hand.
template <class Norm, class T, int R> struct BackwardRows {
  const char *dy[R], *ds[R], *z[R], *x[R];
  char *dx[R], *dresidual[R], *out[R];  // out: the only one of the two, in the plain forms
  typename Norm::template Row<T> stats[R];
  typename Norm::template Gradient<T> gradients[R] = {};
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
    rows.out[r] = b.dx.data ? rows.dx[r] : rows.dresidual[r];
    rows.stats[r] = static_cast<const Row*>(b.stats)[row + r];
    rows.row_scale[r] = row_value<T>(b.row_scale, row + r);
  });
}

// The sums that the norm's gradient rests on, of the rows from `from` on.
template <class Norm, class Access, int kCount, int R, class T = typename Access::T>
ADDNORM_INLINE void gradient_sums(const BackwardPlan<Access>& p, BackwardRows<Norm, T, R>& rows, int from) {
  const Backward& b = p.call;
  constexpr int kSums = Norm::kGradientSums;
  T sums[kCount * kSums];
  row_sums<Access::kCompact>(b.d, sums, [&](int64_t c, auto n, Pair<T>* accumulators) ADDNORM_LAMBDA {
    Pair<T> weight = {splat(T(1)), splat(T(1))};
    if (p.weight) weight = load_parameter<Access>(p.weight + c, n);
    each<kCount>([&](auto i) ADDNORM_LAMBDA {
      const int r = from + i;
      const Pair<T> z = Access::load(b.z.dtype, rows.z[r], c, n);
      Norm::add_gradient(rows.stats[r], accumulators + i * kSums, Access::load(b.dy.dtype, rows.dy[r], c, n) * weight, z);
    });
  });
  each<kCount>([&](auto i) ADDNORM_LAMBDA {
    rows.gradients[from + i] = Norm::gradient(rows.stats[from + i], sums + i * kSums, static_cast<T>(b.d));
  });
}

// What the branch's side of the sum wants of dz: dx, dbranch_bias, dbranch_scale and a term of drow_scale.
template <class Access, class Norm, int R, class N, class T = typename Access::T>
ADDNORM_INLINE void branch_columns(const BackwardPlan<Access>& p, const BackwardRows<Norm, T, R>& rows, int r, const uint16_t* lanes,
                                   int64_t c, N n, Pair<T> dz, Pair<T>* sums, Pair<T>* row_sum) {
  const Backward& b = p.call;
  const Pair<T> one = {splat(T(1)), splat(T(1))};
  Pair<T> kept = one, scale = one;
  if (b.dropout.threshold) kept = keep<Access::kOrder>(lanes + c, b.dropout.threshold, p.keep_scale);
  if (p.branch_scale) scale = load_parameter<Access>(p.branch_scale + c, n);
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

// The usual calls have a text of their own, with neither branch nor detour in it; `full` is everything else.
enum class Form { dy, dy_ds, full };

// dz of 32 columns of a row, and their terms of dweight and dbias.
template <class Norm, Form kForm, class Access, int R, class N, class T = typename Access::T>
ADDNORM_INLINE Pair<T> stream_columns(const BackwardPlan<Access>& p, const BackwardRows<Norm, T, R>& rows, int r, int64_t c, N n,
                                      Pair<T> weight, Pair<T>* sums) {
  const Backward& b = p.call;
  Pair<T> dz = {splat(T(0)), splat(T(0))};
  if (kForm != Form::full || p.has_dy) {
    const Pair<T> xhat = Norm::normalise(rows.stats[r], rows.gradients[r], Access::load(b.z.dtype, rows.z[r], c, n));
    const Pair<T> dy = Access::load(b.dy.dtype, rows.dy[r], c, n);
    sums[kWeight] = fma(dy, xhat, sums[kWeight]);
    sums[kBias] = sums[kBias] + dy;
    dz = Norm::apply(rows.stats[r], rows.gradients[r], dy * weight, xhat);
  }
  if (kForm == Form::dy_ds || (kForm == Form::full && p.has_ds)) {
    const Pair<T> ds = Access::load(b.ds.dtype, rows.ds[r], c, n);
    if (kForm != Form::full || p.has_dy) dz = dz + ds;
    else dz = ds;
  }
  return dz;
}

// `count` rows, R of them but in the full form; `first` where the block's accumulators are still to be set.
template <class Norm, class Access, Form kForm, int R>
inline void backward_rows(const BackwardPlan<Access>& plan, int64_t row, int count, Columns<typename Access::T> totals, bool first,
                          uint16_t* lanes) {
  using T = typename Access::T;
  constexpr bool kPlain = kForm != Form::full;
  const BackwardPlan<Access> p = plan;  // a copy, which no store can change: its members stay in registers
  const Backward& b = p.call;
  const int64_t d = b.d;
  BackwardRows<Norm, T, R> rows;
  find_rows<kPlain>(rows, b, row, count);
  if (b.dropout.threshold)
    for (int r = 0; r < count; ++r) random_lanes(lanes + r * lane_space(d), d, b.dropout.seed, static_cast<uint64_t>(row + r));
  if (kPlain || p.has_dy) {
    constexpr int kTogether = kPlain ? kRowsTogether : 1;
    each_row<kPlain, R / kTogether>(count, [&](auto i) ADDNORM_LAMBDA {
      gradient_sums<Norm, Access, kTogether>(p, rows, i * kTogether);
    });
  }

  const Pair<T> zero = {splat(T(0)), splat(T(0))}, one = {splat(T(1)), splat(T(1))};
  const auto body = [&](int64_t c, auto n, Pair<T>* row_sum) ADDNORM_LAMBDA {
    Pair<T> weight = one;
    if (p.weight) weight = load_parameter<Access>(p.weight + c, n);
    Pair<T> sums[kColumnSums] = {zero, zero, zero, zero};
    each_row<kPlain, R>(count, [&](auto r) ADDNORM_LAMBDA {
      const Pair<T> dz = stream_columns<Norm, kForm>(p, rows, r, c, n, weight, sums);
      if constexpr (kPlain) {
        Access::store(DType::f32, rows.out[r], c, n, dz, p.streaming);
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

template <class Norm, class Access, Form kForm> inline void backward_blocks(void* context, int64_t begin, int64_t end) {
  constexpr int R = kBackwardRows;
  const auto& job = *static_cast<const BackwardJob<Access>*>(context);
  const BackwardPlan<Access>& plan = job.plan;
  const int64_t space = plan.call.dropout.threshold ? R * lane_space(plan.call.d) : 0;
  Scratch scratch(Scratch::rows, Scratch::space<uint16_t>(space));
  uint16_t* lanes = scratch.take<uint16_t>(space);
  const FlushDenormals flush(plan.has_dy);  // without dy, ds passes as it is
  for (int64_t block = begin; block < end; ++block) {
    const auto totals = job.partials.columns_of(block);
    const int64_t first = job.blocks.begin(block), last = job.blocks.end(block);
    int64_t row = first;
    for (; row + R <= last; row += R) backward_rows<Norm, Access, kForm, R>(plan, row, R, totals, row == first, lanes);
    if (row < last) backward_rows<Norm, Access, Form::full, R>(plan, row, static_cast<int>(last - row), totals, row == first, lanes);
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
  if (elements < kParallelElements || blocks.count() < 2) backward_blocks<Norm, Access, kForm>(&job, 0, blocks.count());
  else runtime.parallel_for(blocks.count(), 1, &job, backward_blocks<Norm, Access, kForm>);
  if (partials.any()) partials.finish(runtime);
}

// One output, dz itself, is plain.
inline Form form_of(const Backward& b) {
  const bool plain = b.residual_scale == 1 && !b.branch_scale.data && !b.row_scale.data && !b.dropout.threshold && !b.dbranch_bias.data &&
                     !b.dbranch_scale.data && !b.drow_scale.data && !b.dx.data != !b.dresidual.data;
  return !plain || !b.dy.data ? Form::full : b.ds.data ? Form::dy_ds : Form::dy;
}

template <class Norm, class Access> inline void backward_form(const Backward& b, const Runtime& runtime) {
  switch (form_of(b)) {
    case Form::dy: return backward_with<Norm, Access, Form::dy>(b, runtime);
    case Form::dy_ds: return backward_with<Norm, Access, Form::dy_ds>(b, runtime);
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
