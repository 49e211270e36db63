// What the backward does to 32 columns of a row: it adds to the sums that the row's gradient rests on, or writes the gradient.
#pragma once

#include "column_sums.h"
#include "forward.h"

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

}  // namespace addnorm::ADDNORM_ISA
