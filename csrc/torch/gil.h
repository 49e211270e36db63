// Lets other Python threads run while a kernel does.
#pragma once

#include <Python.h>

#include <cstdint>

namespace addnorm {

// Below this many elements releasing the GIL costs more than it frees.
constexpr int64_t kReleaseElements = 16384;

class ReleaseGil {
 public:
  explicit ReleaseGil(bool release) : state_(release ? PyEval_SaveThread() : nullptr) {}
  ~ReleaseGil() {
    if (state_ != nullptr) PyEval_RestoreThread(state_);
  }
  ReleaseGil(const ReleaseGil&) = delete;
  ReleaseGil& operator=(const ReleaseGil&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace addnorm
