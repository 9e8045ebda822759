// A last convolution's scores: on their way out they lie in shared memory, a row of each channel.

#if STAGES_OUTPUT
#if TEAMS > 1
#error "scores have one place in a block"
#endif
// Rows are 16 bytes longer than they need to be, and two more every THREAD_CHANNELS rows, so that threads that write at
// once write to different banks.
__device__ __forceinline__ int row_at(int column) { return column * STAGED_ROW + column / THREAD_CHANNELS * 16; }
// Where a thread leaves scores of a row, given the first column of its rank; or the address that a matrix store wants
// of it.
__device__ __forceinline__ int staged_at(int first, int row) {
  const int lane = threadIdx.x & 31;
#if WRITES_MATRICES
  return row_at(first + (lane >> 1 & 3) * THREAD_CHANNELS + (lane >> 3) % (THREAD_CHANNELS / 2) * 2 + (lane & 1)) +
         row * TILE2;
#else
  return row_at(first + (lane & 3) * THREAD_CHANNELS) + row * TILE2 + (lane >> 2);
#endif
}
// Of each channel a tile's scores go out in one piece. On 9.0 and later that is a copy of its own, under way while the
// next tile is worked on.
__device__ __forceinline__ void send_scores(const Params& p, const unsigned short* scores, int n, int o1) {
  const int begin = o1 * TILE2, length = min(TILE1, (int)(VOXELS - begin) / TILE2);
#if WRITES_MATRICES
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  meet();
  for (int column = of_team(); column < COLUMNS; column += TEAM_THREADS) {
    const int slot = blockIdx.y * COLUMNS + column, k = slot < WIDTH ? channel_of(slot) : -1;
    if (k < 0) continue;
    unsigned short* to = (unsigned short*)p.output + ((i64)n * CLASSES + k) * VOXELS + begin;
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
                 "r"(shared_address(scores + row_at(column))), "r"(length * 16)
                 : "memory");
  }
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#else
  meet();
  for (int i = of_team(); i < COLUMNS * TILE1; i += TEAM_THREADS) {
    const int column = i / TILE1, at = i % TILE1, slot = blockIdx.y * COLUMNS + column,
              k = slot < WIDTH ? channel_of(slot) : -1;
    if (k >= 0 && at < length) {
      vec16 row;
      asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(row.x), "=r"(row.y), "=r"(row.z), "=r"(row.w)
                   : "r"(shared_address(scores + row_at(column) + at * 8))
                   : "memory");
      write16((unsigned short*)p.output + ((i64)n * CLASSES + k) * VOXELS + begin + at * 8, row.x, row.y, row.z, row.w);
    }
  }
#endif
}
// Until shared memory may be written to again; threads meet afterwards.
__device__ __forceinline__ void await_scores() {
#if WRITES_MATRICES
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
#endif
}
// Until all is where it belongs.
__device__ __forceinline__ void end_scores() {
#if WRITES_MATRICES
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
#endif
}
#else
#define staged_at(first, row) 0
#endif
