// What both forms of a convolution's product by wgmma (compute capability 9.0) have in common. The instruction itself,
// with its list of operands, is written out by kernels/wgmma.py. Then comes wgmma_by_taps.cuh or wgmma_by_lines.cuh.

#define MI (TILE0 * TILE1 * 4 / 8 / WARPS)
#define NJ (COLUMNS / 8)
// A matrix in shared memory, all in units of 16 bytes: where it begins, from one core matrix to the next across, and
// down.
__device__ __forceinline__ u64 described(u32 begin, u32 across, u32 down) {
  return (u64)down << 32 | (begin + (across << 16));
}
#define ROWS_OF 8
__device__ __forceinline__ void first_row(int& d, int& h) {
  row_of_share(of_team() >> 7, d, h);
  h += ((threadIdx.x >> 5) & 3) * 2;
}
// Keeps the compiler from moving sums while they are written asynchronously.
__device__ __forceinline__ void hold(Sum (&sums)[MI][NJ][4]) {
#pragma unroll
  for (int i = 0; i < MI * NJ * 4; ++i) asm volatile("" : HOLD(sums[i / (NJ * 4)][i / 4 % NJ][i % 4])::"memory");
}
