#include "scratch.h"

#include <cstdlib>
#include <new>

namespace addnorm {
namespace {

constexpr int64_t kKept = int64_t{2} << 20;

struct Block {
  char* data = nullptr;
  int64_t bytes = 0;
  void release() {
    std::free(data);
    data = nullptr;
    bytes = 0;
  }
  ~Block() { release(); }
};

thread_local Block blocks[2];

}  // namespace

Scratch::Scratch(Use use, int64_t bytes) : use_(use) {
  Block& block = blocks[use];
  if (block.bytes < bytes) {
    block.release();
    const int64_t wanted = (bytes + 4095) / 4096 * 4096;
    block.data = static_cast<char*>(std::aligned_alloc(4096, static_cast<size_t>(wanted)));
    if (!block.data) throw std::bad_alloc();
    block.bytes = wanted;
  }
  next_ = block.data;
}

Scratch::~Scratch() {
  if (blocks[use_].bytes > kKept) blocks[use_].release();
}

}  // namespace addnorm
