// The vectors of length d in the arithmetic's type and the access policy's lane order. Each thread of a call brings them there for itself:
// another core's copies would come line by line, which takes longer than to make them.
#pragma once

#include <algorithm>

#include "access.h"
#include "scratch.h"

namespace addnorm::ADDNORM_ISA {

inline int64_t padded(int64_t d) { return (d + kStep - 1) / kStep * kStep; }

// A load soon after a store to the same place of another page may be taken for one of what was stored, and made again; on Zen 4 it waits
// until the store is through where the pages' physical addresses have a hash in common. One such pair of pages, and all calls of a process
// take twice as long. So what a loop stores must not lie less than this ahead of what it loads, page numbers aside.
constexpr int64_t kPage = 4096, kApart = 512;  // bytes

template <class T> int64_t in_pages(int64_t count) {
  constexpr int64_t page = kPage / sizeof(T);
  return (count + page - 1) / page * page;
}

// Elements from one vector of working memory to the next.
template <class T> int64_t skewed(int64_t d) { return in_pages<T>(d) + kApart / sizeof(T) * 3 / 2; }

// Working memory for d elements apart from some places that are loaded, and from outputs, which mostly begin with a page.
template <class T> int64_t apart_space(int64_t d) { return kPage + Scratch::space<T>(padded(d)); }
template <class T, int K> T* take_apart(Scratch& scratch, int64_t d, const void* const (&loaded)[K]) {
  static_assert(4 + 2 * K < 2 * kPage / kApart, "of a page's 16 places its ends take 4, and each that is loaded 2");
  intptr_t at = reinterpret_cast<intptr_t>(scratch.take<char>(apart_space<T>(d)));
  const auto ahead = [&](const void* p) { return p && ((at - reinterpret_cast<intptr_t>(p)) & (kPage - 1)) < kApart; };
  const auto near_page = [&] { return ((at + kApart) & (kPage - 1)) < 2 * kApart; };
  while (near_page() || std::any_of(loaded, loaded + K, ahead)) at += kApart / 2;
  return reinterpret_cast<T*>(at);
}

// Absent: data is null and `of` gives null. A vector that is right as it lies is used in place.
template <class Access> struct Parameter {
  using T = typename Access::T;
  static constexpr DType kDType = sizeof(T) == 4 ? DType::f32 : DType::f64;

  static bool in_place(const Vector& v, double offset) {
    return !v.data || (v.dtype == kDType && Access::kOrder == Order::natural && offset == 0 && !v.scalar);
  }
  static int64_t space(const Vector& v, int64_t d, double offset = 0) {
    return in_place(v, offset) ? 0 : Scratch::space<T>(padded(d));
  }
  static const T* of(const Vector& v, int64_t d, Scratch& scratch, double offset = 0) {
    if (in_place(v, offset)) return static_cast<const T*>(v.data);
    T* result = scratch.take<T>(padded(d));
    const Vec<T> shift = splat(static_cast<T>(offset)), number = splat(v.scalar ? tame_scalar(load_scalar<T>(v, 0)) : T(0));
    columns<true>(0, d, [&](int64_t c, auto n) ADDNORM_LAMBDA {
      Pair<T> loaded = {number, number};
      if (!v.scalar) loaded = load_vector<Access::kOrder, T>(v, c, n);
      if (offset != 0) loaded = loaded + Pair<T>{shift, shift};
      store_pair(result + c, Whole{}, only<Access::kOrder>(n, loaded));
    });
    return result;
  }
};

// 32 columns of a parameter, piece by piece. One in split order is a padded copy, of which a part would not be the first columns.
template <class T> struct Padded {
  const T* p;
  ADDNORM_INLINE Piece<T> get(int u) const { return load_piece<T>(p, u); }
};
template <class Access, class N, class T = typename Access::T> ADDNORM_INLINE auto parameter(const T* p, int64_t column, N n) {
  if constexpr (Access::kOrder == Order::split || std::is_same_v<N, Whole>) return Padded<T>{p + column};
  else return Loaded<T>{p ? load_pair<T>(p + column, n) : Pair<T>{}};
}

// The values of one row in the arithmetic's type, whatever the row is told apart by.
template <class T> ADDNORM_INLINE T row_value(const Vector& v, int64_t row) {
  return v.data ? tame_scalar(load_scalar<T>(v, row)) : T(1);
}

}  // namespace addnorm::ADDNORM_ISA
