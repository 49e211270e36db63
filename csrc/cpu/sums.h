// Sums over a row that stay good at any width: 16 additions into one accumulator, four such sums into the next, then pairwise.
//
// As few as 16, because rounding is not fair to squares: those of numbers on a coarse grid, as z - mean is at a large mean, leave the
// remainders 0, 1 and 4 modulo 8, and are mostly rounded down. 64 additions make 1/s 3 units too large at mean 1e4, 16 less than 1.
#pragma once

#include <limits>

#include "access.h"

namespace addnorm::ADDNORM_ISA {

constexpr int64_t kInnerBlock = 16 * kStep, kOuterBlock = 4 * kInnerBlock;  // columns

// Where the sum of a row's squares is infinite, it is finite and far from zero with the row times kShrink.
template <class T> constexpr T kInfinity = std::numeric_limits<T>::infinity();
template <class T> constexpr T kShrink = static_cast<T>(sizeof(T) == 4 ? 0x1p-96 : 0x1p-768);

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

// K sums over the columns of a row: body(column, n, accumulators) adds piece u to accumulators[u][0 .. K-1].
template <bool kCompact, int K, class T, class Body> ADDNORM_INLINE void row_sums(int64_t d, T (&sums)[K], Body&& body) {
  PairwiseSum<T> tree[K];
  for (int64_t begin = 0;; begin += kOuterBlock) {
    const bool last = begin + kOuterBlock >= d;
    const int64_t end = last ? d : begin + kOuterBlock;
    Piece<T> outer[kPieces<T>][K];
    const auto clear = [&](auto& pieces) ADDNORM_LAMBDA {
      each<kPieces<T>>([&](auto u) ADDNORM_LAMBDA { each<K>([&](auto k) ADDNORM_LAMBDA { pieces[u][k] = all(T(0)); }); });
    };
    const auto total = [&](auto k) ADDNORM_LAMBDA {
      Vec<T> v;
      each<kPieces<T>>([&](auto u) ADDNORM_LAMBDA { v.part[u] = outer[u][k].a + outer[u][k].b; });
      return v;
    };
    clear(outer);
    for (int64_t inner = begin; inner < end; inner += kInnerBlock) {
      Piece<T> accumulators[kPieces<T>][K];
      clear(accumulators);
      columns<kCompact>(inner, inner + kInnerBlock < end ? inner + kInnerBlock : end, [&](int64_t column, auto n) ADDNORM_LAMBDA {
        body(column, n, accumulators);
      });
      each<kPieces<T>>([&](auto u) ADDNORM_LAMBDA {
        each<K>([&](auto k) ADDNORM_LAMBDA { outer[u][k] = outer[u][k] + accumulators[u][k]; });
      });
    }
    if (last && begin == 0) {
      each<K>([&](auto k) ADDNORM_LAMBDA { sums[k] = sum(total(k)); });
      return;
    }
    each<K>([&](auto k) ADDNORM_LAMBDA { tree[k].add(total(k)); });
    if (last) break;
  }
  each<K>([&](auto k) ADDNORM_LAMBDA { sums[k] = sum(tree[k].total()); });
}

}  // namespace addnorm::ADDNORM_ISA
