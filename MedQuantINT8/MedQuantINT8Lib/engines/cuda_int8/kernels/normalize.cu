// Scale and shift of a normalization layer, out of the partial sums that its statistics left.
//
// One kernel serves all layers: sizes come with the parameters, since one that is written in would be compiled anew.

#include "prelude.cuh"

#define NUMBER(i) ((int)(i64)p.ptr[5 + (i)])
#define PARTIALS NUMBER(0)
#define WIDTH NUMBER(1)
#define VOXELS NUMBER(2)
#define FIRST NUMBER(3)
#if REGULAR
#define SLOT(i) (FIRST + (int)blockIdx.x * MEMBERS + (i))
#else
#define SLOT(i) __ldg((const int*)p.ptr[0] + blockIdx.x * MEMBERS + (i))
#endif
// Sums of partial sums in a fixed order, in double precision: the same result every time.
extern "C" __global__ void __launch_bounds__(256) run(const __grid_constant__ Params p) {
  const int n = blockIdx.y, lane = threadIdx.x & 31;
  // What becomes scale and shift is on its way while sums are added up.
  const int mine = SLOT(min((int)threadIdx.x, MEMBERS - 1));
  const float gamma = __ldg((const float*)p.ptr[1] + mine), beta = __ldg((const float*)p.ptr[2] + mine);
  BEGIN_NEXT();
  AWAIT_LAST();
  double sum = 0.0, square = 0.0;
#pragma unroll 4
  for (int i = threadIdx.x; i < PARTIALS * MEMBERS; i += 256) {
    const vec8 both = read8(p.partials + (((i64)n * PARTIALS + i / MEMBERS) * WIDTH + SLOT(i % MEMBERS)) * 2);
    sum += (double)__uint_as_float(both.x);
    square += (double)__uint_as_float(both.y);
  }
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) {
    sum += __shfl_xor_sync(0xffffffff, sum, apart);
    square += __shfl_xor_sync(0xffffffff, square, apart);
  }
  __shared__ double sums[8], squares[8];
  if (lane == 0) {
    sums[threadIdx.x / 32] = sum;
    squares[threadIdx.x / 32] = square;
  }
  __syncthreads();
  if (threadIdx.x >= MEMBERS) return;
  sum = square = 0.0;
#pragma unroll
  for (int warp = 0; warp < 8; ++warp) {
    sum += sums[warp];
    square += squares[warp];
  }
  const double count = (double)VOXELS * MEMBERS, mean = sum / count;
  const double spread = 1.0 / sqrt(fmax(square / count - mean * mean, 0.0) + (double)p.f[0]);
  for (int i = threadIdx.x; i < MEMBERS; i += 256) {
    const int slot = SLOT(i);
    const float scale = (float)((double)(i < 256 ? gamma : __ldg((const float*)p.ptr[1] + slot)) * spread);
    ((float*)p.ptr[3])[n * WIDTH + slot] = scale;
    ((float*)p.ptr[4])[n * WIDTH + slot] =
        (float)((double)(i < 256 ? beta : __ldg((const float*)p.ptr[2] + slot)) - mean * (double)scale);
  }
}
