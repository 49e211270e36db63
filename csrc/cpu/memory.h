// What depends on the machine's memory rather than on its instruction set.
#pragma once

#include <cstdint>

namespace addnorm {

// Whether outputs of so many bytes are better stored past the caches. Fresh pages are not: the system has just zeroed them,
// and while the zeros are in the cache it is quicker to overwrite them there (2048x8192 fp32: 15.7 ms against 18.1).
bool streaming_pays(int64_t bytes, bool fresh_pages);

}  // namespace addnorm
