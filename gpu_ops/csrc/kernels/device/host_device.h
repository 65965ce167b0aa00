// Functions that CPU and CUDA kernels share.
#pragma once

#ifdef __CUDACC__
#define BIREME_HOST_DEVICE __host__ __device__
#else
#define BIREME_HOST_DEVICE
#endif
