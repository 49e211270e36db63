#define ADDNORM_ISA avx512
#include "isa/avx512.h"

#include "kernel_set.h"

namespace addnorm {
extern const Kernels k_avx512;
const Kernels k_avx512 = {"avx512", avx512::forward_any, avx512::backward_any, avx512::move};
}  // namespace addnorm
