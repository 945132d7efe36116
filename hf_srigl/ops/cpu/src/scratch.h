// Working memory kept between calls, one piece per calling thread: fresh pages from the system would cost more than the
// smaller calls themselves. Forward: threads x one panel of x and y (1.5 MB for a 3072 x 3072 layer). Backward adds one
// sorted copy of the slots (about 7 bytes each) and up to 7 copies of the values' gradients (8 for bf16). Shared by all
// layers, never proportional to the number of rows.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace srigl {

// At least `bytes` of 64-byte aligned memory, valid until the next call on this thread; null if there is none.
void* scratch(size_t bytes);

}  // namespace srigl
