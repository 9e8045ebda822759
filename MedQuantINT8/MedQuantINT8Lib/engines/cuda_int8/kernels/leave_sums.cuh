// How they end where statistics are gathered: a block adds up its threads' sums, and leaves one of each slot.

#if STATISTICS
__shared__ float kept[ROWS * WIDTH * 2];
#pragma unroll
for (int i = 0; i < 8; ++i) {
  kept[(row * WIDTH + c + i) * 2] = sum[i];
  kept[(row * WIDTH + c + i) * 2 + 1] = square[i];
}
__syncthreads();
float* to = p.partials + ((i64)n * gridDim.x + blockIdx.x) * WIDTH * 2;
for (int i = threadIdx.x; i < WIDTH * 2; i += THREADS) {
  float total = 0.0f;
  for (int r = 0; r < ROWS; ++r) total += kept[r * WIDTH * 2 + i];
  to[i] = total;
}
#endif
