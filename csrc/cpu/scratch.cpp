#include "scratch.h"

#include <cstdlib>
#include <new>

namespace addnorm {
namespace {

constexpr int64_t kKept = int64_t{2} << 20;  // by each thread; more comes from the pool

struct Own {
  char* data = nullptr;
  int64_t bytes = 0;
  void release() {
    std::free(data);
    data = nullptr;
    bytes = 0;
  }
  ~Own() { release(); }
};

thread_local Own owned[2];

}  // namespace

Scratch::Scratch(Use use, int64_t bytes) : use_(use) {
  if (bytes > kKept) pooled_ = take_block(bytes);
  Own& own = owned[use];
  if (!pooled_.data && own.bytes < bytes) {
    own.release();
    const int64_t wanted = (bytes + 4095) / 4096 * 4096;
    own.data = static_cast<char*>(std::aligned_alloc(4096, static_cast<size_t>(wanted)));
    if (!own.data) throw std::bad_alloc();
    own.bytes = wanted;
  }
  next_ = pooled_.data ? static_cast<char*>(pooled_.data) : own.data;
}

Scratch::~Scratch() {
  if (pooled_.data) give_back(pooled_);
  if (owned[use_].bytes > kKept) owned[use_].release();  // where there is no pool
}

}  // namespace addnorm
