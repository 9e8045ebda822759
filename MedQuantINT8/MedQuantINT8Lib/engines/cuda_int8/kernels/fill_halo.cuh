// A tile's halo in shared memory: all input voxels that its taps look at, fetched once, not once a tap. What lies
// outside the volume is filled in with zeros on the way.

// Threads load every so many chunks of the halo: each always the same chunk of a voxel.
#define FILLING (TEAM_THREADS / CHUNKS * CHUNKS)
#define VOXEL_STEP (FILLING / CHUNKS)
#define MINE ((HALO * CHUNKS + FILLING - 1) / FILLING)
#define KEEPS_PLACES (MINE <= 16)
#if WARP_GROUPS
#define CHUNK_STEP (VOXEL_STEP * 16)
#else
#define CHUNK_STEP (VOXEL_STEP * K_BLOCK)
#endif
__device__ __forceinline__ void note_halo() {
  for (int v = threadIdx.x; v < HALO; v += THREADS) {
    const int w = v % H2, h0 = v / (H1 * H2), h1 = v / H2 % H1,
              h2 = STRIDE2 == 1 ? w : w % (H2 / STRIDE2) * STRIDE2 + w / (H2 / STRIDE2);
    vec8 r;
    r.x = ((h0 * IN_STEP0 * I1 + h1 * IN_STEP1) * I2 + h2 * IN_STEP2) * PITCH;
    r.y = PACKED(h0, h1, h2);
    HALO_TABLE[v] = r;
  }
}
// What a thread fetches of each tile that is inside, if there is room to keep it.
__device__ __forceinline__ void begin_filling(int (&near)[MINE], const Params& p, int n, const TileOrigin& s) {
#if KEEPS_PLACES
#pragma unroll
  for (int k = 0; k < MINE; ++k) near[k] = HALO_TABLE[min(of_team() / CHUNKS + k * VOXEL_STEP, HALO - 1)].x;
#endif
}
__device__ __forceinline__ void fill_halo(u32 to, const Params& p, int n, const TileOrigin& s, const TileOrigin& next,
                                          int k_block, int (&near)[MINE]) {
  if (FILLING < TEAM_THREADS && of_team() >= FILLING) return;
  const int byte = k_block * K_BLOCK + of_team() % CHUNKS * 16;
  const unsigned char* from = p.source + ((((i64)n * I0 + s.i0) * I1 + s.i1) * I2 + s.i2) * PITCH + byte;
  u32 place = to + chunk_place(of_team());
#if KEEPS_PLACES
  if (s.i0 >= 0 && s.i0 + (H0 - 1) * IN_STEP0 < I0 && s.i1 >= 0 && s.i1 + (H1 - 1) * IN_STEP1 < I1 && s.i2 >= 0 &&
      s.i2 + (H2 - 1) * IN_STEP2 < I2 && (k_block + 1) * K_BLOCK <= SOURCE_WIDTH) {
#pragma unroll
    for (int k = 0; k < MINE; ++k)
      if ((k + 1) * FILLING <= HALO * CHUNKS || of_team() + k * FILLING < HALO * CHUNKS)
        copy16(place + k * CHUNK_STEP, from + near[k], true);
    return;
  }
#endif
  const Bounds bounds(s.i0, s.i1, s.i2, IN_STEP0, IN_STEP1, IN_STEP2, I0, I1, I2);
  const bool deep = byte < SOURCE_WIDTH;
#pragma unroll 4
  for (int v = of_team() / CHUNKS; v < HALO; v += VOXEL_STEP, place += CHUNK_STEP) {
    const vec8 at = HALO_TABLE[v];
    const bool inside = deep && bounds.has(at.y);
    copy16(place, inside ? from + (int)at.x : p.source, inside);
  }
}
