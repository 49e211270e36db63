// What AVX-512 (F, BW, VL, DQ; BF16 where it is compiled for that) offers beyond the portable vector arithmetic of simd.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#define ADDNORM_INLINE inline __attribute__((always_inline))

namespace addnorm::ADDNORM_ISA {

// GCC 12 warns about its own unmasked intrinsics: below they are masked with every lane on, which costs nothing.
constexpr __mmask16 kAll = 0xffff;

constexpr int kNativeBytes = 64;
constexpr bool kMaskedBytes = true;  // load_bytes and store_bytes exist

ADDNORM_INLINE __m512 multiply_add(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
ADDNORM_INLINE __m512d multiply_add(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }

// The product of the low 32 bits of each 64-bit lane.
ADDNORM_INLINE __m512i multiply_low(__m512i a, uint32_t b) { return _mm512_maskz_mul_epu32(0xff, a, _mm512_set1_epi64(b)); }

// 16-bit lanes: `odd` where the lane number is odd, else `even`.
ADDNORM_INLINE __m512i blend_odd(__m512i even, __m512i odd) { return _mm512_mask_blend_epi16(0xAAAAAAAAu, even, odd); }

// float32 bits rounded to nearest even at bit 16.
ADDNORM_INLINE __m512i round_to_bfloat16(__m512i bits) {
  const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  const __m512i up = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
  return _mm512_mask_sub_epi32(up, odd, up, _mm512_set1_epi32(-1));
}

// The processor's own rounding of two vectors to bfloat16, and their interleaving. It takes denormals for zeros.
#if defined(__AVX512BF16__)
constexpr bool kNarrowsPairs = true;
ADDNORM_INLINE bool any_denormal(__m512 a, __m512 b) {
  constexpr int kDenormal = 0x20;
  return !_kortestz_mask16_u8(_mm512_fpclass_ps_mask(a, kDenormal), _mm512_fpclass_ps_mask(b, kDenormal));
}
ADDNORM_INLINE __m512i narrow_pair(__m512 even, __m512 odd) {
  typedef uint16_t Words __attribute__((vector_size(64)));
  const Words w = (Words)_mm512_cvtne2ps_pbh(odd, even);  // 16 of even, 16 of odd
  return (__m512i)__builtin_shufflevector(w, w, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13,
                                          29, 14, 30, 15, 31);
}
#else
constexpr bool kNarrowsPairs = false;
bool any_denormal(__m512 a, __m512 b);
__m512i narrow_pair(__m512 even, __m512 odd);
#endif

ADDNORM_INLINE __mmask64 first_bytes(int bytes) { return _bzhi_u64(~0ull, bytes); }
ADDNORM_INLINE __m512i load_bytes(const void* p, int bytes) { return _mm512_maskz_loadu_epi8(first_bytes(bytes), p); }
ADDNORM_INLINE void store_bytes(void* p, __m512i v, int bytes) { _mm512_mask_storeu_epi8(p, first_bytes(bytes), v); }
using Raw = __m512i;
ADDNORM_INLINE void stream(void* p, __m512i v) { _mm512_stream_si512(static_cast<__m512i*>(p), v); }
ADDNORM_INLINE void stream_fence() { _mm_sfence(); }

// 32 float16 in column order to and from two vectors of 16.
ADDNORM_INLINE void widen_halves(__m512i h, __m512& low, __m512& high) {
  low = _mm512_maskz_cvtph_ps(kAll, (__m256i)__builtin_shufflevector(h, h, 0, 1, 2, 3));
  high = _mm512_maskz_cvtph_ps(kAll, (__m256i)__builtin_shufflevector(h, h, 4, 5, 6, 7));
}
ADDNORM_INLINE __m512i narrow_halves(__m512 low, __m512 high) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  const __m256i first = _mm512_maskz_cvtps_ph(kAll, low, kNearest), second = _mm512_maskz_cvtps_ph(kAll, high, kNearest);
  return _mm512_maskz_inserti64x4(0xff, _mm512_castsi256_si512(first), second, 1);
}

}  // namespace addnorm::ADDNORM_ISA
