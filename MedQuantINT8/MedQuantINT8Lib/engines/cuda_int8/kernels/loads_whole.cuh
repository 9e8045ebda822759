// What a thread loads for one voxel, read and opened at once.

__device__ __forceinline__ void load(float (&v)[8], const Params& p, int n, i64 voxel, int c) {
  Loads loads;
  loads.read(p, n, voxel, c);
  loads.opened(v);
}
