// Denormals as zeros, while one of these lives.
//
// A product that takes or gives a denormal costs an Intel core some 150 cycles: 5 % of them among the gradients made the backward 20
// times slower. There an absolute error of 1e-38 is nothing; the forward keeps denormals, for z must be exact.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace addnorm::ADDNORM_ISA {

class FlushDenormals {
#if defined(__SSE2__)
 public:
  explicit FlushDenormals(bool wanted) : saved_(_mm_getcsr()) {
    if (wanted) _mm_setcsr(saved_ | 0x8040);  // flush results, read operands as zero
  }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  const unsigned saved_;
#elif defined(__aarch64__)
 public:
  explicit FlushDenormals(bool wanted) {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    if (wanted) asm volatile("msr fpcr, %0" : : "r"(saved_ | uint64_t{1} << 24));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  uint64_t saved_;
#else
 public:
  explicit FlushDenormals(bool) {}
  ~FlushDenormals() {}
#endif
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;
};

}  // namespace addnorm::ADDNORM_ISA
