// The processor's own instructions as functions.
#pragma once

#if defined(__x86_64__)
// GCC's own header marks undefined values in a way that GCC warns of.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif
