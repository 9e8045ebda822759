// What a thread loads for one voxel of the network's input, which lies by channel, in float32 or FP16.

#include "loads_computed.cuh"

struct Loads : WorkedOut {
  __device__ __forceinline__ void read(const Params& p, int n, i64 voxel, int c) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      i64 from = ((i64)n * CHANNELS + c + i) * VOXELS + voxel;
      x[i] = c + i >= CHANNELS ? 0.0f
             : p.source_half   ? low_half(((const unsigned short*)p.source)[from])
                               : ((const float*)p.source)[from];
    }
  }
};
