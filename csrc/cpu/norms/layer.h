// LayerNorm: as exact as the corrected two-pass at any mean, in one pass.
//
// The terms are d = z - shift, with the mean of the first columns for a shift; e = mean(d) and v = mean(d^2) - e^2. As long as 4 e^2 <= v
// the subtraction costs nothing to speak of; the rare row that begins far from its mean is gone through again, and so is one whose
// squares overflow, scaled down. The mean is the unevaluated sum shift + e, since the rounded mean alone would limit (z - mean) / s
// where the mean is large.
//
// A norm is a struct like this one: the terms and their sums, the statistics, the normalised value, and the gradient through
// it from the sums over G = gain * dy.
#pragma once

#include "../sums.h"

namespace addnorm::ADDNORM_ISA {

struct Layer {
  static constexpr int kSums = 2, kGradientSums = 2;
  static constexpr bool kShifts = true;

  template <class T> struct Row { T mean, correction, rstd; };

  // ---- forward
  template <class T> static ADDNORM_INLINE void begin(Row<T>& row, T sum, T count) { row.mean = sum / count; }
  template <class T> static ADDNORM_INLINE Piece<T> term(const Row<T>& row, Piece<T> z) { return z - row.mean; }
  template <class T> static ADDNORM_INLINE void add(Piece<T>* sums, Piece<T> term) {
    sums[0] = sums[0] + term;
    sums[1] = fma(term, term, sums[1]);
  }
  // False: the shift was too far off, or a square overflowed.
  template <class T> static ADDNORM_INLINE bool finish(Row<T>& row, const T* sums, T d, T eps) {
    row.correction = sums[0] / d;
    const T square = row.correction * row.correction, variance = sums[1] / d - square;
    row.rstd = T(1) / square_root((variance < 0 ? T(0) : variance) + eps);  // written so that NaN survives
    return !(4 * square > variance || sums[1] == kInfinity<T>);
  }
  // The sums once more, around the mean that the first ones gave; where they overflowed, scaled down, and a mean first.
  template <Order kOrder, class T> static ADDNORM_OUTLINE void refine(Row<T>& row, const T* terms, int64_t d, T eps) {
    const bool overflowed = !(row.rstd > 0);
    const T scale = overflowed ? kShrink<T> : T(1);
    const auto around = [&](T center) {
      T sums[2];
      row_sums<true>(d, sums, [&](int64_t c, auto n, auto sum) ADDNORM_LAMBDA {
        each<kPieces<T>>([&](auto u) ADDNORM_LAMBDA { add(sum[u], only<kOrder>(n, u, load_piece<T>(terms + c, u) * scale - center)); });
      });
      Row<T> found;
      finish(found, sums, static_cast<T>(d), eps * scale * scale);
      found.correction += center;
      return found;
    };
    const Row<T> found = around(overflowed ? around(0).correction : row.correction);
    const T rstd = found.rstd * scale, largest = T(1) / square_root(eps);  // of a constant row: the scaled eps is 0
    row.correction = found.correction / scale;
    row.rstd = rstd > largest ? largest : rstd;
  }
  template <class T> static ADDNORM_INLINE Piece<T> normalise_term(const Row<T>& row, Piece<T> term) {
    return fma(term, row.rstd, -row.correction * row.rstd);  // the product is at most the largest |xhat|
  }
  // As they are kept: the mean rounded, the correction what it lacks.
  template <class T> static ADDNORM_INLINE Row<T> statistics(const Row<T>& row) {
    const T mean = row.mean + row.correction, added = mean - row.mean;
    return {mean, (row.mean - (mean - added)) + (row.correction - added), row.rstd};
  }

  // ---- backward: dz = (g - mean(g) - xhat * mean(g * xhat)) * rstd, from sums over g and g * (z - mean), which are to be
  // multiplied by `grow`
  template <class T> struct Gradient { T shift, slope, offset; };  // xhat = (z - mean) * rstd + shift, dz = g * rstd + xhat * slope + offset

  template <class T> static ADDNORM_INLINE void add_gradient(const Row<T>& row, Piece<T>* sums, Piece<T> g, Piece<T> z) {
    sums[0] = sums[0] + g;
    sums[1] = fma(g, z - row.mean, sums[1]);
  }
  template <class T> static ADDNORM_INLINE Gradient<T> gradient(const Row<T>& row, const T* sums, T d, T grow) {
    const T mean_g = sums[0] / d, mean_gxhat = (sums[1] / d - row.correction * mean_g) * row.rstd;
    return {-row.correction * row.rstd, -(mean_gxhat * grow) * row.rstd, -(mean_g * grow) * row.rstd};
  }
  template <class T> static ADDNORM_INLINE Piece<T> normalise(const Row<T>& row, const Gradient<T>& gradient, Piece<T> z) {
    return fma(z - row.mean, row.rstd, gradient.shift);
  }
  template <class T> static ADDNORM_INLINE Piece<T> apply(const Row<T>& row, const Gradient<T>& gradient, Piece<T> g, Piece<T> xhat) {
    return fma(g, row.rstd, fma(xhat, gradient.slope, gradient.offset));
  }
};

}  // namespace addnorm::ADDNORM_ISA
