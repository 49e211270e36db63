#define ADDNORM_ISA generic
#include "isa/generic.h"

#include "kernel_set.h"

namespace addnorm {
extern const Kernels k_generic;
const Kernels k_generic = {"generic", generic::forward_any, generic::backward_any, generic::move};
}  // namespace addnorm
