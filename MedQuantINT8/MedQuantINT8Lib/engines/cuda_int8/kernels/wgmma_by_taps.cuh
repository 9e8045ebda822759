// multiply_round straight from shared memory: eight neighboring voxels of 16 bytes are the core matrix that wgmma asks
// for, whichever tap moves them.

// The first MMA step of a tile overwrites what the sums held. The tensor cores take what they are given as they get on
// with it: what is to happen
// ``meanwhile`` comes after the first few MMA steps, since giving them all takes as long as working on them.
template <class F>
__device__ __forceinline__ void multiply_round(Sum (&sums)[MI][NJ][4], u32 halo, u32 weights, int mma_steps,
                                               const int* places, bool fresh, F meanwhile) {
  int d, h;
  row_of_share(of_team() >> 7, d, h);
  // Told that a warp's threads agree, the compiler keeps descriptions in registers that they share.
  const u32 a0 = __shfl_sync(0xffffffff, (halo >> 4) + (d * STRIDE0 * H1 + h * STRIDE1) * H2, 0),
            b0 = __shfl_sync(0xffffffff, weights >> 4, 0);
  hold(sums);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#if WRITTEN_OUT
  const u64 a = described(a0, 0, STRIDE1 * H2), b = described(b0, COLUMNS, 8);
  multiply_first(sums, a, b, !fresh);
  meanwhile();
  multiply_rest(sums, a, b);
#else
#pragma unroll 3
  for (int t = 0; t < mma_steps; ++t) {
    if (t == MMA_STEPS_BEFORE) meanwhile();
#pragma unroll
    for (int i = 0; i < MI; ++i)
      multiply_group(sums[i],
                     described(a0 + (ROW_D(i) * STRIDE0 * H1 + ROW_H(i, 0) * STRIDE1) * H2 + places[2 * t],
                               places[2 * t + 1] - places[2 * t], STRIDE1 * H2),
                     described(b0 + t * COLUMNS * (DEPTH / 16), COLUMNS, 8), t > 0 || !fresh);
  }
  if (mma_steps <= MMA_STEPS_BEFORE) meanwhile();
#endif
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
