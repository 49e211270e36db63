// Memory for large outputs, kept for a while for the next call of the size.
//
// New memory comes from the system page by page, each zeroed at its first touch, and at these sizes malloc gives it back as soon as
// it is free: that costs more than the whole operation (2048x8192 fp32: 16 ms into new memory, 9 into memory that was used before).
// At most 512 MB are kept. Blocks of a size that is not asked for again lie idle until newer ones push them out, or the system has
// no memory left for a new one.
#pragma once

#include <cstdint>

namespace addnorm {

struct Block {
  void* data = nullptr;  // nullptr: not from here, ask malloc
  int64_t bytes = 0;
  bool fresh = false;    // not backed by memory yet
};

// nullptr where `bytes` is not large, or the system gives none.
Block take_block(int64_t bytes);

void give_back(const Block& block);

}  // namespace addnorm
