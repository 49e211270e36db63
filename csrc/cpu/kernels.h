// The contract between the kernels and whoever calls them: plain structs over raw pointers, no torch.
//
//   z = residual_scale * residual + row_scale * branch_scale * dropout(x + branch_bias)
//   y = (weight_offset + weight) * (z - mean) / sqrt(var + eps) + bias            (mean = 0 for rms)
//
// Arithmetic is float32, or float64 where `f64` is set; the element types of the tensors are free.
#pragma once

#include <cstdint>
#include <vector>

namespace addnorm {

enum class DType : int32_t { f32, f64, bf16, f16 };
enum class Norm : int32_t { layer, rms };

// Statistics kept per row, in the arithmetic's type: layer (mean, correction, 1/s), rms (1/s).
// The mean is the unevaluated sum mean + correction: the rounded mean alone would put xhat off by up to 2^-24 |mean| / s.
constexpr int stats_per_row(Norm norm) { return norm == Norm::layer ? 3 : 1; }

constexpr int kMaxRowDims = 8;

// A logical (rows, d) matrix whose innermost stride is 1; the row index runs over `dims` dimensions, last fastest.
// data == nullptr: the tensor is absent. Strides count elements.
struct Matrix {
  void* data = nullptr;
  DType dtype = DType::f32;
  int32_t dims = 1;
  int64_t size[kMaxRowDims] = {};
  int64_t stride[kMaxRowDims] = {};
};

// A contiguous vector, or one number that stands for every element (`scalar`). data == nullptr: absent.
struct Vector {
  void* data = nullptr;
  DType dtype = DType::f32;
  bool scalar = false;
};

// An element is dropped iff its 16-bit lane < threshold: none where p rounds to 0, and the kept ones are scaled all the same.
struct Dropout {
  uint64_t seed = 0;
  bool on = false;
  uint32_t threshold = 0;
  double keep_scale = 1.0;
};

struct Forward {
  Norm norm = Norm::layer;
  bool f64 = false;
  int64_t rows = 0, d = 0;
  Matrix x, residual;                             // residual may be absent
  Matrix y, z;                                    // z absent: the sum is not stored; y or z may be exactly x or residual
  Vector weight, bias, branch_bias, branch_scale; // length d (branch_scale may be scalar)
  Vector row_scale;                               // length rows
  double residual_scale = 1.0, weight_offset = 0.0, eps = 1e-5;
  Dropout dropout;
  bool fresh_pages = false;                       // y and z are not backed by memory yet: see streaming_pays
  void* stats = nullptr;                          // (rows, stats_per_row) of float or double; nullptr: not kept
};

// Every output is optional; what is absent is not computed.
struct Backward {
  Norm norm = Norm::layer;
  bool f64 = false;
  int64_t rows = 0, d = 0;
  Matrix dy, ds;                                  // gradients of y and of z; either may be absent
  Matrix z, x;                                    // x only where dbranch_scale or drow_scale is asked for
  Vector weight, branch_bias, branch_scale, row_scale;
  double residual_scale = 1.0, weight_offset = 0.0;
  Dropout dropout;
  const void* stats = nullptr;
  bool fresh_pages = false;                       // dx and dresidual are not backed by memory yet
  Matrix dx, dresidual;
  Vector dweight, dbias, dbranch_bias, dbranch_scale, drow_scale;
};

// Runs body(context, begin, end) over [0, n) in chunks of at least `grain`, perhaps on several threads.
struct Runtime {
  void (*parallel_for)(int64_t n, int64_t grain, void* context, void (*body)(void*, int64_t, int64_t));
};

constexpr int kMaxStreamReads = 4, kMaxStreamWrites = 2;

// The streaming floor: so many reads and writes of `count` floats, a multiple of 32; non-temporal writes want 64-byte alignment.
struct Stream {
  const float* reads[kMaxStreamReads] = {};
  float* writes[kMaxStreamWrites] = {};
  int read_count = 0, write_count = 0;
  int64_t count = 0;
  bool non_temporal = false;
};

struct Kernels {
  const char* name;                               // "generic", "avx2", "avx512", "avx512_bf16"
  void (*forward)(const Forward&, const Runtime&);
  void (*backward)(const Backward&, const Runtime&);
  void (*stream)(const Stream&, const Runtime&);
};

// The best set this processor runs, or the one that the environment variable ADDNORM_CPU_ISA names.
// Throws std::runtime_error where the named set is unknown or the processor lacks it.
const Kernels& kernels();

// All the sets that this processor runs, the best first.
std::vector<const Kernels*> available_kernels();

}  // namespace addnorm
