// What a prepared launch depends on of its tensors: see again.py.
#pragma once

#include <Python.h>

namespace addnorm {

// kinds(a tuple of tensors and None) -> (bytes that tell one kind from another, the addresses), or None where one is not contiguous,
// not aligned or not plainly torch's own: addnorm.plain.kinds in C++.
PyObject* kinds(PyObject*, PyObject* tensors);

}  // namespace addnorm
