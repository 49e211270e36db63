#include "pool.h"

#if defined(__linux__)
#include <sys/mman.h>

#include <array>
#include <mutex>

namespace addnorm {
namespace {

constexpr int64_t kPage = int64_t{2} << 20;     // a huge page
constexpr int64_t kLeast = int64_t{4} << 20;    // below, malloc keeps what it has
constexpr int64_t kMost = int64_t{256} << 20;   // kept in all
constexpr size_t kBlocks = 4;                   // y, z and two gradients of one size

// Whole huge pages, so that each fault brings 2 MB.
void* from_system(int64_t bytes) {
  char* got = static_cast<char*>(mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (got == MAP_FAILED) return nullptr;
  const int64_t before = -reinterpret_cast<intptr_t>(got) & (kPage - 1), after = kPage - before;
  if (before > 0) munmap(got, before);
  if (after > 0) munmap(got + before + bytes, after);
  madvise(got + before, bytes, MADV_HUGEPAGE);
  return got + before;
}

class Kept {
 public:
  // The latest block that is no more than a quarter too large.
  Block take(int64_t bytes) {
    for (size_t i = count_; i-- > 0;) {
      if (blocks_[i].bytes >= bytes && blocks_[i].bytes - bytes <= bytes / 4) return remove(i);
    }
    return {};
  }

  // What the block displaces, oldest first, is returned by `evict` until that is empty.
  Block evict(int64_t bytes) { return count_ == kBlocks || (count_ > 0 && bytes_ + bytes > kMost) ? remove(0) : Block{}; }

  void put(const Block& block) {
    blocks_[count_++] = block;
    bytes_ += block.bytes;
  }

 private:
  Block remove(size_t i) {
    const Block found = blocks_[i];
    for (; i + 1 < count_; ++i) blocks_[i] = blocks_[i + 1];
    --count_;
    bytes_ -= found.bytes;
    return found;
  }

  std::array<Block, kBlocks> blocks_;
  size_t count_ = 0;
  int64_t bytes_ = 0;
};

// Tried, never waited for: a child forked while another thread held it could wait forever.
std::mutex kept_mutex;
Kept kept;

}  // namespace

Block take_block(int64_t bytes) {
  if (bytes < kLeast) return {};
  const int64_t whole = (bytes + kPage - 1) & ~(kPage - 1);
  if (const std::unique_lock lock(kept_mutex, std::try_to_lock); lock) {
    const Block found = kept.take(whole);
    if (found.data) return found;
  }
  return {from_system(whole), whole, true};
}

// Kept as it is: MADV_FREE would let the system reclaim it, and made the next use a fifth slower.
void give_back(const Block& block) {
  if (block.bytes <= kMost) {
    if (const std::unique_lock lock(kept_mutex, std::try_to_lock); lock) {
      for (Block old = kept.evict(block.bytes); old.data; old = kept.evict(block.bytes)) munmap(old.data, old.bytes);
      return kept.put({block.data, block.bytes, false});
    }
  }
  munmap(block.data, block.bytes);
}

}  // namespace addnorm

#else

namespace addnorm {

Block take_block(int64_t) { return {}; }
void give_back(const Block&) {}

}  // namespace addnorm

#endif
