#include "pool.h"

#if defined(__linux__)
#include <sys/mman.h>

#include <array>
#include <mutex>

namespace addnorm {
namespace {

constexpr int64_t kPage = 4096, kHugePage = int64_t{2} << 20;
constexpr int64_t kLeast = int64_t{128} << 10;   // from here on, and where its heap ends, malloc gives back what is freed
constexpr int64_t kHuge = int64_t{8} << 20;      // huge pages: nothing gained at 4 MB, 17 % at 8, 45 % from 32 on
constexpr int64_t kMost = int64_t{512} << 20;    // kept in all
constexpr size_t kBlocks = 1024;

void* map(int64_t bytes) {
  void* got = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return got == MAP_FAILED ? nullptr : got;
}

// Huge pages as far as they are whole, so that no more memory is taken than asked for.
void* map_huge(int64_t bytes) {
  char* got = static_cast<char*>(map(bytes + kHugePage));
  if (got == nullptr) return nullptr;
  const int64_t before = -reinterpret_cast<intptr_t>(got) & (kHugePage - 1), after = kHugePage - before;
  if (before > 0) munmap(got, before);
  if (after > 0) munmap(got + before + bytes, after);
  madvise(got + before, bytes & ~(kHugePage - 1), MADV_HUGEPAGE);
  return got + before;
}

class Kept {
 public:
  // The latest block that is hardly larger.
  Block take(int64_t bytes) {
    for (size_t i = count_; i-- > 0;) {
      if (blocks_[i].bytes >= bytes && blocks_[i].bytes - bytes <= bytes / 16) return remove(i);
    }
    return {};
  }

  // The oldest, as long as there is no room for so many bytes more.
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

void* map_any(int64_t bytes) { return bytes < kHuge ? map(bytes) : map_huge(bytes); }

// Tried, never waited for: a child forked while another thread held it could wait forever.
std::mutex kept_mutex;
Kept kept;

// Under the lock.
void make_room(int64_t bytes) {
  for (Block old = kept.evict(bytes); old.data; old = kept.evict(bytes)) munmap(old.data, old.bytes);
}

}  // namespace

Block take_block(int64_t bytes) {
  if (bytes < kLeast) return {};
  const int64_t whole = (bytes + kPage - 1) & ~(kPage - 1);
  if (const std::unique_lock lock(kept_mutex, std::try_to_lock); lock) {
    const Block found = kept.take(whole);
    if (found.data) return found;
  }
  void* data = map_any(whole);
  if (data == nullptr) {  // once more with what is kept given back
    if (const std::unique_lock lock(kept_mutex, std::try_to_lock); lock) make_room(kMost);
    data = map_any(whole);
  }
  return {data, whole, true};
}

// Kept as it is: MADV_FREE would let the system reclaim it, and made the next use a fifth slower.
void give_back(const Block& block) {
  if (block.bytes <= kMost) {
    if (const std::unique_lock lock(kept_mutex, std::try_to_lock); lock) {
      make_room(block.bytes);
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
