// What addnorm::forward and addnorm::backward compute on the CPU, below autograd.
#pragma once

#include <array>

#include "arguments.h"

namespace addnorm {

std::array<at::Tensor, 3> run_forward(const ForwardArguments& call);
// Or an error: what was saved may come back from a hook as another tensor.
void check_backward(const BackwardArguments& call, Norm norm);
std::array<at::Tensor, kOperands> run_backward(const BackwardArguments& call);

}  // namespace addnorm
