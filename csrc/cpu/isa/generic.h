// 128-bit vectors through the compiler's vector extensions: any processor, arm64 and baseline x86-64 alike.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__aarch64__)
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#define ADDNORM_INLINE inline __attribute__((always_inline))

namespace addnorm::ADDNORM_ISA {

constexpr int kNativeBytes = 16;
constexpr bool kMaskedBytes = false;   // load_bytes and store_bytes do not exist
constexpr bool kNarrowsPairs = false;  // nor do any_denormal and narrow_pair

typedef float Float4 __attribute__((vector_size(16)));
typedef double Double2 __attribute__((vector_size(16)));
typedef uint32_t Word4 __attribute__((vector_size(16)));
typedef uint64_t Long2 __attribute__((vector_size(16)));

// Fused where the processor has it; baseline x86-64 does not, and the library's fmaf would cost a call per element.
#if defined(__aarch64__)
ADDNORM_INLINE Float4 multiply_add(Float4 a, Float4 b, Float4 c) { return (Float4)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
ADDNORM_INLINE Double2 multiply_add(Double2 a, Double2 b, Double2 c) { return (Double2)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
#else
ADDNORM_INLINE Float4 multiply_add(Float4 a, Float4 b, Float4 c) { return a * b + c; }
ADDNORM_INLINE Double2 multiply_add(Double2 a, Double2 b, Double2 c) { return a * b + c; }
#endif

// The product of the low 32 bits of each 64-bit lane.
ADDNORM_INLINE Word4 multiply_low(Word4 a, uint32_t b) {
#if defined(__SSE2__)
  return (Word4)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#else
  return (Word4)(((Long2)a & 0xffffffffu) * b);
#endif
}

// 16-bit lanes: `odd` where the lane number is odd, else `even`.
ADDNORM_INLINE Word4 blend_odd(Word4 even, Word4 odd) { return (even & 0xffffu) | (odd & 0xffff0000u); }

using Raw = Word4;

// float32 bits rounded to nearest even at bit 16.
ADDNORM_INLINE Word4 round_to_bfloat16(Word4 bits) { return bits + 0x7fffu + (bits >> 16 & 1u); }

Raw load_bytes(const void* p, int bytes);
void store_bytes(void* p, Raw v, int bytes);
bool any_denormal(Float4 a, Float4 b);
Raw narrow_pair(Float4 even, Float4 odd);
ADDNORM_INLINE void stream(void* p, Word4 v) { std::memcpy(p, &v, sizeof v); }
ADDNORM_INLINE void stream_fence() {}

// float16 in the low half of each 32-bit lane. No float on the way is a denormal, which may be read as zero: a subnormal is
// built on 2^-14, and that taken off again.
ADDNORM_INLINE Float4 widen_half(Word4 h) {
  const Word4 size = (h & 0x7fffu) << 13, sign = (h & 0x8000u) << 16;
  const Word4 normal = size + (112u << 23), special = size + (224u << 23);
  const Float4 subnormal = (Float4)(size + (113u << 23)) - 0x1p-14f;
  const Word4 finite = size < (1u << 23) ? (Word4)subnormal : normal;
  return (Float4)((size >= (31u << 23) ? special : finite) | sign);
}

// Round to nearest even: integer rounding above 2^-14, below it an addition which lines up the last place.
ADDNORM_INLINE Word4 narrow_half(Float4 f) {
  const Word4 bits = (Word4)f, sign = bits & 0x80000000u, size = bits ^ sign;
  const Word4 normal = (size - 0x38000000u + 0xfffu + (size >> 13 & 1)) >> 13;
  const Word4 subnormal = (Word4)((Float4)size + 0.5f) - 0x3f000000u;
  Word4 half = size < 0x38800000u ? subnormal : normal;
  half = size >= 0x47800000u ? Word4{} + 0x7c00u : half;
  half = size > 0x7f800000u ? Word4{} + 0x7e00u : half;
  return half | sign >> 16;
}

// 8 float16 in column order to and from two vectors of 4.
ADDNORM_INLINE void widen_halves(Word4 h, Float4& low, Float4& high) {
  const Float4 even = widen_half(h & 0xffffu), odd = widen_half(h >> 16);
  low = __builtin_shufflevector(even, odd, 0, 4, 1, 5);
  high = __builtin_shufflevector(even, odd, 2, 6, 3, 7);
}
ADDNORM_INLINE Word4 narrow_halves(Float4 low, Float4 high) {
  const Word4 even = narrow_half(__builtin_shufflevector(low, high, 0, 2, 4, 6));
  const Word4 odd = narrow_half(__builtin_shufflevector(low, high, 1, 3, 5, 7));
  return even | odd << 16;
}

}  // namespace addnorm::ADDNORM_ISA
