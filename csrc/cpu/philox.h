// Dropout's random lanes: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//
// Key: the seed. Counter: (row, column / 8), 64 bits each. The four words of a block are eight 16-bit lanes, in column order.
// A mask is thus a pure function of (seed, row, column), whatever the width, the instruction set and the number of threads.
#pragma once

#include "elements.h"

namespace addnorm::ADDNORM_ISA {

typedef uint64_t Counters __attribute__((vector_size(kNativeBytes)));

constexpr int kBlocks = kNativeBytes / 8;    // Philox blocks in flight: one 32-bit word of each in a 64-bit lane
constexpr int kBlockColumns = 8;

// The memory that the lanes of a row of d columns take, in lanes.
inline int64_t lane_space(int64_t d) { return (d + 63) / 64 * 64; }

// Lane 2j holds block j and lane 2j + 1 block kBlocks/2 + j, so that unpacking brings the blocks out in order.
ADDNORM_INLINE Counters first_blocks() {
  Counters blocks = {};
  for (int i = 0; i < kBlocks; ++i) blocks[i] = static_cast<uint64_t>(i / 2 + i % 2 * (kBlocks / 2));
  return blocks;
}

template <class V> ADDNORM_INLINE V unpack_low(V a, V b) {
  if constexpr (kBlocks == 8) return __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14);
  else if constexpr (kBlocks == 4) return __builtin_shufflevector(a, b, 0, 4, 2, 6);
  else return __builtin_shufflevector(a, b, 0, 2);
}
template <class V> ADDNORM_INLINE V unpack_high(V a, V b) {
  if constexpr (kBlocks == 8) return __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
  else if constexpr (kBlocks == 4) return __builtin_shufflevector(a, b, 1, 5, 3, 7);
  else return __builtin_shufflevector(a, b, 1, 3);
}

// The 16-bit lanes of columns [0, d) of a row; `lanes` has room for lane_space(d).
inline void random_lanes(uint16_t* lanes, int64_t d, uint64_t seed, uint64_t row) {
  const Counters row_low = Counters{} + (row & 0xffffffffu), row_high = Counters{} + (row >> 32);
  Counters block = first_blocks();
  for (int64_t column = 0; column < d; column += kBlocks * kBlockColumns, block += kBlocks) {
    // Only the low half of each lane counts; the products leave their low words in place, with rubbish above them.
    Counters w0 = row_low, w1 = row_high, w2 = block, w3 = block >> 32;
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    each<10>([&](auto) ADDNORM_LAMBDA {
      const Counters p0 = (Counters)multiply_low((Raw)w0, 0xD2511F53u);
      const Counters p1 = (Counters)multiply_low((Raw)w2, 0xCD9E8D57u);
      w0 = (p1 >> 32) ^ w1 ^ (Counters{} + key0), w1 = p1;
      w2 = (p0 >> 32) ^ w3 ^ (Counters{} + key1), w3 = p0;
      key0 += 0x9E3779B9u, key1 += 0xBB67AE85u;
    });
    const Counters low = (w0 & 0xffffffffu) | w1 << 32, high = (w2 & 0xffffffffu) | w3 << 32;
    const Counters halves[2] = {unpack_low(low, high), unpack_high(low, high)};
    __builtin_memcpy(lanes + column, halves, sizeof halves);
  }
}

// As many lanes as a native register of T holds elements.
ADDNORM_INLINE Vec<uint32_t>::Native widen_lanes(float, const uint16_t* lanes) {
  typedef uint16_t Lanes __attribute__((vector_size(kNativeBytes / 2)));
  Lanes v;
  __builtin_memcpy(&v, lanes, sizeof v);
  return __builtin_convertvector(v, Vec<uint32_t>::Native);
}
ADDNORM_INLINE Counters widen_lanes(double, const uint16_t* lanes) {
  typedef uint16_t Lanes __attribute__((vector_size(kNativeBytes / 4)));
  Lanes v;
  __builtin_memcpy(&v, lanes, sizeof v);
  return __builtin_convertvector(v, Counters);
}

// The multipliers of 32 columns: 0 where the lane is below the threshold, else `scale`. A product and not a selection, for
// 0 * NaN must be NaN.
template <Order kOrder, class T> ADDNORM_INLINE Pair<T> keep(const uint16_t* lanes, uint32_t threshold, T scale) {
  Pair<T> p;
  if constexpr (kOrder == Order::split) {
    const Words w = load<uint32_t>(lanes);
    each<Words::kParts>([&](auto i) ADDNORM_LAMBDA {
      const Vec<float>::Native kept = splat(scale).part[0], none = {};
      p.a.part[i.value] = (w.part[i.value] & 0xffffu) >= threshold ? kept : none;
      p.b.part[i.value] = w.part[i.value] >> 16 >= threshold ? kept : none;
    });
  } else {
    constexpr int kWidth = kNativeBytes / static_cast<int>(sizeof(T));
    const typename Vec<T>::Native kept = splat(scale).part[0], none = {};
    const auto one = [&](const uint16_t* q) ADDNORM_LAMBDA { return widen_lanes(T(0), q) >= threshold ? kept : none; };
    each<Vec<T>::kParts>([&](auto i) ADDNORM_LAMBDA {
      p.a.part[i.value] = one(lanes + i.value * kWidth);
      p.b.part[i.value] = one(lanes + kLanes + i.value * kWidth);
    });
  }
  return p;
}

}  // namespace addnorm::ADDNORM_ISA
