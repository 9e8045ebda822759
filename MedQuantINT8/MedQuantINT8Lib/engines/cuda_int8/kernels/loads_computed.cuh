// What is worked out as it is read.

struct WorkedOut {
  float x[8];
  __device__ __forceinline__ void opened(float (&v)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = x[i];
  }
};
