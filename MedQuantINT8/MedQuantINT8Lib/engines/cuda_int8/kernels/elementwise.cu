// The steps that go over voxels: the network's input, pooling, moving, and elementwise work after what another step
// stored.
//
// Of a few voxels everything is read before any is worked on; only at the end of a volume are there fewer.

#define GROUPS (WIDTH / 8)
extern "C" __global__ void __launch_bounds__(THREADS) run(const __grid_constant__ Params p) {
#include "elementwise_begin.cuh"
  for (int pass = 0; pass < PASSES; pass += AHEAD) {
    const i64 first = ((i64)BLOCK_X * PASSES + pass) * ROWS + row;
    if (first + (AHEAD - 1) * ROWS < VOXELS) {
      Loads loads[AHEAD];
      typename Epilogue<8>::Held held[AHEAD];
#pragma unroll
      for (int k = 0; k < AHEAD; ++k) {
        loads[k].read(p, n, first + k * ROWS, c);
        Epilogue<8>::fetch(held[k], p, n, c, 0, (int)first + k * ROWS);
      }
#pragma unroll
      for (int k = 0; k < AHEAD; ++k) {
        float v[8];
        loads[k].opened(v);
        epilogue.apply(v, (int)first + k * ROWS, held[k] EXTRA(sum, square, nullptr));
      }
    } else {
      for (i64 voxel = first; voxel < VOXELS; voxel += ROWS) {
        float v[8];
        load(v, p, n, voxel, c);
        epilogue.apply(v, (int)voxel EXTRA(sum, square, nullptr));
      }
    }
  }
#include "leave_sums.cuh"
}
