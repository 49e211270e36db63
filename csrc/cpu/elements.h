// How elements come out of memory and go back: 32 of them as a Pair, whole or in part, for each element type.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace addnorm::ADDNORM_ISA {

struct F32 { static constexpr int kBytes = 4; static constexpr Order kOrder = Order::natural; };
struct F64 { static constexpr int kBytes = 8; static constexpr Order kOrder = Order::natural; };
struct BF16 { static constexpr int kBytes = 2; static constexpr Order kOrder = Order::split; };
struct F16 { static constexpr int kBytes = 2; static constexpr Order kOrder = Order::natural; };

// ---- raw bytes; register by register, since GCC would copy a whole Vec through memory

template <class T> ADDNORM_INLINE Vec<T> load(const void* p) {
  Vec<T> v;
  each<Vec<T>::kParts>([&](auto i) ADDNORM_LAMBDA {
    __builtin_memcpy(&v.part[i], static_cast<const char*>(p) + i * kNativeBytes, kNativeBytes);
  });
  return v;
}

template <class T> ADDNORM_INLINE void store(void* p, Vec<T> v) {
  each<Vec<T>::kParts>([&](auto i) ADDNORM_LAMBDA {
    const typename Vec<T>::Native part = v.part[i];
    __builtin_memcpy(static_cast<char*>(p) + i * kNativeBytes, &part, kNativeBytes);
  });
}

ADDNORM_INLINE int clamp(int value, int high) { return value < 0 ? 0 : value > high ? high : value; }

// The first bytes of a vector: beyond them nothing is touched, and zeros are loaded.
template <class T> ADDNORM_INLINE Vec<T> load_first(const void* p, int bytes) {
  Vec<T> v = {};
  if constexpr (kMaskedBytes) {
    each<Vec<T>::kParts>([&](auto i) ADDNORM_LAMBDA {
      constexpr int kOffset = i.value * kNativeBytes;
      const int rest = clamp(bytes - kOffset, kNativeBytes);
      v.part[i.value] = (typename Vec<T>::Native)load_bytes(static_cast<const char*>(p) + kOffset, rest);
    });
  } else {
    __builtin_memcpy(&v, p, static_cast<size_t>(clamp(bytes, sizeof v)));
  }
  return v;
}

template <class T> ADDNORM_INLINE void store_first(void* p, Vec<T> v, int bytes) {
  if constexpr (kMaskedBytes) {
    each<Vec<T>::kParts>([&](auto i) ADDNORM_LAMBDA {
      constexpr int kOffset = i.value * kNativeBytes;
      store_bytes(static_cast<char*>(p) + kOffset, (Raw)v.part[i.value], clamp(bytes - kOffset, kNativeBytes));
    });
  } else {
    const Vec<T> copy = v;
    __builtin_memcpy(p, &copy, static_cast<size_t>(clamp(bytes, sizeof v)));
  }
}

template <class T> ADDNORM_INLINE void stream_all(void* p, Vec<T> v) {
  each<Vec<T>::kParts>([&](auto i) ADDNORM_LAMBDA { stream(static_cast<char*>(p) + i.value * kNativeBytes, (Raw)v.part[i.value]); });
}

// ---- 16-bit elements: 32 of them in column order are one Vec<uint32_t>

using Words = Vec<uint32_t>;

ADDNORM_INLINE Piece<float> widen_piece(Words::Native w) {
  return {(Vec<float>::Native)(w << 16), (Vec<float>::Native)(w & 0xffff0000u)};
}
ADDNORM_INLINE Pair<float> widen(BF16, Words w) {
  Pair<float> p;
  each<Words::kParts>([&](auto i) ADDNORM_LAMBDA { set_piece(p, i, widen_piece(w.part[i])); });
  return p;
}

// A NaN whose payload lies in the high half alone, for rounding must not carry it into infinity or zero. What arithmetic makes of
// bfloat16 operands is of this kind already.
ADDNORM_INLINE Pair<float> tame(Pair<float> p) {
  const auto one = [](Vec<float> v) ADDNORM_LAMBDA {
    each<Words::kParts>([&](auto i) ADDNORM_LAMBDA {
      const Vec<float>::Native f = v.part[i];
      v.part[i] = f == f ? f : (Vec<float>::Native)(((Words::Native)f | 0x400000u) & 0xffff0000u);
    });
    return v;
  };
  return {one(p.a), one(p.b)};
}

// The same of one number, of no payload at all.
template <class T> ADDNORM_INLINE T tame_scalar(T value) { return value == value ? value : T(__builtin_nan("")); }

