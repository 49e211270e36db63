// RMSNorm: no mean, hence one pass.
#pragma once

#include "../simd.h"

namespace addnorm::ADDNORM_ISA {

struct Rms {
  static constexpr int kFirstSums = 1, kSecondSums = 0, kGradientSums = 1;

  template <class T> struct Row { T rstd; };

  template <class T> static ADDNORM_INLINE void add_first(Pair<T>* sums, Pair<T> z) { sums[0] = fma(z, z, sums[0]); }
  template <class T> static ADDNORM_INLINE void after_first(Row<T>& row, const T* sums, T d, T eps) {
    row.rstd = T(1) / square_root(sums[0] / d + eps);
  }

  template <class T> static ADDNORM_INLINE Pair<T> normalise(const Row<T>& row, Pair<T> z) { return z * splat(row.rstd); }

  template <class T> static ADDNORM_INLINE void add_gradient(Pair<T>* sums, Pair<T> g, Pair<T> xhat) { sums[0] = fma(g, xhat, sums[0]); }
  // (g - xhat * mean(g * xhat)) * rstd
  template <class T> static ADDNORM_INLINE Pair<T> gradient(const Row<T>& row, const T* means, Pair<T> g, Pair<T> xhat) {
    return fma(xhat, splat(-means[0] * row.rstd), g * splat(row.rstd));
  }
};

}  // namespace addnorm::ADDNORM_ISA
