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

// To nearest even, of values that are tame.
ADDNORM_INLINE Words::Native narrow_piece(Piece<float> p) {
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

// ---- pieces: where 32 columns come from, and where they go

template <class T> ADDNORM_INLINE typename Vec<T>::Native load_native(const void* p) {
  typename Vec<T>::Native v;
  __builtin_memcpy(&v, p, kNativeBytes);
  return v;
}
template <class Native> ADDNORM_INLINE void store_native(void* p, Native v) { __builtin_memcpy(p, &v, kNativeBytes); }

// Piece u of 32 numbers in the arithmetic's type, aligned or not.
template <class T> ADDNORM_INLINE Piece<T> load_piece(const void* p, int u) {
  const char* const a = static_cast<const char*>(p) + u * kNativeBytes;
  return {load_native<T>(a), load_native<T>(a + kLanes * sizeof(T))};
}
template <class T> ADDNORM_INLINE void store_piece(void* p, int u, Piece<T> v) {
  char* const a = static_cast<char*>(p) + u * kNativeBytes;
  store_native(a, v.a), store_native(a + kLanes * sizeof(T), v.b);
}

// Loaded at once, zeros where there is nothing: a part of a step, or elements that are not to be had piece by piece.
template <class T> struct Loaded {
  Pair<T> pair;
  ADDNORM_INLINE Piece<T> get(int u) const { return piece(pair, u); }
};

template <class E> struct Reader;
template <> struct Reader<F32> {
  const char* p;
  ADDNORM_INLINE Piece<float> get(int u) const { return load_piece<float>(p, u); }
};
template <> struct Reader<BF16> {
  const char* p;
  ADDNORM_INLINE Piece<float> get(int u) const {
    return widen_piece(load_native<uint32_t>(p + u * kNativeBytes));
  }
};

ADDNORM_INLINE void put_piece(F32, char* p, int u, Piece<float> v) { store_piece(p, u, v); }
ADDNORM_INLINE void put_piece(BF16, char* p, int u, Piece<float> v) { store_native(p + u * kNativeBytes, narrow_piece(v)); }

// A bool that the compiler knows. The texts of rare calls have a bool in its place.
template <bool kValue> struct Known {
  constexpr explicit Known(bool) {}
  constexpr operator bool() const { return kValue; }
};
template <class Use> ADDNORM_INLINE void known(bool value, Use&& use) { value ? use(Known<true>(true)) : use(Known<false>(false)); }

// What goes past the caches goes in whole lines: half-written ones of several rows would leave the processor one by one.
template <class E, class Streaming> struct Writer {
  static constexpr int kBytes = kStep * E::kBytes;
  char* p;
  Streaming streaming;
  alignas(64) char staged[kBytes];

  ADDNORM_INLINE Writer(char* p, Streaming streaming) : p(p), streaming(streaming) {}
  ADDNORM_INLINE void put(int u, Piece<float> v) { put_piece(E{}, streaming ? staged : p, u, v); }
  ADDNORM_INLINE void close() const {
    if (!streaming) return;
    each<kBytes / kNativeBytes>([&](auto i) ADDNORM_LAMBDA {
      Raw line;
      __builtin_memcpy(&line, staged + i * kNativeBytes, kNativeBytes);
      stream(p + i * kNativeBytes, line);
    });
  }
};

// Stored at once.
template <class T, class Store> struct Stored {
  Store store;
  Pair<T> pair;
  ADDNORM_INLINE void put(int u, Piece<T> v) { set_piece(pair, u, v); }
  ADDNORM_INLINE void close() const { store(pair); }
};

// ---- access: how a kernel reaches its matrices

// All matrices hold E; the arithmetic is float.
template <class E> struct Same {
  using T = float;
  static constexpr bool kCompact = false;
  static constexpr Order kOrder = E::kOrder;
  static constexpr bool kByPiece = !std::is_same_v<E, F16>;

  template <class N> static ADDNORM_INLINE Pair<T> load(DType, const void* row, int64_t column, N n) {
    return Element<E>::load(static_cast<const char*>(row) + column * E::kBytes, n);
  }
  template <class N> static ADDNORM_INLINE void store(DType, void* row, int64_t column, N n, Pair<T> v, bool streaming) {
    Element<E>::store(static_cast<char*>(row) + column * E::kBytes, n, v, streaming);
  }
  template <class N> static ADDNORM_INLINE auto reader(DType dtype, const char* row, int64_t column, N n) {
    if constexpr (kByPiece && std::is_same_v<N, Whole>) return Reader<E>{row + column * E::kBytes};
    else return Loaded<T>{row ? load(dtype, row, column, n) : Pair<T>{}};
  }
  template <class N, class Streaming> static ADDNORM_INLINE auto writer(DType dtype, char* row, int64_t column, N n, Streaming streaming) {
    if constexpr (kByPiece && std::is_same_v<N, Whole>) {
      return Writer<E, Streaming>(row + column * E::kBytes, streaming);
    } else {
      const auto put = [=](const Pair<T>& v) ADDNORM_LAMBDA { store(dtype, row, column, n, v, streaming); };
      return Stored<T, decltype(put)>{put, {}};
    }
  }
};

// Any element type, told apart at each step by a branch that is always predicted.
template <class T_> struct Any {
  using T = T_;
  static constexpr bool kCompact = true;
  static constexpr Order kOrder = Order::natural;
  template <class N> static ADDNORM_OUTLINE Pair<T> load(DType dtype, const void* row, int64_t column, N n) {
    switch (dtype) {
      case DType::f32: return convert<T>(Same<F32>::load(dtype, row, column, n));
      case DType::bf16: return convert<T>(join(Same<BF16>::load(dtype, row, column, n)));
      case DType::f16: return convert<T>(Same<F16>::load(dtype, row, column, n));
      case DType::f64: return convert<T>(Element<F64>::load(static_cast<const double*>(row) + column, n));
    }
    __builtin_unreachable();
  }
  template <class N> static ADDNORM_OUTLINE void store(DType dtype, void* row, int64_t column, N n, Pair<T> v, bool streaming = false) {
    switch (dtype) {
      case DType::f32: return Same<F32>::store(dtype, row, column, n, convert<float>(v), streaming);
      case DType::bf16: return Same<BF16>::store(dtype, row, column, n, tame(split(convert<float>(v))), streaming);
      case DType::f16: return Same<F16>::store(dtype, row, column, n, convert<float>(v), streaming);
      case DType::f64: return Element<F64>::store(static_cast<double*>(row) + column, n, convert<double>(v), streaming);
    }
  }
  template <class N> static ADDNORM_INLINE auto reader(DType dtype, const char* row, int64_t column, N n) {
    return Loaded<T>{row ? load(dtype, row, column, n) : Pair<T>{}};
  }
  template <class N> static ADDNORM_INLINE auto writer(DType dtype, char* row, int64_t column, N n, bool streaming) {
    const auto put = [=](const Pair<T>& v) ADDNORM_LAMBDA { store(dtype, row, column, n, v, streaming); };
    return Stored<T, decltype(put)>{put, {}};
  }
};

// 32 columns of R rows of a matrix.
template <class Access, int R, class N> ADDNORM_INLINE auto readers(const Matrix& m, const char* const* rows, int64_t column, N n) {
  return several<R>([&](auto r) ADDNORM_LAMBDA { return Access::reader(m.dtype, rows[r], column, n); });
}
template <class Access, int R, class N, class Streaming>
ADDNORM_INLINE auto writers(const Matrix& m, char* const* rows, int64_t column, N n, Streaming streaming) {
  return several<R>([&](auto r) ADDNORM_LAMBDA { return Access::writer(m.dtype, rows[r], column, n, streaming); });
}

// A vector of any type, brought into an order that an access policy keeps.
template <Order kOrder, class T, class N> ADDNORM_INLINE Pair<T> load_vector(const Vector& v, int64_t column, N n) {
  if constexpr (kOrder == Order::split) {
    if (v.dtype == DType::bf16) return Same<BF16>::load(v.dtype, v.data, column, n);
    return tame(split(Any<float>::load(v.dtype, v.data, column, n)));
  } else {
    return Any<T>::load(v.dtype, v.data, column, n);
  }
}
template <Order kOrder, class T, class N> ADDNORM_INLINE void store_vector(const Vector& v, int64_t column, N n, Pair<T> value) {
  if constexpr (kOrder == Order::split) value = join(value);
  Any<T>::store(v.dtype, v.data, column, n, value);
}

// One element of a vector.
template <class T> ADDNORM_INLINE T load_scalar(const Vector& v, int64_t i) {
  return Any<T>::load(v.dtype, v.data, i, Some{1}).a.part[0][0];
}
template <class T> ADDNORM_INLINE void store_scalar(const Vector& v, int64_t i, T value) {
  const Pair<T> p = {splat(value), splat(value)};
  Any<T>::store(v.dtype, v.data, i, Some{1}, p);
}

inline int element_bytes(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// Where a row begins; null where the matrix is absent, whose strides are 0.
inline char* row_pointer(const Matrix& m, int64_t row) {
  int64_t offset = 0;
  for (int i = m.dims - 1; i > 0; --i) {
    offset += row % m.size[i] * m.stride[i];
    row /= m.size[i];
  }
  return static_cast<char*>(m.data) + (offset + row * m.stride[0]) * element_bytes(m.dtype);
}

}  // namespace addnorm::ADDNORM_ISA
