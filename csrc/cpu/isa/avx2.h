// What AVX2, FMA and F16C offer beyond the portable vector arithmetic of simd.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#define ADDNORM_INLINE inline __attribute__((always_inline))

namespace addnorm::ADDNORM_ISA {

constexpr int kNativeBytes = 32;
constexpr bool kMaskedBytes = false;   // load_bytes and store_bytes do not exist
constexpr bool kNarrowsPairs = false;  // nor do any_denormal and narrow_pair

ADDNORM_INLINE __m256 multiply_add(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
ADDNORM_INLINE __m256d multiply_add(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }

// The product of the low 32 bits of each 64-bit lane.
ADDNORM_INLINE __m256i multiply_low(__m256i a, uint32_t b) { return _mm256_mul_epu32(a, _mm256_set1_epi64x(b)); }

// 16-bit lanes: `odd` where the lane number is odd, else `even`.
ADDNORM_INLINE __m256i blend_odd(__m256i even, __m256i odd) { return _mm256_blend_epi16(even, odd, 0xAA); }

using Raw = __m256i;

// float32 bits rounded to nearest even at bit 16.
ADDNORM_INLINE __m256i round_to_bfloat16(__m256i bits) {
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
}

Raw load_bytes(const void* p, int bytes);
void store_bytes(void* p, Raw v, int bytes);
bool any_denormal(__m256 a, __m256 b);
Raw narrow_pair(__m256 even, __m256 odd);
ADDNORM_INLINE void stream(void* p, __m256i v) { _mm256_stream_si256(static_cast<__m256i*>(p), v); }
ADDNORM_INLINE void stream_fence() { _mm_sfence(); }

// 16 float16 in column order to and from two vectors of 8.
ADDNORM_INLINE void widen_halves(__m256i h, __m256& low, __m256& high) {
  low = _mm256_cvtph_ps(_mm256_castsi256_si128(h));
  high = _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1));
}
ADDNORM_INLINE __m256i narrow_halves(__m256 low, __m256 high) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return _mm256_set_m128i(_mm256_cvtps_ph(high, kNearest), _mm256_cvtps_ph(low, kNearest));
}

}  // namespace addnorm::ADDNORM_ISA
