// What the extension leaves to Python; set by ops.py, where each is described.
#pragma once

#include <Python.h>

#include <array>

namespace addnorm {

enum InPython : size_t { kForward, kBackward, kGradients, kReferenceBackward, kInPython };

inline std::array<PyObject*, kInPython> in_python{};

}  // namespace addnorm
