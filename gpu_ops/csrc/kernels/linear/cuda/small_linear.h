// small_batch_linear for layers of so few inputs that one pass of a block's warps takes all of them.
#pragma once
#include "kernels/linear/cuda/small_batch_linear.h"

namespace bireme {

// False, and nothing launched, where device or sizes are not meant for it; which way a matmul goes does not depend on its rows.
bool small_linear_cuda(const SmallBatchLinear& linear, Stream stream);

}  // namespace bireme
