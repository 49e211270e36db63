// RMSNorm: no mean, so the terms are z itself.
#pragma once

#include "../sums.h"

namespace addnorm::ADDNORM_ISA {

struct Rms {
  static constexpr int kSums = 1, kGradientSums = 1;
  static constexpr bool kShifts = false;

  template <class T> struct Row { T rstd; };

  // ---- forward
  template <class T> static ADDNORM_INLINE Piece<T> term(const Row<T>&, Piece<T> z) { return z; }
  template <class T> static ADDNORM_INLINE void add(Piece<T>* sums, Piece<T> z) { sums[0] = fma(z, z, sums[0]); }
  template <class T> static ADDNORM_INLINE bool finish(Row<T>& row, const T* sums, T d, T eps) {
    row.rstd = T(1) / square_root(sums[0] / d + eps);
    return sums[0] != kInfinity<T>;
  }
  template <Order kOrder, class T> static ADDNORM_OUTLINE void refine(Row<T>& row, const T* terms, int64_t d, T eps) {
    T sums[1];
    row_sums<true>(d, sums, [&](int64_t c, auto n, auto sum) ADDNORM_LAMBDA {
      each<kPieces<T>>([&](auto u) ADDNORM_LAMBDA { add(sum[u], only<kOrder>(n, u, load_piece<T>(terms + c, u) * kShrink<T>)); });
    });
    finish(row, sums, static_cast<T>(d), eps * kShrink<T> * kShrink<T>);
    row.rstd *= kShrink<T>;
  }
  template <class T> static ADDNORM_INLINE Piece<T> normalise_term(const Row<T>& row, Piece<T> z) { return z * row.rstd; }
  template <class T> static ADDNORM_INLINE Row<T> statistics(const Row<T>& row) { return row; }

  // ---- backward: dz = (g - xhat * mean(g * xhat)) * rstd, from the sum over g * z, which is to be multiplied by `grow`
  template <class T> struct Gradient { T slope; };  // dz = g * rstd + xhat * slope

  template <class T> static ADDNORM_INLINE void add_gradient(const Row<T>&, Piece<T>* sums, Piece<T> g, Piece<T> z) { sums[0] = fma(g, z, sums[0]); }
  template <class T> static ADDNORM_INLINE Gradient<T> gradient(const Row<T>& row, const T* sums, T d, T grow) {
    return {-(sums[0] / d * row.rstd * grow) * row.rstd};
  }
  template <class T> static ADDNORM_INLINE Piece<T> normalise(const Row<T>& row, const Gradient<T>&, Piece<T> z) { return z * row.rstd; }
  template <class T> static ADDNORM_INLINE Piece<T> apply(const Row<T>& row, const Gradient<T>& gradient, Piece<T> g, Piece<T> xhat) {
    return fma(xhat, gradient.slope, g * row.rstd);
  }
};

}  // namespace addnorm::ADDNORM_ISA
