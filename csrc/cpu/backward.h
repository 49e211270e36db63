// The backward, one text for every norm, access policy and instruction set. With G = (weight_offset + weight) * dy:
//
//   dz = (G - mean(G) - xhat * mean(G * xhat)) * rstd + ds        (rms: without mean(G))
//   dresidual = residual_scale * dz;  dx = row_scale * branch_scale * keep * dz
//
// xhat comes from the stored z and statistics. A row is gone through twice: for its sums, and to be written.
#pragma once

#include <optional>

#include "column_sums.h"
#include "forward.h"
#include "isa/denormals.h"

namespace addnorm::ADDNORM_ISA {

template <class Access> struct BackwardPlan {
  using T = typename Access::T;
  using P = Parameter<Access>;
  const Backward& call;
  T residual_scale, keep_scale;
  bool has_dy, has_ds;
  bool needs_branch;  // x and branch_bias, for a scale's gradient
  bool streaming;
  const T *weight = nullptr, *branch_bias = nullptr, *branch_scale = nullptr;  // of the thread at work

  // Ones in place of no weight: what asks at each step costs more than the product.
  Vector gain() const {
    static T one = 1;
    return call.weight.data ? call.weight : Vector{&one, P::kDType, true};
  }

  int64_t space() const {
    return P::space(gain(), call.d, call.weight_offset) + P::space(call.branch_bias, call.d) + P::space(call.branch_scale, call.d);
  }
  void take(Scratch& scratch) {
    weight = P::of(gain(), call.d, scratch, call.weight_offset);
    branch_bias = P::of(call.branch_bias, call.d, scratch);
    branch_scale = P::of(call.branch_scale, call.d, scratch);
  }
};

template <class Access> struct BackwardJob {
  BackwardPlan<Access> plan;
  RowBlocks blocks;
  Partials<Access>& partials;
};

// The usual calls have a text of their own, with neither branch nor detour in it: dz alone is written (`dy`), or also its kept part
// (`dropout`), with or without a gradient of the stream. `full` is everything else.
enum class Form { dy, dy_ds, dropout, dropout_ds, full };

// A row at hand; pointers are null where there is nothing. `out` is what is written first: dresidual, or else dx.
template <class Norm, class T> struct BackwardRow {
  int64_t row;
  const char *dy, *ds, *z, *x;
  char *dx, *dresidual, *out;
  typename Norm::template Row<T> stats;
  typename Norm::template Gradient<T> gradient = {};  // known when the row is summed
  T row_scale;
  ColumnTotals<T> totals;

  BackwardRow(const Backward& b, int64_t row, const ColumnTotals<T>& totals)
      : row(row), dy(row_pointer(b.dy, row)), ds(row_pointer(b.ds, row)), z(row_pointer(b.z, row)), x(row_pointer(b.x, row)),
        dx(row_pointer(b.dx, row)), dresidual(row_pointer(b.dresidual, row)), out(dresidual ? dresidual : dx),
        stats(static_cast<const typename Norm::template Row<T>*>(b.stats)[row]), row_scale(row_value<T>(b.row_scale, row)), totals(totals) {}

  BackwardRow with(const typename Norm::template Gradient<T>& known) const {
    BackwardRow result = *this;
    result.gradient = known;
    return result;
  }
};

// What 32 columns of a row add to the sums that its gradient rests on.
template <class Norm, class Access, class N> struct SumStep {
  using T = typename Access::T;
  using Reader32 = decltype(Access::reader(DType::f32, static_cast<const char*>(nullptr), 0, N{}));
  const BackwardRow<Norm, T>& row;
  Reader32 dys, zs;

  ADDNORM_INLINE SumStep(const BackwardPlan<Access>& p, const BackwardRow<Norm, T>& row, int64_t c, N n)
      : row(row), dys(Access::reader(p.call.dy.dtype, row.dy, c, n)), zs(Access::reader(p.call.z.dtype, row.z, c, n)) {}
  ADDNORM_INLINE void add(int u, Piece<T> weight, Piece<T>* sums) const {
    Norm::add_gradient(row.stats, sums, dys.get(u) * weight, zs.get(u));
  }
};

// dz in 32 columns of a row; what they add to dweight and dbias is added.
template <class Norm, class Access, Form kForm, class N> struct SumGradient {
  using T = typename Access::T;
  using Reader32 = decltype(Access::reader(DType::f32, static_cast<const char*>(nullptr), 0, N{}));
  const BackwardPlan<Access>& p;
  const BackwardRow<Norm, T>& row;
  int64_t c;
  Reader32 dys, zs, dss;

  ADDNORM_INLINE SumGradient(const BackwardPlan<Access>& p, const BackwardRow<Norm, T>& row, int64_t c, N n)
      : p(p), row(row), c(c), dys(Access::reader(p.call.dy.dtype, row.dy, c, n)), zs(Access::reader(p.call.z.dtype, row.z, c, n)),
        dss(Access::reader(p.call.ds.dtype, row.ds, c, n)) {}

  ADDNORM_INLINE Piece<T> get(int u, Piece<T> weight) const {
    if constexpr (kForm == Form::full)
      if (!p.has_dy) return dss.get(u);
    const Piece<T> xhat = Norm::normalise(row.stats, row.gradient, zs.get(u)), dy = dys.get(u);
    row.totals.add_product(kWeight, c, u, dy, xhat);
    row.totals.add(kBias, c, u, dy);
    const Piece<T> dz = Norm::apply(row.stats, row.gradient, dy * weight, xhat);
    constexpr bool kHasDs = kForm == Form::dy_ds || kForm == Form::dropout_ds;
    return kHasDs || (kForm == Form::full && p.has_ds) ? dz + dss.get(u) : dz;
  }
};

// What the branch's side of the sum wants of dz in 32 columns: dx, dbranch_bias, dbranch_scale and a term of drow_scale.
template <class Norm, class Access, class N> struct BranchSide {
  using T = typename Access::T;
  using Columns32 = decltype(parameter<Access>(static_cast<const T*>(nullptr), 0, N{}));
  const BackwardPlan<Access>& p;
  const BackwardRow<Norm, T>& row;
  int64_t c;
  N n;
  decltype(Access::reader(DType::f32, static_cast<const char*>(nullptr), 0, N{})) xs;
  Columns32 bias, scale;
  BranchSide(const BackwardPlan<Access>& p, const BackwardRow<Norm, T>& row, int64_t c, N n)
      : p(p), row(row), c(c), n(n), xs(Access::reader(p.call.x.dtype, row.x, c, n)), bias(parameter<Access>(p.branch_bias, c, n)),
        scale(parameter<Access>(p.branch_scale, c, n)) {}

  ADDNORM_INLINE Piece<T> dx(int u, const uint16_t* lanes, Piece<T> dz, Piece<T>& row_sum) const {
    const Piece<T> kept = p.call.dropout.on ? keep<Access::kOrder>(lanes + c, u, p.keep_scale) : all(T(1));
    const Piece<T> scales = p.branch_scale ? scale.get(u) : all(T(1));
    if (p.needs_branch) {
      Piece<T> v = xs.get(u);
      if (p.branch_bias) v = v + bias.get(u);
      const Piece<T> term = v * kept * dz;
      row.totals.add(kBranchScale, c, u, term * row.row_scale);
      row_sum = row_sum + only<Access::kOrder>(n, u, term * scales);
    }
    const Piece<T> dx = dz * row.row_scale * scales * kept;
    row.totals.add(kBranchBias, c, u, dx);
    return dx;
  }
};

// 32 columns of a row are written.
template <class Norm, class Access, Form kForm, class N, class Streaming> struct WriteStep {
  using T = typename Access::T;
  using Writer32 = decltype(Access::writer(DType::f32, static_cast<char*>(nullptr), 0, N{}, Streaming(false)));
  static constexpr bool kDrops = kForm == Form::dropout || kForm == Form::dropout_ds, kDenormals = false;  // with dy they are flushed
  const BackwardPlan<Access>& p;
  const uint16_t* lanes;
  SumGradient<Norm, Access, kForm, N> gradient;
  Writer32 out, dx;

  ADDNORM_INLINE WriteStep(const BackwardPlan<Access>& p, const BackwardRow<Norm, T>& row, const uint16_t* lanes, int64_t c, N n,
                           Streaming streaming)
      : p(p), lanes(lanes + c), gradient(p, row, c, n), out(Access::writer(p.call.dy.dtype, row.out, c, n, streaming)),
        dx(Access::writer(p.call.dy.dtype, kDrops ? row.dx : row.out, c, n, streaming)) {}
  ADDNORM_INLINE void put(int u, Piece<T> weight, Piece<T>*) {
    const Piece<T> dz = gradient.get(u, weight);
    out.put(u, dz, kDenormals);
    if constexpr (kDrops) dx.put(u, dz * keep<Access::kOrder>(lanes, u, p.keep_scale), kDenormals);
  }
  ADDNORM_INLINE void close() const {
    out.close();
    if constexpr (kDrops) dx.close();
  }
};

// The same with everything that can be asked for.
template <class Norm, class Access, class N, class Streaming> struct WriteStep<Norm, Access, Form::full, N, Streaming> {
  using T = typename Access::T;
  using Writer32 = decltype(Access::writer(DType::f32, static_cast<char*>(nullptr), 0, N{}, Streaming(false)));
  const BackwardPlan<Access>& p;
  const BackwardRow<Norm, T>& row;
  const uint16_t* lanes;
  SumGradient<Norm, Access, Form::full, N> gradient;
  BranchSide<Norm, Access, N> branch;
  Writer32 dxs, dresiduals;

  ADDNORM_INLINE WriteStep(const BackwardPlan<Access>& p, const BackwardRow<Norm, T>& row, const uint16_t* lanes, int64_t c, N n,
                           Streaming streaming)
      : p(p), row(row), lanes(lanes), gradient(p, row, c, n), branch(p, row, c, n),
        dxs(Access::writer(p.call.dx.dtype, row.dx, c, n, streaming)),
        dresiduals(Access::writer(p.call.dresidual.dtype, row.dresidual, c, n, streaming)) {}
  ADDNORM_INLINE void put(int u, Piece<T> weight, Piece<T>* sums) {
    const Piece<T> dz = gradient.get(u, weight);
    if (row.dresidual) dresiduals.put(u, dz * p.residual_scale);
    const Piece<T> dx = branch.dx(u, lanes, dz, sums[Norm::kGradientSums]);
    if (row.dx) dxs.put(u, dx);
  }
  ADDNORM_INLINE void close() const {
    if (row.dresidual) dresiduals.close();
    if (row.dx) dxs.close();
  }
};

// No row to sum or to write.
struct NoStep {
  template <class... A> ADDNORM_INLINE NoStep(const A&...) {}
  template <class... A> ADDNORM_INLINE void add(const A&...) const {}
  template <class... A> ADDNORM_INLINE void put(const A&...) const {}
  ADDNORM_INLINE void close() const {}
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
