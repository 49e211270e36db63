// Vectors of 16 logical lanes over the native registers of one instruction set, the same lane order for all of them.
//
// A step of every kernel is 32 columns, a Pair of vectors. It is gone through in pieces of two native registers, so that what a
// piece needs stays in registers where there are but 16. In `natural` order a holds columns 0..15 and b 16..31; in `split`
// order a holds the even columns and b the odd ones: so bfloat16 unpacks with one shift and one mask instead of two widenings.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

namespace addnorm::ADDNORM_ISA {

#define ADDNORM_LAMBDA __attribute__((always_inline))
#define ADDNORM_OUTLINE __attribute__((noinline))  // what is rare or large, lest every kernel carries a copy

constexpr int kLanes = 16, kStep = 2 * kLanes;

template <int I> struct Index {
  static constexpr int value = I;
  ADDNORM_INLINE constexpr operator int() const { return I; }
};
template <class F, int... I> ADDNORM_INLINE void each_of(F& f, std::integer_sequence<int, I...>) { (f(Index<I>{}), ...); }

// f(Index<0>), ..., f(Index<N-1>), written out: arrays indexed so stay in registers.
template <int N, class F> ADDNORM_INLINE void each(F f) { each_of(f, std::make_integer_sequence<int, N>{}); }

template <class T> struct Vec {
  static constexpr int kParts = kLanes * static_cast<int>(sizeof(T)) / kNativeBytes;
  typedef T Native __attribute__((vector_size(kNativeBytes)));
  Native part[kParts];
};

template <class T> struct Pair { Vec<T> a, b; };

// Register number u of a and of b.
template <class T> struct Piece { typename Vec<T>::Native a, b; };
template <class T> constexpr int kPieces = Vec<T>::kParts;

template <class T> ADDNORM_INLINE Piece<T> piece(const Pair<T>& p, int u) { return {p.a.part[u], p.b.part[u]}; }
template <class T> ADDNORM_INLINE void set_piece(Pair<T>& p, int u, Piece<T> v) { p.a.part[u] = v.a, p.b.part[u] = v.b; }

enum class Order { natural, split };

// ---- arithmetic

template <class T> ADDNORM_INLINE Vec<T> splat(T value) {
  Vec<T> v;
  each<Vec<T>::kParts>([&](auto i) ADDNORM_LAMBDA { v.part[i.value] = value - typename Vec<T>::Native{}; });
  return v;
}

template <class T> ADDNORM_INLINE Piece<T> all(T value) {
  const typename Vec<T>::Native v = value - typename Vec<T>::Native{};
  return {v, v};
}

template <class T> ADDNORM_INLINE Vec<T> operator+(Vec<T> a, Vec<T> b) {
  each<Vec<T>::kParts>([&](auto i) ADDNORM_LAMBDA { a.part[i.value] += b.part[i.value]; });
  return a;
}
template <class T> ADDNORM_INLINE Pair<T> operator+(Pair<T> a, Pair<T> b) { return {a.a + b.a, a.b + b.b}; }

#define ADDNORM_OPERATOR(OP)                                                                                          \
  template <class T> ADDNORM_INLINE Piece<T> operator OP(Piece<T> a, Piece<T> b) { return {a.a OP b.a, a.b OP b.b}; } \
  template <class T> ADDNORM_INLINE Piece<T> operator OP(Piece<T> a, T b) { return {a.a OP b, a.b OP b}; }
ADDNORM_OPERATOR(+)
ADDNORM_OPERATOR(-)
ADDNORM_OPERATOR(*)
#undef ADDNORM_OPERATOR

// a * b + c
template <class T> ADDNORM_INLINE Piece<T> fma(Piece<T> a, Piece<T> b, Piece<T> c) {
  return {multiply_add(a.a, b.a, c.a), multiply_add(a.b, b.b, c.b)};
}
template <class T> ADDNORM_INLINE Piece<T> fma(Piece<T> a, T b, Piece<T> c) { return fma(a, all(b), c); }
template <class T> ADDNORM_INLINE Piece<T> fma(Piece<T> a, T b, T c) { return fma(a, all(b), all(c)); }

ADDNORM_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
ADDNORM_INLINE double square_root(double x) { return __builtin_sqrt(x); }

template <class T, class Native> ADDNORM_INLINE T tree(Native v) {
  constexpr int kWidth = static_cast<int>(sizeof(Native) / sizeof(T));
  if constexpr (kWidth == 16) {
    return tree<T>(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
  } else if constexpr (kWidth == 8) {
    return tree<T>(__builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7));
  } else if constexpr (kWidth == 4) {
    return (v[0] + v[2]) + (v[1] + v[3]);
  } else {
    return v[0] + v[1];
  }
}

// The sum of 16 lanes: lanes 8 apart, then 4, 2, 1, whatever the width of a native register.
template <class T> ADDNORM_INLINE T sum(Vec<T> v) {
  constexpr int kParts = Vec<T>::kParts;
  if constexpr (kParts >= 8) each<4>([&](auto i) ADDNORM_LAMBDA { v.part[i.value] += v.part[i.value + 4]; });
  if constexpr (kParts >= 4) each<2>([&](auto i) ADDNORM_LAMBDA { v.part[i.value] += v.part[i.value + 2]; });
  if constexpr (kParts >= 2) v.part[0] += v.part[1];
  return tree<T>(v.part[0]);
}

// ---- lane order

template <class Native> ADDNORM_INLINE Native even_lanes(Native a, Native b) {
  if constexpr (kNativeBytes == 64) {
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  } else if constexpr (kNativeBytes == 32) {
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
  } else {
    return __builtin_shufflevector(a, b, 0, 2, 4, 6);
  }
}
template <class Native> ADDNORM_INLINE Native odd_lanes(Native a, Native b) {
  if constexpr (kNativeBytes == 64) {
    return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  } else if constexpr (kNativeBytes == 32) {
    return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
  } else {
    return __builtin_shufflevector(a, b, 1, 3, 5, 7);
  }
}
template <class Native> ADDNORM_INLINE Native zip_low(Native a, Native b) {
  if constexpr (kNativeBytes == 64) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  } else if constexpr (kNativeBytes == 32) {
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  } else {
    return __builtin_shufflevector(a, b, 0, 4, 1, 5);
  }
}
template <class Native> ADDNORM_INLINE Native zip_high(Native a, Native b) {
  if constexpr (kNativeBytes == 64) {
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  } else if constexpr (kNativeBytes == 32) {
    return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  } else {
    return __builtin_shufflevector(a, b, 2, 6, 3, 7);
  }
}

