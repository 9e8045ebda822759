// What a thread loads for one voxel, read and opened at once.

__device__ __forceinline__ void take(float (&v)[8], const Params& p, int n, i64 voxel, int c) {
  Taken taken;
  taken.read(p, n, voxel, c);
  taken.opened(v);
}
