// skinny_linear for layers of so few inputs that one pass of a block's warps takes all of them.
#pragma once
#include "skinny_linear.h"

namespace bireme {

// False, and nothing launched, where device or sizes are not meant for it; which way a matmul goes does not depend on its rows.
bool small_linear_cuda(const SkinnyLinear& linear, Stream stream);

}  // namespace bireme
