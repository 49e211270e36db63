// The derivative of a call: one node of torch's autograd graph.
#pragma once

#include <Python.h>

#include "call.h"

namespace addnorm {

// Whether autograd would record a call on these operands.
bool wants_gradient(const Operands& operands);

// The forward, recorded. z is kept for the backward unless it is x; `stream` only says that the caller wants it.
Results forward_recorded(const Operands& operands, const Options& options, bool stream);

// What differentiates a backward that is itself differentiated, or whose gradients are not plain tensors: the
// reference, addnorm.reference.backward, given as a callable on the fields of call.Gradient.
void set_reference_backward(PyObject* callable);

}  // namespace addnorm
