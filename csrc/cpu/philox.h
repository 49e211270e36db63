// Dropout's random lanes: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//
// Key: the seed. Counter: (row, column / 8), 64 bits each. The four words of a block are eight 16-bit lanes, in column order.
// A mask is thus a pure function of (seed, row, column), whatever the width, the instruction set and the number of threads.
#pragma once

#include "access.h"

namespace addnorm::ADDNORM_ISA {

typedef uint64_t Counters __attribute__((vector_size(kNativeBytes)));

constexpr int kBlocks = kNativeBytes / 8;    // Philox blocks in flight: one 32-bit word of each in a 64-bit lane
constexpr int kBlockColumns = 8;

// Two batches of blocks at a time: the ten rounds of one are a chain of waits that the other fills.
constexpr int kBatches = 2;

// The memory that the lanes of a row of d columns take, in lanes: whole turns on every instruction set, one at least.
static_assert(128 % (kBatches * kBlocks * kBlockColumns) == 0);
inline int64_t lane_space(int64_t d) { return d > 0 ? (d + 127) / 128 * 128 : 128; }

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

// The keys of the ten rounds, the same for every block of a call.
struct RoundKeys {
  Counters low[10], high[10];
  explicit RoundKeys(uint64_t seed) {
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    for (int i = 0; i < 10; ++i, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) low[i] = Counters{} + key0, high[i] = Counters{} + key1;
  }
};

// Whether each of the columns [0, d) of a row is kept: 16 bits of ones or zeros each; `kept` has room for lane_space(d).
inline void kept_lanes(uint16_t* kept, int64_t d, uint32_t threshold, const RoundKeys& keys, uint64_t row) {
  typedef uint16_t Lanes __attribute__((vector_size(kNativeBytes)));
  const Counters row_low = Counters{} + (row & 0xffffffffu), row_high = Counters{} + (row >> 32);
  const Lanes least = Lanes{} + static_cast<uint16_t>(threshold);
  Counters next = first_blocks();
  for (int64_t column = 0; column < d; column += kBatches * kBlocks * kBlockColumns) {
    // Only the low half of each lane counts; the products leave their low words in place, with rubbish above them.
    Counters w0[kBatches], w1[kBatches], w2[kBatches], w3[kBatches];
    each<kBatches>([&](auto j) ADDNORM_LAMBDA {
      w0[j] = row_low, w1[j] = row_high, w2[j] = next, w3[j] = next >> 32;
      next += kBlocks;
    });
    each<10>([&](auto i) ADDNORM_LAMBDA {
      each<kBatches>([&](auto j) ADDNORM_LAMBDA {
        const Counters p0 = (Counters)multiply_low((Raw)w0[j], 0xD2511F53u);
        const Counters p1 = (Counters)multiply_low((Raw)w2[j], 0xCD9E8D57u);
        w0[j] = (p1 >> 32) ^ w1[j] ^ keys.low[i], w1[j] = p1;
        w2[j] = (p0 >> 32) ^ w3[j] ^ keys.high[i], w3[j] = p0;
      });
    });
    each<kBatches>([&](auto j) ADDNORM_LAMBDA {
      const Counters low = (w0[j] & 0xffffffffu) | w1[j] << 32, high = (w2[j] & 0xffffffffu) | w3[j] << 32;
      const auto first = (Lanes)((Lanes)unpack_low(low, high) >= least), second = (Lanes)((Lanes)unpack_high(low, high) >= least);
      uint16_t* const q = kept + column + j * kBlocks * kBlockColumns;
      __builtin_memcpy(q, &first, kNativeBytes);
      __builtin_memcpy(q + kNativeBytes / 2, &second, kNativeBytes);
    });
  }
}

// As many lanes as a native register of T holds elements, all bits of each element as those of its lane.
ADDNORM_INLINE Vec<uint32_t>::Native widen_lanes(float, const uint16_t* kept) {
  typedef int16_t Lanes __attribute__((vector_size(kNativeBytes / 2)));
  Lanes v;
  __builtin_memcpy(&v, kept, sizeof v);
  return (Vec<uint32_t>::Native)__builtin_convertvector(v, Vec<int32_t>::Native);
}
ADDNORM_INLINE Counters widen_lanes(double, const uint16_t* kept) {
  typedef int16_t Lanes __attribute__((vector_size(kNativeBytes / 4)));
  Lanes v;
  __builtin_memcpy(&v, kept, sizeof v);
  return (Counters)__builtin_convertvector(v, Vec<int64_t>::Native);
}

// The multipliers of piece u of 32 columns: `scale` where the lane is kept, else 0. A product and not a selection, for 0 * NaN
// must be NaN.
template <Order kOrder, class T> ADDNORM_INLINE Piece<T> keep(const uint16_t* kept, int u, T scale) {
  using Native = typename Vec<T>::Native;
  using Bits = decltype(widen_lanes(T(0), kept));
  const Bits bits = (Bits)all(scale).a;
  if constexpr (kOrder == Order::split) {
    const auto w = load_native<uint32_t>(kept + u * (kNativeBytes / 2));
    const auto even = (Vec<int32_t>::Native)(w << 16) >> 16, odd = (Vec<int32_t>::Native)w >> 16;
    return {(Native)(bits & (Bits)even), (Native)(bits & (Bits)odd)};
  } else {
    const uint16_t* first = kept + u * (kLanes / Vec<T>::kParts);
    return {(Native)(bits & widen_lanes(T(0), first)), (Native)(bits & widen_lanes(T(0), first + kLanes))};
  }
}

}  // namespace addnorm::ADDNORM_ISA
