// What a thread loads for one voxel of a step that moves voxels: a table says from where; -1 is zero.

struct Loads {
  Slots slots;
  int row;
  __device__ __forceinline__ void read(const Params& p, int n, i64 voxel, int c) {
    row = __ldg((const int*)p.ptr[TABLES] + voxel);
    if (row >= 0) slots.read(source_at(p, (i64)n * SOURCE_VOXELS + row, c));
  }
  __device__ __forceinline__ void opened(float (&v)[8]) const {
    if (row >= 0) {
      open_source(v, slots);
      return;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = 0.0f;
  }
};
