// The streaming floor: the bytes of a call moved with no arithmetic to speak of, which is what a kernel is measured against.
#pragma once

#include "elements.h"
#include "kernels.h"

namespace addnorm::ADDNORM_ISA {

// Each write is the sum of the reads. A step is 32 columns.
template <int kReads, int kWrites> inline void move_range(void* context, int64_t begin, int64_t end) {
  const Stream s = *static_cast<const Stream*>(context);
  for (int64_t c = begin * kStep; c < end * kStep; c += kStep) {
    Pair<float> v = load_pair<float>(s.reads[0] + c, Whole{});
    each<kReads - 1>([&](auto i) ADDNORM_LAMBDA { v = v + load_pair<float>(s.reads[i.value + 1] + c, Whole{}); });
    each<kWrites>([&](auto i) ADDNORM_LAMBDA { store_pair(s.writes[i.value] + c, Whole{}, v, s.non_temporal); });
  }
  if (s.non_temporal) stream_fence();
}

inline void move(const Stream& s, const Runtime& runtime) {
  constexpr int64_t kGrain = 16384 / kStep;
  using Range = void (*)(void*, int64_t, int64_t);
  constexpr Range ranges[kMaxStreamReads][kMaxStreamWrites] = {
      {move_range<1, 1>, move_range<1, 2>},
      {move_range<2, 1>, move_range<2, 2>},
      {move_range<3, 1>, move_range<3, 2>},
      {move_range<4, 1>, move_range<4, 2>},
  };
  runtime.parallel_for(s.count / kStep, kGrain, const_cast<Stream*>(&s), ranges[s.read_count - 1][s.write_count - 1]);
}

}  // namespace addnorm::ADDNORM_ISA
