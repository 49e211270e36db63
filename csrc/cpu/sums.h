// Sums over a row that stay good at any width: 16 additions into one accumulator, four such sums into the next, then pairwise.
//
// As few as 16, because rounding is not fair to squares: those of numbers on a coarse grid, as z - mean is at a large mean, leave the
// remainders 0, 1 and 4 modulo 8, and are mostly rounded down. 64 additions make 1/s 3 units too large at mean 1e4, 16 less than 1.
#pragma once

#include "elements.h"

namespace addnorm::ADDNORM_ISA {

constexpr int64_t kInnerBlock = 16 * kStep, kOuterBlock = 4 * kInnerBlock;  // columns

// Adds vectors as a binary counter counts: two sums of equal weight make one of the next level.
template <class T> struct PairwiseSum {
  static constexpr int kLevels = 32;
  Vec<T> level[kLevels];
  uint64_t count = 0;

  ADDNORM_OUTLINE void add(Vec<T> v) {
    int i = 0;
    for (uint64_t rest = count++; rest & 1; rest >>= 1) v = level[i++] + v;
    level[i] = v;
  }
  ADDNORM_OUTLINE Vec<T> total() const {
    Vec<T> v = splat(T(0));
    int i = 0;
    for (uint64_t rest = count; rest; rest >>= 1, ++i)
      if (rest & 1) v = level[i] + v;
    return v;
  }
};

// K sums over the columns of a row: body(column, n, accumulators) adds to `Pair<T> accumulators[K]`.
template <bool kCompact, int K, class T, class Body> ADDNORM_INLINE void row_sums(int64_t d, T (&sums)[K], Body&& body) {
  PairwiseSum<T> tree[K];
  for (int64_t begin = 0;; begin += kOuterBlock) {
    const bool last = begin + kOuterBlock >= d;
    const int64_t end = last ? d : begin + kOuterBlock;
    Pair<T> outer[K];
    each<K>([&](auto k) ADDNORM_LAMBDA { outer[k] = {splat(T(0)), splat(T(0))}; });
    for (int64_t inner = begin; inner < end; inner += kInnerBlock) {
      Pair<T> accumulators[K];
      each<K>([&](auto k) ADDNORM_LAMBDA { accumulators[k] = {splat(T(0)), splat(T(0))}; });
      columns<kCompact>(inner, inner + kInnerBlock < end ? inner + kInnerBlock : end, [&](int64_t column, auto n) ADDNORM_LAMBDA {
        body(column, n, accumulators);
      });
      each<K>([&](auto k) ADDNORM_LAMBDA { outer[k] = outer[k] + accumulators[k]; });
    }
    if (last && begin == 0) {
      each<K>([&](auto k) ADDNORM_LAMBDA { sums[k] = sum(outer[k].a + outer[k].b); });
      return;
    }
    each<K>([&](auto k) ADDNORM_LAMBDA { tree[k].add(outer[k].a + outer[k].b); });
    if (last) break;
  }
  each<K>([&](auto k) ADDNORM_LAMBDA { sums[k] = sum(tree[k].total()); });
}

}  // namespace addnorm::ADDNORM_ISA
