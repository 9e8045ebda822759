// LayerNorm over the channels of a voxel; where a window shift moves voxels, it reads them from where they were.

#define GROUPS (WIDTH / 8)
#define CHUNKS ((GROUPS + LANES - 1) / LANES)
// Numbers by channel that a thread has room for before it knows what to do with them.
#define FETCHES_AHEAD (CHUNKS <= 3)
#define WANTED(c, i) (DENSE || channel_of((c) + (i)) >= 0)
// LANES threads share a voxel, eight slots each at a time.
extern "C" __global__ void __launch_bounds__(THREADS) run(const __grid_constant__ Params p) {
  BEGIN_NEXT();
  AWAIT_LAST();
  const int n = blockIdx.y, lane = threadIdx.x % LANES;
  const i64 voxel = (i64)blockIdx.x * ROWS + threadIdx.x / LANES;
  const bool mine = voxel < VOXELS;
  const i64 row = !mine ? -1 : MOVES ? (i64)__ldg((const int*)p.ptr[TABLES + 2] + voxel) : voxel;
  float v[CHUNKS][8], sum = 0.0f, square = 0.0f;
#pragma unroll
  for (int k = 0; k < CHUNKS; ++k) {
    const int c = (k * LANES + lane) * 8;
    if (row >= 0 && c < WIDTH) {
      read_source(v[k], p, (i64)n * SOURCE_VOXELS + row, c);
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (WANTED(c, i)) sum += v[k][i];
    }
  }
#if FETCHES_AHEAD
  // What becomes scale and shift is on its way while sums are added up.
  float gamma[CHUNKS][8], beta[CHUNKS][8];
#pragma unroll
  for (int k = 0; k < CHUNKS; ++k) {
    const int c = min((k * LANES + lane) * 8, WIDTH - 8);
    read_floats<8>(gamma[k], (const float*)p.ptr[TABLES] + c);
    read_floats<8>(beta[k], (const float*)p.ptr[TABLES + 1] + c);
  }
#endif
#pragma unroll
  for (int apart = LANES / 2; apart > 0; apart /= 2) sum += __shfl_xor_sync(0xffffffff, sum, apart);
  const float mean = sum / CHANNELS;
#pragma unroll
  for (int k = 0; k < CHUNKS; ++k) {
    const int c = (k * LANES + lane) * 8;
    if (row >= 0 && c < WIDTH) {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (WANTED(c, i)) square += (v[k][i] - mean) * (v[k][i] - mean);
    }
  }
#pragma unroll
  for (int apart = LANES / 2; apart > 0; apart /= 2) square += __shfl_xor_sync(0xffffffff, square, apart);
  if (!mine) return;
  const float by = rsqrtf(square / CHANNELS + EPSILON);
#pragma unroll
  for (int k = 0; k < CHUNKS; ++k) {
    const int c = (k * LANES + lane) * 8;
    if (c < WIDTH) {
      float w[8];
#if !FETCHES_AHEAD
      float gamma[CHUNKS][8], beta[CHUNKS][8];
      read_floats<8>(gamma[k], (const float*)p.ptr[TABLES] + c);
      read_floats<8>(beta[k], (const float*)p.ptr[TABLES + 1] + c);
#endif
#pragma unroll
      for (int i = 0; i < 8; ++i)
        w[i] = row >= 0 && WANTED(c, i) ? (v[k][i] - mean) * by * gamma[k][i] + beta[k][i] : 0.0f;
      Epilogue<8> epilogue(p, n, c);
      epilogue.apply(w, (int)voxel EXTRA(, , nullptr));
    }
  }
}
