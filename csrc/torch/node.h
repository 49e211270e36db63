// The derivative of a call: one node of torch's autograd graph.
#pragma once

#include <torch/csrc/autograd/edge.h>
#include <torch/csrc/autograd/function.h>

#include <memory>
#include <type_traits>
#include <utility>

#include "arguments.h"
#include "call.h"

namespace addnorm {

// How this torch holds its nodes: by shared_ptr up to 2.12, by intrusive_ptr since.
template <class T, class... Arguments>
auto make_node(Arguments&&... arguments) {
  using Pointer = decltype(torch::autograd::Edge::function);
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<torch::autograd::Node>>) {
    return std::make_shared<T>(std::forward<Arguments>(arguments)...);
  } else {
    return c10::make_intrusive<T>(std::forward<Arguments>(arguments)...);
  }
}

// Whether autograd would record a call on these operands.
bool wants_gradient(const Operands& operands);

// Whether z = x bit for bit, so that x itself can be kept.
bool stream_is_x(const Operands& operands, const Options& options);

// Makes y, and z unless it is x, results of a new node of the graph.
void record(const Operands& operands, const Settings& settings, const Results& results, bool z_is_x);

// The kernels' forward, recorded. z is kept for the backward unless it is x; `stream` only says that the caller wants it.
Results forward_recorded(const Operands& operands, const Options& options, bool stream);

}  // namespace addnorm
