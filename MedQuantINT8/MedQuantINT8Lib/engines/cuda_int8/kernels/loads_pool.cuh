// What a thread loads for one voxel of a pooling step: the largest, or the mean, of a kernel's voxels.

#include "loads_computed.cuh"

struct Loads : WorkedOut {
  __device__ __forceinline__ void read(const Params& p, int n, i64 voxel, int c) {
    int o2 = voxel % O2, o1 = (voxel / O2) % O1, o0 = voxel / (O1 * O2), inside = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = LARGEST ? -__int_as_float(0x7f800000) : 0.0f;
    for (int k0 = 0; k0 < K0; ++k0)
      for (int k1 = 0; k1 < K1; ++k1)
        for (int k2 = 0; k2 < K2; ++k2) {
          int i0 = o0 * S0 + k0 * D0 - B0, i1 = o1 * S1 + k1 * D1 - B1, i2 = o2 * S2 + k2 * D2 - B2;
          if (i0 < 0 || i0 >= I0 || i1 < 0 || i1 >= I1 || i2 < 0 || i2 >= I2) continue;
          float w[8];
          read_source(w, p, (((i64)n * I0 + i0) * I1 + i1) * I2 + i2, c);
          ++inside;
#pragma unroll
          for (int i = 0; i < 8; ++i) x[i] = LARGEST ? fmaxf(x[i], w[i]) : x[i] + w[i];
        }
    if (!LARGEST) {
      float by = (float)(WHOLE ? K0 * K1 * K2 : inside);
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] = x[i] / by;
    }
  }
};
