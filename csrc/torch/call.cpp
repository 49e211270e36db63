#include "call.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>
#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "cpu/pool.h"
#include "views.h"

namespace addnorm {
namespace {

// After a fork the OpenMP threads of the parent are gone, and waiting for them hangs: a child stays serial.
bool in_forked_child = false;
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { in_forked_child = true; });

void parallel_for(int64_t n, int64_t grain, void* context, void (*body)(void*, int64_t, int64_t)) {
  if (n <= grain || in_forked_child) {
    if (n > 0) body(context, 0, n);
    return;
  }
  at::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

constexpr Runtime kTorchRuntime{parallel_for};

void release(void* context) {
  const std::unique_ptr<Block> block(static_cast<Block*>(context));
  c10::profiledCPUMemoryReporter().Delete(block->data);
  give_back(*block);
}

// A new tensor; `fresh` becomes true where its memory is new as well.
at::Tensor empty_output(at::IntArrayRef sizes, at::ScalarType dtype, bool& fresh) {
  const auto bytes = static_cast<int64_t>(at::detail::computeStorageNbytesContiguous(sizes, c10::elementSize(dtype)));
  const Block block = take_block(bytes);
  if (!block.data) return at::detail::empty_cpu(sizes, dtype);
  fresh |= block.fresh;
  c10::profiledCPUMemoryReporter().New(block.data, bytes);
  at::DataPtr data(block.data, new Block(block), release, at::kCPU);
  auto storage = c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), bytes, std::move(data),
                                                       c10::GetCPUAllocator(), /*resizable=*/true);
  at::Tensor t = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                                          c10::scalarTypeToTypeMeta(dtype));
  t.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return t;
}

at::Tensor empty_stats(at::IntArrayRef sizes, Norm norm, at::ScalarType dtype) {
  at::DimVector shape(sizes.begin(), sizes.end());
  shape.back() = stats_per_row(norm);
  return at::detail::empty_cpu(shape, dtype);
}

Dropout dropout(const Options& options) {
  if (options.dropout_p == 0) return {};
  return {options.seed, true, dropout_threshold(options.dropout_p), 1.0 / (1.0 - options.dropout_p)};
}

int64_t rows_of(const at::Tensor& t) {
  int64_t rows = 1;
  for (int64_t size : t.sizes().slice(0, t.dim() - 1)) rows *= size;
  return rows;
}

Vector branch_scale(const Operands& operands, const Options& options, Views& views) {
  if (!options.branch_factor) return views.vector("branch_scale", operands[kBranchScale]);
  return {const_cast<double*>(&*options.branch_factor), DType::f64, true};
}

}  // namespace

const Runtime& torch_runtime() { return kTorchRuntime; }

uint32_t dropout_threshold(double p) {
  return static_cast<uint32_t>(std::min(std::nearbyint(65536.0 * p), 65535.0));
}

Norm kernel_norm(const std::string& name) {
  TORCH_CHECK(name == "layer" || name == "rms", "addnorm: there is no kernel for norm='", name, "'");
  return name == "layer" ? Norm::layer : Norm::rms;
}

const char* kernel_name(Norm norm) { return norm == Norm::layer ? "layer" : "rms"; }

uint64_t seed_value(const at::Tensor& seed) {
  TORCH_CHECK_TYPE(seed.scalar_type() == at::kLong && seed.numel() == 1, "seed must be one torch.int64, got ", seed.scalar_type(),
                   " of shape ", seed.sizes());
  return static_cast<uint64_t>(*seed.const_data_ptr<int64_t>());
}

