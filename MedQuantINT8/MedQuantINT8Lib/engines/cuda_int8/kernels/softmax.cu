// Softmax over the channels of a voxel, in three passes over them.

extern "C" __global__ void __launch_bounds__(THREADS) run(const __grid_constant__ Params p) {
  BEGIN_NEXT();
  AWAIT_LAST();
  const int n = blockIdx.y;
  i64 voxel = (i64)blockIdx.x * THREADS + threadIdx.x;
  if (voxel >= VOXELS) return;
  float largest = -3.4e38f, total = 0.0f;
  for (int c = 0; c < WIDTH; c += 8) {
    float v[8];
    load(v, p, n, voxel, c);
    for (int i = 0; i < 8; ++i)
      if (channel_of(c + i) >= 0) largest = fmaxf(largest, v[i]);
  }
  for (int c = 0; c < WIDTH; c += 8) {
    float v[8];
    load(v, p, n, voxel, c);
    for (int i = 0; i < 8; ++i)
      if (channel_of(c + i) >= 0) total += expf(v[i] - largest);
  }
  for (int c = 0; c < WIDTH; c += 8) {
    Epilogue<8> epilogue(p, n, c);
    float v[8];
    load(v, p, n, voxel, c);
    for (int i = 0; i < 8; ++i) v[i] = channel_of(c + i) >= 0 ? expf(v[i] - largest) / total : 0.0f;
    epilogue.apply(v, (int)voxel EXTRA(, , nullptr));
  }
}
