// How a kernel reaches its matrices and vectors: 32 columns at a time, in pieces, of one element type or of any.
#pragma once

#include "elements.h"

namespace addnorm::ADDNORM_ISA {

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

ADDNORM_INLINE void put_piece(F32, char* p, int u, Piece<float> v, bool) { store_piece(p, u, v); }
ADDNORM_INLINE void put_piece(BF16, char* p, int u, Piece<float> v, bool denormals) {
  store_native(p + u * kNativeBytes, narrow_piece(v, denormals));
}

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
  ADDNORM_INLINE void put(int u, Piece<float> v, bool denormals = true) {
    put_piece(E{}, streaming ? staged : p, u, v, denormals);
  }
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
  ADDNORM_INLINE void put(int u, Piece<T> v, bool = true) { set_piece(pair, u, v); }
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
  // Lines that come from memory are asked for twice: far ahead for the second cache, which has many places for lines under way, and then
  // for the first, which has few, and loads and stores wait where they are taken.
  template <class N> static ADDNORM_INLINE void fetch(const char* row, int64_t column, N) {
    constexpr int64_t kFar = 2048, kNear = 512;  // columns
    constexpr int kFirstCache = 3, kSecondCache = 2;
    if constexpr (std::is_same_v<N, Whole>)
      each<kStep * E::kBytes / 64>([&](auto i) ADDNORM_LAMBDA {
        __builtin_prefetch(row + (column + kFar) * E::kBytes + i.value * 64, 0, kSecondCache);
        __builtin_prefetch(row + (column + kNear) * E::kBytes + i.value * 64, 0, kFirstCache);
      });
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
  template <class N> static ADDNORM_INLINE void fetch(const char*, int64_t, N) {}
  template <class N> static ADDNORM_INLINE auto writer(DType dtype, char* row, int64_t column, N n, bool streaming) {
    const auto put = [=](const Pair<T>& v) ADDNORM_LAMBDA { store(dtype, row, column, n, v, streaming); };
    return Stored<T, decltype(put)>{put, {}};
  }
};

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