Results forward(const Operands& operands, const Options& options, bool keep_stream, bool keep_stats,
                const at::Tensor* out, const at::Tensor* stream_out) {
  const at::Tensor& x = *operands[kX];
  const bool f64 = std::any_of(operands.begin(), operands.end(), [](const at::Tensor* t) {
    return t != nullptr && t->scalar_type() == at::kDouble;
  });
  Forward call;
  Views views;
  Results results;
  // An output whose columns are not adjacent is computed beside it, then copied.
  const auto target = [&](const char* name, const at::Tensor* given, at::ScalarType dtype) {
    if (given != nullptr) {
      check_memory(name, *given);
      given->mutable_data_ptr();  // a copy-on-write tensor's memory is its own from here on, before any is looked up
    }
    const bool direct = given != nullptr && given->dim() <= kMaxRowDims + 1 && (given->sizes().back() <= 1 || given->strides().back() == 1);
    return direct ? *given : empty_output(x.sizes(), dtype, call.fresh_pages);
  };
  results.y = target("out", out, options.out_dtype);
  if (keep_stream) results.z = target("stream_out", stream_out, options.stream_dtype);
  if (keep_stats) results.stats = empty_stats(x.sizes(), options.norm, f64 ? at::kDouble : at::kFloat);

  call.norm = options.norm;
  call.f64 = f64;
  call.rows = rows_of(x);
  call.d = x.sizes().back();
  call.x = views.matrix("x", &x);
  call.residual = views.matrix("residual", operands[kResidual]);
  call.y = views.matrix("y", &results.y);
  call.z = views.matrix("z", keep_stream ? &results.z : nullptr);
  call.weight = views.vector("weight", operands[kWeight]);
  call.bias = views.vector("bias", operands[kBias]);
  call.branch_bias = views.vector("branch_bias", operands[kBranchBias]);
  call.branch_scale = branch_scale(operands, options, views);
  call.row_scale = views.rows("row_scale", operands[kRowScale]);
  call.residual_scale = options.residual_scale;
  call.weight_offset = options.weight_offset;
  call.eps = options.eps;
  call.dropout = dropout(options);
  call.stats = keep_stats ? results.stats.data_ptr() : nullptr;
  kernels().forward(call, kTorchRuntime);

  const auto deliver = [](at::Tensor& result, const at::Tensor* given) {
    if (given == nullptr || result.is_same(*given)) return;
    given->copy_(result);
    result = *given;
  };
  deliver(results.z, stream_out);
  deliver(results.y, out);
  return results;
}

Gradients backward(const Incoming& incoming, const Operands& operands, const Options& options,
                   const GradientTypes& types, const std::array<bool, kOperands>& needs) {
  const at::Tensor& z = *incoming.z;
  const auto like = [&](Operand operand) { return operands[operand]->scalar_type(); };
  const auto columns = z.sizes().slice(z.dim() - 1);
  Backward call;
  Gradients grads;
  const auto empty = [&](at::IntArrayRef sizes, at::ScalarType dtype) { return empty_output(sizes, dtype, call.fresh_pages); };
  if (needs[kX]) grads[kX] = empty(z.sizes(), types.x);
  if (needs[kResidual]) grads[kResidual] = empty(z.sizes(), types.residual);
  if (needs[kWeight]) grads[kWeight] = empty(columns, like(kWeight));
  if (needs[kBias]) grads[kBias] = empty(columns, types.bias);
  if (needs[kBranchBias]) grads[kBranchBias] = empty(columns, like(kBranchBias));
  if (needs[kBranchScale]) grads[kBranchScale] = empty(operands[kBranchScale]->sizes(), like(kBranchScale));
  if (needs[kRowScale]) grads[kRowScale] = empty(z.sizes().slice(0, z.dim() - 1), like(kRowScale));

  Views views;
  call.norm = options.norm;
  call.f64 = incoming.stats->scalar_type() == at::kDouble;
  call.rows = rows_of(z);
  call.d = z.sizes().back();
  call.dy = views.matrix("dy", incoming.dy);
  call.ds = views.matrix("ds", incoming.ds);
  call.z = views.matrix("z", &z);
  call.x = views.matrix("x", operands[kX]);
  call.weight = views.vector("weight", operands[kWeight]);
  call.branch_bias = views.vector("branch_bias", operands[kBranchBias]);
  call.branch_scale = branch_scale(operands, options, views);
  call.row_scale = views.rows("row_scale", operands[kRowScale]);
  call.residual_scale = options.residual_scale;
  call.weight_offset = options.weight_offset;
  call.dropout = dropout(options);
  check_memory("stats", *incoming.stats);
  const at::Tensor stats = incoming.stats->contiguous();
  call.stats = stats.const_data_ptr();
  call.dx = views.matrix("dx", &grads[kX]);
  call.dresidual = views.matrix("dresidual", &grads[kResidual]);
  call.dweight = views.vector("dweight", &grads[kWeight]);
  call.dbias = views.vector("dbias", &grads[kBias]);
  call.dbranch_bias = views.vector("dbranch_bias", &grads[kBranchBias]);
  call.dbranch_scale = views.vector("dbranch_scale", &grads[kBranchScale]);
  call.drow_scale = views.rows("drow_scale", &grads[kRowScale]);
  kernels().backward(call, kTorchRuntime);
  return grads;
}

}  // namespace addnorm
