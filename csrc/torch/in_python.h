// What the extension has done in Python: set by ops.py, which says what each is.
#pragma once

#include <Python.h>

#include <array>

namespace addnorm {

enum InPython : size_t { kForward, kBackward, kGradients, kReferenceBackward, kInPython };

inline std::array<PyObject*, kInPython> in_python{};

}  // namespace addnorm
