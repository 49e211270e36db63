// Included by one isa_*.cpp per instruction set, each compiled for its own: everything lives in a namespace of its own, so that
// the linker never takes one set's code for another's.
#pragma once

#include "backward.h"
#include "floor.h"
#include "norms/layer.h"
#include "norms/rms.h"

namespace addnorm::ADDNORM_ISA {

inline void forward_any(const Forward& f, const Runtime& runtime) {
  if (f.rows == 0) return;
  f.norm == Norm::layer ? forward<Layer>(f, runtime) : forward<Rms>(f, runtime);
}

inline void backward_any(const Backward& b, const Runtime& runtime) {
  b.norm == Norm::layer ? backward<Layer>(b, runtime) : backward<Rms>(b, runtime);
}

}  // namespace addnorm::ADDNORM_ISA