// To nearest even, of values that are tame; `denormals`: there may be some.
ADDNORM_INLINE Words::Native narrow_piece(Piece<float> p, bool denormals = true) {
  if constexpr (kNarrowsPairs)
    if (!denormals || __builtin_expect(!any_denormal(p.a, p.b), true)) return (Words::Native)narrow_pair(p.a, p.b);
  const Raw even = round_to_bfloat16((Raw)p.a), odd = round_to_bfloat16((Raw)p.b);
  return (Words::Native)blend_odd((Raw)((Words::Native)even >> 16), odd);
}
ADDNORM_INLINE Words narrow(BF16, Pair<float> p) {
  Words w;
  each<Words::kParts>([&](auto i) ADDNORM_LAMBDA { w.part[i] = narrow_piece(piece(p, i)); });
  return w;
}

ADDNORM_INLINE Pair<float> widen(F16, Words w) {
  constexpr int kParts = Words::kParts;
  Vec<float>::Native n[2 * kParts];
  each<kParts>([&](auto i) ADDNORM_LAMBDA { widen_halves((Raw)w.part[i.value], n[2 * i.value], n[2 * i.value + 1]); });
  Pair<float> p;
  each<kParts>([&](auto i) ADDNORM_LAMBDA { p.a.part[i.value] = n[i.value], p.b.part[i.value] = n[i.value + kParts]; });
  return p;
}

ADDNORM_INLINE Words narrow(F16, Pair<float> p) {
  constexpr int kParts = Words::kParts;
  Vec<float>::Native n[2 * kParts];
  each<kParts>([&](auto i) ADDNORM_LAMBDA { n[i.value] = p.a.part[i.value], n[i.value + kParts] = p.b.part[i.value]; });
  Words w;
  each<kParts>([&](auto i) ADDNORM_LAMBDA { w.part[i.value] = (Words::Native)narrow_halves(n[2 * i.value], n[2 * i.value + 1]); });
  return w;
}

// ---- 32 elements, in the element type's own lane order

template <class T> ADDNORM_INLINE Pair<T> load_pair(const void* p, Whole) {
  return {load<T>(p), load<T>(static_cast<const T*>(p) + kLanes)};
}
template <class T, class N> ADDNORM_INLINE Pair<T> load_pair(const void* p, N n) {
  if (n.count == kStep) return load_pair<T>(p, Whole{});
  constexpr int kSize = static_cast<int>(sizeof(T));
  return {load_first<T>(p, n.count * kSize), load_first<T>(static_cast<const T*>(p) + kLanes, (n.count - kLanes) * kSize)};
}
template <class T> ADDNORM_INLINE void store_pair(void* p, Whole, Pair<T> v, bool streaming = false) {
  T* q = static_cast<T*>(p);
  if (streaming) {
    stream_all(q, v.a), stream_all(q + kLanes, v.b);
  } else {
    store(q, v.a), store(q + kLanes, v.b);
  }
}
template <class T, class N> ADDNORM_INLINE void store_pair(void* p, N n, Pair<T> v, bool streaming = false) {
  if (n.count == kStep) return store_pair(p, Whole{}, v, streaming);
  constexpr int kSize = static_cast<int>(sizeof(T));
  store_first(p, v.a, n.count * kSize), store_first(static_cast<T*>(p) + kLanes, v.b, (n.count - kLanes) * kSize);
}

template <class E> struct Element {  // the 16-bit ones
  template <class N> static ADDNORM_INLINE Pair<float> load(const void* p, N n) {
    return widen(E{}, n.count == kStep ? ADDNORM_ISA::load<uint32_t>(p) : load_first<uint32_t>(p, 2 * n.count));
  }
  template <class N> static ADDNORM_INLINE void store(void* p, N n, Pair<float> v, bool streaming) {
    const Words w = narrow(E{}, v);
    if (n.count != kStep) store_first(p, w, 2 * n.count);
    else if (streaming) stream_all(p, w);
    else ADDNORM_ISA::store(p, w);
  }
};

template <class T> struct Itself {
  template <class N> static ADDNORM_INLINE Pair<T> load(const void* p, N n) { return load_pair<T>(p, n); }
  template <class N> static ADDNORM_INLINE void store(void* p, N n, Pair<T> v, bool streaming) { store_pair(p, n, v, streaming); }
};
template <> struct Element<F32> : Itself<float> {};
template <> struct Element<F64> : Itself<double> {};

// ---- float to and from double, in natural order

template <class To, class From> ADDNORM_INLINE Pair<To> convert(Pair<From> p) {
  if constexpr (sizeof(To) == sizeof(From)) {
    return p;
  } else {
    alignas(64) From in[kStep];
    alignas(64) To out[kStep];
    __builtin_memcpy(in, &p, sizeof in);
    for (int i = 0; i < kStep; ++i) out[i] = static_cast<To>(in[i]);
    Pair<To> q;
    __builtin_memcpy(&q, out, sizeof q);
    return q;
  }
}

}  // namespace addnorm::ADDNORM_ISA
