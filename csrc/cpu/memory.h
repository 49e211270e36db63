// What depends on the machine's memory rather than on its instruction set.
#pragma once

#include <cstdint>

namespace addnorm {

// Whether outputs of so many bytes are better stored past the caches.
bool streaming_pays(int64_t bytes);

}  // namespace addnorm
