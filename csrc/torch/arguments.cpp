#include "arguments.h"

#include <ATen/core/List.h>
#include <c10/core/ScalarType.h>

namespace addnorm {
namespace {

class Reader {
 public:
  Reader(const Stack& stack, size_t count) : next_(stack.end() - static_cast<std::ptrdiff_t>(count)) {}

  const at::Tensor* tensor() {
    const c10::IValue& value = *next_++;
    return value.isNone() ? nullptr : &value.toTensor();
  }
  double number() { return (next_++)->toDouble(); }
  bool flag() { return (next_++)->toBool(); }
  const std::string& name() { return (next_++)->toStringRef(); }
  std::optional<std::string> optional_name() {
    const c10::IValue& value = *next_++;
    return value.isNone() ? std::nullopt : std::optional(value.toStringRef());
  }
  at::ScalarType dtype(at::ScalarType otherwise) {
    const c10::IValue& value = *next_++;
    return value.isNone() ? otherwise : value.toScalarType();
  }
  std::array<bool, kOperands> flags() {
    const c10::List<bool> given = (next_++)->toBoolList();
    TORCH_CHECK(given.size() == kOperands, "addnorm: needs must be ", kOperands, " bools, got ", given.size());
    std::array<bool, kOperands> flags;
    for (size_t i = 0; i < kOperands; ++i) flags[i] = given[i];
    return flags;
  }
  Settings settings(Operands& operands) {
    Settings settings;
    settings.norm = name();
    settings.options.eps = number();
    settings.options.dropout_p = number();
    settings.seed = tensor();
    for (const Operand i : {kBranchBias, kBranchScale, kRowScale}) operands[i] = tensor();
    settings.options.residual_scale = number();
    settings.options.weight_offset = number();
    return settings;
  }

 private:
  Stack::const_iterator next_;
};

c10::IValue value(const at::Tensor* t) { return t == nullptr ? c10::IValue() : c10::IValue(*t); }

}  // namespace

ForwardArguments forward_arguments(const Stack& stack, size_t count) {
  Reader next(stack, count);
  ForwardArguments call;
  for (const Operand i : {kX, kResidual, kWeight, kBias}) call.operands[i] = next.tensor();
  call.keep_stream = next.flag();
  call.keep_stats = next.flag();
  call.settings = next.settings(call.operands);
  const at::Tensor &x = *call.operands[kX], *residual = call.operands[kResidual];
  const at::ScalarType stored =
      residual == nullptr ? x.scalar_type() : c10::promoteTypes(x.scalar_type(), residual->scalar_type());
  call.settings.options.out_dtype = next.dtype(stored);
  call.settings.options.stream_dtype = next.dtype(stored);
  call.settings.backend = next.optional_name();
  return call;
}

BackwardArguments backward_arguments(const Stack& stack, size_t count) {
  Reader next(stack, count);
  BackwardArguments call;
  for (const at::Tensor** t : {&call.incoming.dy, &call.incoming.ds, &call.incoming.z, &call.incoming.stats}) *t = next.tensor();
  call.needs = next.flags();
  call.operands[kWeight] = next.tensor();
  call.settings = next.settings(call.operands);
  call.operands[kX] = next.tensor();
  for (at::ScalarType* type : {&call.types.x, &call.types.residual, &call.types.bias}) {
    *type = next.dtype(call.incoming.z->scalar_type());
  }
  call.settings.backend = next.optional_name();
  return call;
}

// Arguments at the end that have their default can be left out where a graph is traced: so a dtype that is z's is none.
Stack as_stack(const BackwardArguments& call) {
  const Incoming& in = call.incoming;
  const Options& options = call.settings.options;
  c10::List<bool> needs;
  needs.reserve(kOperands);
  for (const bool need : call.needs) needs.push_back(need);
  const auto dtype = [&](at::ScalarType type) {
    return type == in.z->scalar_type() ? c10::IValue() : c10::IValue(static_cast<int64_t>(type));
  };
  return {value(in.dy), value(in.ds), value(in.z), value(in.stats), std::move(needs), value(call.operands[kWeight]),
          call.settings.norm, options.eps, options.dropout_p, value(call.settings.seed),
          value(call.operands[kBranchBias]), value(call.operands[kBranchScale]), value(call.operands[kRowScale]),
          options.residual_scale, options.weight_offset, value(call.operands[kX]), dtype(call.types.x),
          dtype(call.types.residual), dtype(call.types.bias),
          call.settings.backend ? c10::IValue(*call.settings.backend) : c10::IValue()};
}

}  // namespace addnorm
