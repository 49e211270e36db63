// AVX-512 with the processor's own rounding to bfloat16: a text for calls of bfloat16 alone, the others are avx512's.
#define ADDNORM_ISA avx512_bf16
#include "isa/avx512.h"

#include "kernel_set.h"

namespace addnorm {
extern const Kernels k_avx512, k_avx512_bf16;

namespace avx512_bf16 {

using Access = Same<BF16>;

static void forward_bfloat16(const Forward& f, const Runtime& runtime) {
  if (f.rows == 0 || f.f64 || !share(DType::bf16, {&f.x, &f.residual, &f.y, &f.z})) return k_avx512.forward(f, runtime);
  f.norm == Norm::layer ? forward_sum<Layer, Access>(f, runtime) : forward_sum<Rms, Access>(f, runtime);
}

static void backward_bfloat16(const Backward& b, const Runtime& runtime) {
  if (b.rows == 0 || b.f64 || !share(DType::bf16, {&b.dy, &b.ds, &b.z, &b.x, &b.dx, &b.dresidual})) return k_avx512.backward(b, runtime);
  b.norm == Norm::layer ? backward_form<Layer, Access>(b, runtime) : backward_form<Rms, Access>(b, runtime);
}

}  // namespace avx512_bf16

const Kernels k_avx512_bf16 = {"avx512_bf16", avx512_bf16::forward_bfloat16, avx512_bf16::backward_bfloat16, avx512_bf16::move};

}  // namespace addnorm
