// Sums over a row that stay good at any width: at most 32 additions into one accumulator, then pairwise. At 64 the squares of
// deviations from a mean of 1e4, which all lie on one grid, are rounded down so often that 1/s is 3 units off.
#pragma once

#include "simd.h"

namespace addnorm::ADDNORM_ISA {

constexpr int64_t kSumBlock = 32 * kStep;  // columns

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
  for (int64_t begin = 0;; begin += kSumBlock) {
    Pair<T> accumulators[K];
    each<K>([&](auto k) ADDNORM_LAMBDA { accumulators[k] = {splat(T(0)), splat(T(0))}; });
    const bool last = begin + kSumBlock >= d;
    columns<kCompact>(begin, last ? d : begin + kSumBlock, [&](int64_t column, auto n) ADDNORM_LAMBDA { body(column, n, accumulators); });
    if (last && begin == 0) {
      each<K>([&](auto k) ADDNORM_LAMBDA { sums[k] = sum(accumulators[k].a + accumulators[k].b); });
      return;
    }
    each<K>([&](auto k) ADDNORM_LAMBDA { tree[k].add(accumulators[k].a + accumulators[k].b); });
    if (last) break;
  }
  each<K>([&](auto k) ADDNORM_LAMBDA { sums[k] = sum(tree[k].total()); });
}

}  // namespace addnorm::ADDNORM_ISA
