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

inline int64_t row_grain(int64_t d) { return d < kParallelElements ? kParallelElements / (d > 0 ? d : 1) : 1; }

template <class Access> struct ForwardPlan {
  using T = typename Access::T;
  using P = Parameter<Access>;
  const Forward& call;
  T residual_scale, keep_scale;
  bool streaming;  // past the caches
  bool storing;    // z
  const T *weight = nullptr, *bias = nullptr, *branch_bias = nullptr, *branch_scale = nullptr;  // of the thread at work

  int64_t space() const {
    return P::space(call.weight, call.d, call.weight_offset) + P::space(call.bias, call.d) + P::space(call.branch_bias, call.d) +
           P::space(call.branch_scale, call.d);
  }
  void take(Scratch& scratch) {
    weight = P::of(call.weight, call.d, scratch, call.weight_offset);
    bias = P::of(call.bias, call.d, scratch);
    branch_bias = P::of(call.branch_bias, call.d, scratch);
    branch_scale = P::of(call.branch_scale, call.d, scratch);
  }
};

// The usual calls have a text of their own, with no detour in it: x alone, with the residual, and that with dropout; `full` is
// everything else.
enum class Sum { alone, plain, dropout, full };

// z = residual_scale * residual + row_scale * branch_scale * dropout(x + branch_bias) of a row, step by step: step(c, n, use) calls
// use(u, z) for each piece; the products are rounded one by one, so that every instruction set gives the bits of the composite.
template <class Access, Sum kSum> struct RowSum {
  using T = typename Access::T;
  const ForwardPlan<Access>& p;
  const char *x, *residual;
  const uint16_t* lanes;
  T row_scale;

  template <class N> ADDNORM_INLINE void fetch(int64_t c, N n) const {
    Access::fetch(x, c, n);
    if (kSum != Sum::alone && residual) Access::fetch(residual, c, n);
  }
  template <class N, class Use> ADDNORM_INLINE void step(int64_t c, N n, Use&& use) const {
    const Forward& f = p.call;
    const auto xs = Access::reader(f.x.dtype, x, c, n);
    if constexpr (kSum == Sum::alone) {
      each<kPieces<T>>([&](auto u) ADDNORM_LAMBDA { use(u, xs.get(u)); });
    } else if constexpr (kSum == Sum::full) {
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

// What a norm begins with: the mean of the first columns, divided before they are summed, since their sum may overflow.
template <class Norm, class Access, Sum kSum, class T = typename Access::T>
ADDNORM_INLINE void begin_row(const RowSum<Access, kSum>& z, typename Norm::template Row<T>& stats) {
  const auto mean = [&](auto head) ADDNORM_LAMBDA {
    Vec<T> first;
    z.step(0, head, [&](auto u, Piece<T> v) ADDNORM_LAMBDA {
      v = only<Access::kOrder>(head, u, v) * (T(1) / kStep);
      first.part[u] = v.a + v.b;
    });
    Norm::begin(stats, sum(first), T(head.count) / kStep);
  };
  const int64_t d = z.p.call.d;
  if (!Access::kCompact && d >= kStep) mean(Whole{});
  else mean(Some{static_cast<int>(d < kStep ? d : kStep)});
}

// What is left to do of a row whose terms are summed up: its output, 32 columns at a time.
template <class Norm, class Access, class Streaming> struct RowOutput {
  using T = typename Access::T;
  const ForwardPlan<Access>* plan;
  Streaming streaming;
  typename Norm::template Row<T> stats;
  char* y;

  template <class N> struct Step {
    const RowOutput& row;
    decltype(parameter<Access>(static_cast<const T*>(nullptr), 0, N{})) weights, biases;
    decltype(Access::writer(DType::f32, static_cast<char*>(nullptr), 0, N{}, Streaming(false))) target;

    ADDNORM_INLINE Step(const RowOutput& row, int64_t c, N n)
        : row(row), weights(parameter<Access>(row.plan->weight, c, n)), biases(parameter<Access>(row.plan->bias, c, n)),
          target(Access::writer(row.plan->call.y.dtype, row.y, c, n, row.streaming)) {}
    ADDNORM_INLINE void put(int u, Piece<T> term) {
      const ForwardPlan<Access>& p = *row.plan;
      Piece<T> v = Norm::normalise_term(row.stats, term);
      if (p.weight && p.bias) v = fma(v, weights.get(u), biases.get(u));
      else if (p.weight) v = v * weights.get(u);
      else if (p.bias) v = v + biases.get(u);
      target.put(u, v);
    }
    ADDNORM_INLINE void close() { target.close(); }
  };
  template <class N> ADDNORM_INLINE Step<N> step(int64_t c, N n) const { return Step<N>(*this, c, n); }
};

// The same of no row.
struct NoOutput {
  struct Step {
    template <class Term> ADDNORM_INLINE void put(int, Term) {}
    ADDNORM_INLINE void close() {}
  };
  template <class N> ADDNORM_INLINE Step step(int64_t, N) const { return {}; }
};

// The first pass over a row: z goes to memory if asked for, its terms to the buffer, and their sums into `sums`. The terms take the place
// of those of the row before, which is written meanwhile.
template <class Norm, class Access, Sum kSum, class Storing, class Output, class Streaming, class T = typename Access::T>
ADDNORM_INLINE void sum_row(const RowSum<Access, kSum>& z, int64_t row, T* terms, const typename Norm::template Row<T> begun, Streaming streaming,
                            Storing storing, T (&sums)[Norm::kSums], const Output& before) {
  const Forward& f = z.p.call;
  char* const stored = row_pointer(f.z, row);
  row_sums<Access::kCompact>(f.d, sums, [&](int64_t c, auto n, auto accumulators) ADDNORM_LAMBDA {
    auto target = Access::writer(f.z.dtype, stored, c, n, streaming);
    auto output = before.step(c, n);
    if (streaming) z.fetch(c, n);
    z.step(c, n, [&](auto u, Piece<T> v) ADDNORM_LAMBDA {
      if (storing) target.put(u, v);
      const Piece<T> term = only<Access::kOrder>(n, u, Norm::term(begun, v)), last = load_piece<T>(terms + c, u);
      store_piece(terms + c, u, term);
      Norm::add(accumulators[u], term);
      output.put(u, last);
    });
    if (storing) target.close();
    output.close();
  });
}

// Rows [begin, end). While a row is summed, the one before it is written: neither pass waits for memory alone.
template <class Norm, class Access, Sum kSum, class Streaming, class Storing>
inline void forward_range(void* context, int64_t begin, int64_t end) {
  using T = typename Access::T;
  using Row = typename Norm::template Row<T>;
  using Output = RowOutput<Norm, Access, Streaming>;
  if (begin == end) return;
  ForwardPlan<Access> plan = *static_cast<const ForwardPlan<Access>*>(context);
  const Forward& f = plan.call;
  const int64_t d = f.d, space = f.dropout.on ? lane_space(d) : 0;
  Scratch scratch(Scratch::rows, plan.space() + apart_space<T>(d) + Scratch::space<uint16_t>(space));
  plan.take(scratch);
  T* const terms = take_apart<T>(scratch, d, {f.x.data, f.residual.data, plan.weight, plan.bias});
  uint16_t* const lanes = scratch.take<uint16_t>(space);
  const ForwardPlan<Access> p = plan;  // what no store can change stays in registers
  const Streaming streaming(p.streaming);
  const Storing storing(p.storing);
  std::optional<RoundKeys> keys;
  if (f.dropout.on) keys.emplace(f.dropout.seed);

  const auto sum = [&](int64_t row, const auto& before) ADDNORM_LAMBDA {
    if ((kSum == Sum::dropout || kSum == Sum::full) && keys) kept_lanes(lanes, d, f.dropout.threshold, *keys, static_cast<uint64_t>(row));
    const RowSum<Access, kSum> z = {p, row_pointer(f.x, row), row_pointer(f.residual, row), lanes,
                                    kSum == Sum::full ? row_value<T>(f.row_scale, row) : T(1)};
    Row stats;
    T sums[Norm::kSums];
    if constexpr (Norm::kShifts) begin_row<Norm>(z, stats);
    sum_row<Norm>(z, row, terms, stats, streaming, storing, sums, before);
    const T eps = static_cast<T>(f.eps);
    if (!Norm::finish(stats, sums, static_cast<T>(d), eps)) Norm::template refine<Access::kOrder>(stats, terms, d, eps);
    if (f.stats) static_cast<Row*>(f.stats)[row] = Norm::statistics(stats);
    return Output{&p, streaming, stats, row_pointer(f.y, row)};
  };
  Output output = sum(begin, NoOutput{});
  for (int64_t row = begin + 1; row < end; ++row) {
    const Output before = output;
    output = sum(row, before);
  }
  columns<Access::kCompact>(0, d, [&](int64_t c, auto n) ADDNORM_LAMBDA {
    auto step = output.step(c, n);
    each<kPieces<T>>([&](auto u) ADDNORM_LAMBDA { step.put(u, load_piece<T>(terms + c, u)); });
    step.close();
  });
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
  const int64_t written = f.rows * f.d * (element_bytes(f.y.dtype) + (f.z.data ? element_bytes(f.z.dtype) : 0));
  ForwardPlan<Access> plan = {
      f,
      static_cast<T>(f.residual_scale),
      static_cast<T>(f.dropout.keep_scale),
      streaming_pays(written, f.fresh_pages) && aligned_rows(f.y, f.d) && aligned_rows(f.z, f.d),
      f.z.data != nullptr,
  };
  const auto run = [&]<class Streaming, class Storing>(Streaming, Storing) ADDNORM_LAMBDA {
    const auto range = forward_range<Norm, Access, kSum, Streaming, Storing>;
    if (f.rows * f.d < kParallelElements) return range(&plan, 0, f.rows);
    runtime.parallel_for(f.rows, row_grain(f.d), &plan, range);
  };
  if constexpr (kSum == Sum::full) return run(plan.streaming, plan.storing);
  known(plan.streaming, [&](auto streaming) ADDNORM_LAMBDA {
    if constexpr (kSum == Sum::alone) run(streaming, Known<false>(false));
    else known(plan.storing, [&](auto storing) ADDNORM_LAMBDA { run(streaming, storing); });
  });
}

inline Sum sum_of(const Forward& f) {
  if (f.branch_bias.data || f.branch_scale.data || f.row_scale.data) return Sum::full;
  if (!f.residual.data) return f.dropout.on || f.z.data ? Sum::full : Sum::alone;
  if (f.residual_scale != 1) return Sum::full;
  return f.dropout.on ? Sum::dropout : Sum::plain;
}

// The element type that all matrices of a call share; false where they differ.
inline bool share(DType dtype, std::initializer_list<const Matrix*> matrices) {
  for (const Matrix* m : matrices)
    if (m->data && m->dtype != dtype) return false;
  return true;
}

template <class Norm, class Access> inline void forward_sum(const Forward& f, const Runtime& runtime) {
  switch (sum_of(f)) {
    case Sum::alone: return forward_with<Norm, Access, Sum::alone>(f, runtime);
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
