// The backward, one text for every norm, access policy and instruction set. With G = (weight_offset + weight) * dy:
//
//   dz = (G - mean(G) - xhat * mean(G * xhat)) * rstd + ds        (rms: without mean(G))
//   dresidual = residual_scale * dz;  dx = row_scale * branch_scale * keep * dz
//
// xhat comes from the stored z and statistics. A row is gone through twice: for its sums, and to be written.
#pragma once

#include <optional>

#include "backward_steps.h"
#include "isa/denormals.h"

namespace addnorm::ADDNORM_ISA {

template <class Access> struct BackwardJob {
  BackwardPlan<Access> plan;
  RowBlocks blocks;
  Partials<Access>& partials;
};

// Where 1 / s is less than this, products of g and z may overflow though those of g and xhat do not, and g is scaled down by as much.
template <class T> constexpr T kSmallRstd = static_cast<T>(sizeof(T) == 4 ? 0x1p-64 : 0x1p-512);

template <class Norm, class Access, class T = typename Access::T>
ADDNORM_OUTLINE typename Norm::template Gradient<T> gradient_of_large(const BackwardPlan<Access>& p, const BackwardRow<Norm, T>& row) {
  T sums[Norm::kGradientSums];
  row_sums<true>(p.call.d, sums, [&](int64_t c, auto n, auto accumulators) ADDNORM_LAMBDA {
    const auto weights = parameter<Access>(p.weight, c, n);
    const SumStep<Norm, Access, decltype(n)> sum(p, row, c, n);
    each<kPieces<T>>([&](auto u) ADDNORM_LAMBDA { sum.add(u, weights.get(u) * kSmallRstd<T>, accumulators[u]); });
  });
  return Norm::gradient(row.stats, sums, static_cast<T>(p.call.d), 1 / kSmallRstd<T>);
}

// One loop goes through a row for its sums, and through the row before it, whose sums are known, to write it: the one computes while
// the other waits for memory.
template <class Norm, class Access, Form kForm, bool kSums, bool kWrites, class Streaming, class T = typename Access::T>
ADDNORM_OUTLINE typename Norm::template Gradient<T> backward_pass(const BackwardPlan<Access>& plan, const BackwardRow<Norm, T>& next,
                                                                   const BackwardRow<Norm, T>& before, typename Norm::template Gradient<T> gradient,
                                                                   const uint16_t* lanes, Streaming streaming) {
  constexpr bool kFull = kForm == Form::full, kReadsDs = kFull || kForm == Form::dy_ds || kForm == Form::dropout_ds;
  constexpr int kRowTerms = Norm::kGradientSums;
  const BackwardPlan<Access> p = plan;  // copies: what no store can change stays in registers
  const BackwardRow<Norm, T> summed = next;
  const BackwardRow<Norm, T> row = before.with(gradient);
  T sums[kRowTerms + kFull];
  row_sums<Access::kCompact>(p.call.d, sums, [&](int64_t c, auto n, auto accumulators) ADDNORM_LAMBDA {
    using N = decltype(n);
    if (kSums && streaming) Access::fetch(summed.dy, c, n), Access::fetch(summed.z, c, n);
    if (kWrites && kReadsDs && streaming && row.ds) Access::fetch(row.ds, c, n);
    const auto weights = parameter<Access>(p.weight, c, n);
    const std::conditional_t<kSums, SumStep<Norm, Access, N>, NoStep> sum(p, summed, c, n);
    std::conditional_t<kWrites, WriteStep<Norm, Access, kForm, N, Streaming>, NoStep> write(p, row, lanes, c, n, streaming);
    each<kPieces<T>>([&](auto u) ADDNORM_LAMBDA {
      const Piece<T> weight = weights.get(u);
      if (!kFull || p.has_dy) sum.add(u, weight, accumulators[u]);
      write.put(u, weight, accumulators[u]);
    });
    write.close();
  });
  if constexpr (kWrites && kFull)
    if (p.call.drow_scale.data) store_scalar(p.call.drow_scale, row.row, sums[kRowTerms]);
  if constexpr (kSums) return Norm::gradient(summed.stats, sums, static_cast<T>(p.call.d), T(1));
  else return {};
}

// The rows of the blocks [begin, end).
template <class Norm, class Access, Form kForm, class Streaming> inline void backward_range(void* context, int64_t begin, int64_t end) {
  using Row = BackwardRow<Norm, typename Access::T>;
  const auto& job = *static_cast<const BackwardJob<Access>*>(context);
  BackwardPlan<Access> p = job.plan;
  const Backward& b = p.call;
  const int64_t space = b.dropout.on ? lane_space(b.d) : 0;
  Scratch scratch(Scratch::rows, Scratch::space<uint16_t>(space) + p.space() + job.partials.groups_space());
  p.take(scratch);
  auto* const groups = job.partials.take_groups(scratch);
  uint16_t* const lanes = scratch.take<uint16_t>(space);
  std::optional<RoundKeys> keys;
  if (b.dropout.on) keys.emplace(b.dropout.seed);
  const FlushDenormals flush(p.has_dy);  // without dy, ds passes as it is
  const Streaming streaming(p.streaming);
  const auto draw = [&](const Row& row) { if (keys) kept_lanes(lanes, b.d, b.dropout.threshold, *keys, static_cast<uint64_t>(row.row)); };

  std::optional<Row> rows[2];  // the one that is summed and the one before it, in turn: a copy would wait for the stores
  typename Norm::template Gradient<typename Access::T> gradient = {};
  int64_t count = 0;
  for (int64_t block = begin; block < end; ++block) {
    ColumnTotals<typename Access::T> totals;
    for (int64_t i = job.blocks.begin(block); i < job.blocks.end(block); ++i, ++count) {
      const int64_t place = i - job.blocks.begin(block);
      const bool opens = place % RowBlocks::kGroup == 0;
      if (opens) totals = job.partials.totals_of(block, place / RowBlocks::kGroup, groups), totals.clear(b.d);
      const Row& row = rows[count % 2].emplace(b, i, totals);
      if (count) {
        const Row& before = *rows[1 - count % 2];
        draw(before);
        gradient = backward_pass<Norm, Access, kForm, true, true>(p, row, before, gradient, lanes, streaming);
        if (opens) job.partials.complete(begin, i - 1, groups);
      } else {
        gradient = backward_pass<Norm, Access, kForm, true, false>(p, row, row, gradient, lanes, streaming);
      }
      if (p.has_dy && row.stats.rstd < kSmallRstd<typename Access::T>) gradient = gradient_of_large(p, row);
    }
  }
  if (!count) return;
  const Row& last = *rows[1 - count % 2];
  draw(last);
  backward_pass<Norm, Access, kForm, false, true>(p, last, last, gradient, lanes, streaming);
  job.partials.complete(begin, job.blocks.end(end - 1) - 1, groups);
  if (p.streaming) stream_fence();
}

template <class Norm, class Access, Form kForm> inline void backward_with(const Backward& b, const Runtime& runtime) {
  using T = typename Access::T;
  const RowBlocks blocks(b.rows);
  Partials<Access> partials(b, blocks);
  Scratch scratch(Scratch::call, partials.space());
  partials.place(scratch);
  int64_t written = 0;
  for (const Matrix* m : {&b.dx, &b.dresidual})
    if (m->data) written += b.rows * b.d * element_bytes(m->dtype);
  const BackwardPlan<Access> plan = {
      b,
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
    if (elements < kParallelElements || blocks.count() < 2) backward_range<Norm, Access, kForm, Streaming>(&job, 0, blocks.count());
    else runtime.parallel_for(blocks.count(), 1, &job, backward_range<Norm, Access, kForm, Streaming>);
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
