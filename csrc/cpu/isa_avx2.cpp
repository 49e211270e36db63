#define ADDNORM_ISA avx2
#include "isa/avx2.h"

#include "kernel_set.h"

namespace addnorm {
extern const Kernels k_avx2;
const Kernels k_avx2 = {"avx2", avx2::forward_any, avx2::backward_any, avx2::move};
}  // namespace addnorm
