#include "memory.h"

namespace addnorm {

bool streaming_pays(int64_t bytes, bool fresh_pages) {
  // Measured with two cores of 1 MB of L2 each, the output read again at once by an addition or a matmul: streaming costs 10-20 % at
  // 1-3 MB, makes no difference at 6 and gains from there on. What the L3 holds counts for little: it is shared, and reading an
  // output's lines before they are overwritten takes longer from there than the consumer saves.
  constexpr int64_t kBytes = int64_t{6} << 20;
  return bytes > kBytes && !fresh_pages;
}

}  // namespace addnorm
