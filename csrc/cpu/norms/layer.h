// LayerNorm by the corrected two-pass: the mean is the unevaluated sum mean + correction, for the rounded mean alone is what
// limits (z - mean) / s at a large mean.
//
// A norm is a struct like this one: statistics from sums over z (first) and then over z and the row (second), the
// normalised value, and the gradient through it from sums over G = gain * dy and xhat.
#pragma once

#include "../simd.h"

namespace addnorm::ADDNORM_ISA {

struct Layer {
  static constexpr int kFirstSums = 1, kSecondSums = 2, kGradientSums = 2;

  template <class T> struct Row { T mean, correction, rstd; };

  template <class T> static ADDNORM_INLINE void add_first(Pair<T>* sums, Pair<T> z) { sums[0] = sums[0] + z; }
  template <class T> static ADDNORM_INLINE void after_first(Row<T>& row, const T* sums, T d, T) { row.mean = sums[0] / d; }

  template <class T> static ADDNORM_INLINE Pair<T> second_term(const Row<T>& row, Pair<T> z) { return z - splat(row.mean); }
  template <class T> static ADDNORM_INLINE void add_second(Pair<T>* sums, Pair<T> deviation) {
    sums[0] = sums[0] + deviation;
    sums[1] = fma(deviation, deviation, sums[1]);
  }
  template <class T> static ADDNORM_INLINE void after_second(Row<T>& row, const T* sums, T d, T eps) {
    row.correction = sums[0] / d;
    const T variance = sums[1] / d - row.correction * row.correction;
    row.rstd = T(1) / square_root((variance < 0 ? T(0) : variance) + eps);  // written so that NaN survives
  }

  template <class T> static ADDNORM_INLINE Pair<T> normalise(const Row<T>& row, Pair<T> z) {
    return (z - splat(row.mean) - splat(row.correction)) * splat(row.rstd);
  }

  template <class T> static ADDNORM_INLINE void add_gradient(Pair<T>* sums, Pair<T> g, Pair<T> xhat) {
    sums[0] = sums[0] + g;
    sums[1] = fma(g, xhat, sums[1]);
  }
  // (g - mean(g) - xhat * mean(g * xhat)) * rstd
  template <class T> static ADDNORM_INLINE Pair<T> gradient(const Row<T>& row, const T* means, Pair<T> g, Pair<T> xhat) {
    const T rstd = row.rstd;
    return fma(xhat, splat(-means[1] * rstd), fma(g, splat(rstd), splat(-means[0] * rstd)));
  }
};

}  // namespace addnorm::ADDNORM_ISA
