// The operators as Python calls them, which is what compiled graphs do.
//
// Between two large linear layers at one token the dispatcher's code has left the caches, and fetching it costs more than the
// kernel (benchmarks/cold.py). So plain calls are answered here, or by the kernels in Python where it is those that they want; all
// others go on to the dispatcher.
#pragma once

#include <Python.h>

namespace addnorm {

// addnorm::forward and addnorm::backward by any mix of positions and names, as torch.ops takes them.
PyObject* short_forward(PyObject*, PyObject* const* args, Py_ssize_t count, PyObject* names);
PyObject* short_backward(PyObject*, PyObject* const* args, Py_ssize_t count, PyObject* names);

// The callables of torch.ops that take what is not plain.
void set_dispatched(PyObject* forward, PyObject* backward);

}  // namespace addnorm
