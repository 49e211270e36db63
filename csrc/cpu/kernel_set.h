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

// No rows: the sums over them are zero, and zero is all bits 0 in every type.
inline void clear_sums(const Backward& b) {
  for (const Vector* v : {&b.dweight, &b.dbias, &b.dbranch_bias, &b.dbranch_scale}) {
    if (v->data) __builtin_memset(v->data, 0, static_cast<size_t>((v->scalar ? 1 : b.d) * element_bytes(v->dtype)));
  }
}

inline void backward_any(const Backward& b, const Runtime& runtime) {
  if (b.rows == 0) return clear_sums(b);
  b.norm == Norm::layer ? backward<Layer>(b, runtime) : backward<Rms>(b, runtime);
}

}  // namespace addnorm::ADDNORM_ISA
