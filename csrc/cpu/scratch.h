// Scratch memory of the calling thread, kept from call to call: a tiny norm must not pay for malloc, nor a large one for new pages.
#pragma once

#include <cstdint>

#include "pool.h"

namespace addnorm {

class Scratch {
 public:
  enum Use { call, rows };  // what one call shares, and what each thread needs for the rows it is at

  // 64-byte aligned, uninitialised. At most one at a time for each use on a thread. Throws std::bad_alloc.
  Scratch(Use use, int64_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // The next `count` elements, from a 64-byte boundary on.
  template <class T> T* take(int64_t count) {
    T* result = reinterpret_cast<T*>(next_);
    next_ += space<T>(count);
    return result;
  }
  template <class T> static constexpr int64_t space(int64_t count) { return (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64; }

 private:
  Use use_;
  Block pooled_;
  char* next_;
};

}  // namespace addnorm
