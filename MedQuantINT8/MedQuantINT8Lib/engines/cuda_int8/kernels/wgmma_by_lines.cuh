// multiply_round from registers, for few columns, where shared memory could not keep up.
//
// A warp keeps lines of eight voxels in registers, for all taps along the first axis: from shared memory they come a
// third as often as if each tap took them from there. What the next steps multiply is loaded while the present ones
// are.

#define PLANES (MI + TAPS0 - 1)
#define STEPS (CHUNKS / 2 * TAPS2 * PLANES)
// Of a step, two chunks moved along the fastest axis, of one plane: for each tap along the second axis a warp's two
// lines.
__device__ __forceinline__ void load_step(u32 (&lines)[TAPS1][4], u32 from, int s) {
  const int moved = s / PLANES, place = moved / TAPS2 * 2 * HALO + moved % TAPS2 + s % PLANES * H1 * H2;
#pragma unroll
  for (int k = 0; k < TAPS1; ++k) load_matrix(lines[k], from + (place + k * H2) * 16);
}
template <class F>
__device__ __forceinline__ void multiply_round(Sum (&sums)[MI][NJ][4], u32 halo, u32 weights, int mma_steps,
                                               const int* places, bool fresh, F meanwhile) {
  const int lane = threadIdx.x & 31;
  int d, h;
  row_of_share(of_team() >> 7, d, h);
  // A lane has a voxel of one of two lines, and one of two chunks.
  const u32 from =
      halo + ((lane >> 4) * HALO + (d * H1 + (of_team() >> 5 & 3) * 2 + (lane >> 3 & 1)) * H2 + (lane & 7)) * 16;
  const u32 b0 = __shfl_sync(0xffffffff, weights >> 4, 0);
  u32 lines[3][TAPS1][4];
  load_step(lines[0], from, 0);
  if (STEPS > 1) load_step(lines[1], from, 1);
  hold(sums);
#pragma unroll
  for (int s = 0; s < STEPS; ++s) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int k1 = 0; k1 < TAPS1; ++k1)
#pragma unroll
      for (int k0 = 0; k0 < TAPS0; ++k0) {
        const int i = s % PLANES - k0, t = (s / PLANES * TAPS0 + k0) * TAPS1 + k1;
        const u32(&a)[4] = lines[s % 3][k1];
        if (i >= 0 && i < MI)
          multiply_group(sums[i], a[0], a[1], a[2], a[3], described(b0 + t * COLUMNS * (DEPTH / 16), COLUMNS, 8),
                         t > 0 || !fresh);
      }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    if (s == 0) meanwhile();
    if (s + 2 < STEPS) {
      // Registers that the tensor cores still read are not loaded anew.
      asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
      load_step(lines[(s + 2) % 3], from, s + 2);
    }
  }
}
