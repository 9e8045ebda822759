// What a thread loads for one voxel of an elementwise step: as it was read, until it is worked on.

struct Loads {
  Slots slots;
  __device__ __forceinline__ void read(const Params& p, int n, i64 voxel, int c) {
    slots.read(source_at(p, (i64)n * VOXELS + voxel, c));
  }
  __device__ __forceinline__ void opened(float (&v)[8]) const { open_source(v, slots); }
};