// natural -> split
ADDNORM_INLINE Pair<float> split(Pair<float> natural) {
  constexpr int kParts = Vec<float>::kParts;
  Vec<float>::Native n[2 * kParts];
  each<kParts>([&](auto i) ADDNORM_LAMBDA { n[i.value] = natural.a.part[i.value], n[i.value + kParts] = natural.b.part[i.value]; });
  each<kParts>([&](auto i) ADDNORM_LAMBDA {
    natural.a.part[i.value] = even_lanes(n[2 * i.value], n[2 * i.value + 1]);
    natural.b.part[i.value] = odd_lanes(n[2 * i.value], n[2 * i.value + 1]);
  });
  return natural;
}

// split -> natural
ADDNORM_INLINE Pair<float> join(Pair<float> split) {
  constexpr int kParts = Vec<float>::kParts;
  Vec<float>::Native n[2 * kParts];
  each<kParts>([&](auto i) ADDNORM_LAMBDA {
    n[2 * i.value] = zip_low(split.a.part[i.value], split.b.part[i.value]);
    n[2 * i.value + 1] = zip_high(split.a.part[i.value], split.b.part[i.value]);
  });
  each<kParts>([&](auto i) ADDNORM_LAMBDA { split.a.part[i.value] = n[i.value], split.b.part[i.value] = n[i.value + kParts]; });
  return split;
}

// ---- columns: a step is 32 of them, but for the last of a row, which may be a part

struct Whole { static constexpr int count = kStep; };
struct Part { int count; };  // 1..31 columns
struct Some { int count; };  // 1..32 columns: one text for both, where compact code is worth a branch

template <class Bits> struct LaneMask {
  Bits lane[2 * kLanes];
  constexpr LaneMask() : lane() {
    for (int i = 0; i < kLanes; ++i) lane[i] = ~Bits{0};
  }
};
constexpr LaneMask<uint32_t> kMask32;
constexpr LaneMask<uint64_t> kMask64;

ADDNORM_INLINE const uint32_t* mask_lanes(float) { return kMask32.lane; }
ADDNORM_INLINE const uint64_t* mask_lanes(double) { return kMask64.lane; }

// The first `count` lanes, zero in the rest.
template <class T> ADDNORM_INLINE Vec<T> first_lanes(Vec<T> v, int count) {
  using Bits = Vec<std::remove_cv_t<std::remove_pointer_t<decltype(mask_lanes(T()))>>>;
  Bits mask;
  each<Vec<T>::kParts>([&](auto i) ADDNORM_LAMBDA {
    __builtin_memcpy(&mask.part[i], mask_lanes(T()) + kLanes - count + i * (kLanes / Vec<T>::kParts), kNativeBytes);
    v.part[i] = (typename Vec<T>::Native)((typename Bits::Native)v.part[i] & mask.part[i]);
  });
  return v;
}

// Zero beyond the last column: what a sum must not see.
template <Order kOrder, class T, class N> ADDNORM_INLINE Pair<T> only(N n, Pair<T> p) {
  if (n.count == kStep) return p;
  const int a = kOrder == Order::split ? (n.count + 1) / 2 : n.count < kLanes ? n.count : kLanes;
  return {first_lanes(p.a, a), first_lanes(p.b, n.count - a)};
}

// The same for piece u.
template <Order kOrder, class T> ADDNORM_INLINE Piece<T> only(Whole, int, Piece<T> p) { return p; }
template <Order kOrder, class T, class N> ADDNORM_INLINE Piece<T> only(N n, int u, Piece<T> p) {
  if (n.count == kStep) return p;
  Pair<T> pair = {};
  set_piece(pair, u, p);
  return piece(only<kOrder>(n, pair), u);
}

// body(column, n) for begin, begin + 32, ... up to end; n is Whole or Part, or always Some where kCompact.
template <bool kCompact, class Body> ADDNORM_INLINE void columns(int64_t begin, int64_t end, Body&& body) {
  if constexpr (kCompact) {
    for (; begin < end; begin += kStep) body(begin, Some{static_cast<int>(end - begin < kStep ? end - begin : kStep)});
  } else {
    for (; begin + kStep <= end; begin += kStep) body(begin, Whole{});
    if (begin < end) body(begin, Part{static_cast<int>(end - begin)});
  }
}

}  // namespace addnorm::ADDNORM_ISA
