// Arithmetic shared by CPU and CUDA code carries this mark.
#pragma once

#ifdef __CUDACC__
#define CATAPULT_HOST_DEVICE __host__ __device__
#else
#define CATAPULT_HOST_DEVICE
#endif
