// What a convolution's team of threads needs to bring a tile's inputs and weights to shared memory.
//
// kernels/convolution.py defines the sizes that are named here in capitals, and the tables STARTS0 to STARTS2. After
// this comes fill_halo.cuh, or fill_neighbors.cuh for a first convolution.

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void copy16(u32 to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0));
}
__device__ __forceinline__ void copy4(u32 to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from));
}
__device__ __forceinline__ void copies_end() { asm volatile("cp.async.commit_group;"); }
template <int LATER>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LATER));
}

// First output voxel of a tile, and its first input.
struct TileOrigin {
  int o0, o1, o2, i0, i1, i2;
};
__device__ __forceinline__ TileOrigin tile_origin(int tile, int p0, int p1, int p2) {
  const int d2 = tile % TILES2 * TILE2, d1 = tile / TILES2 % TILES1 * TILE1, d0 = tile / (TILES1 * TILES2) * TILE0;
  TileOrigin s;
  s.o0 = p0 + d0 * OUT_STEP0;
  s.o1 = p1 + d1 * OUT_STEP1;
  s.o2 = p2 + d2 * OUT_STEP2;
  s.i0 = STARTS0[p0] + d0 * STRIDE0 * IN_STEP0;
  s.i1 = STARTS1[p1] + d1 * STRIDE1 * IN_STEP1;
  s.i2 = STARTS2[p2] + d2 * STRIDE2 * IN_STEP2;
  return s;
}

#define HALO (H0 * H1 * H2)
#define TEAM_THREADS (32 * WARPS)
#define THREADS (TEAM_THREADS * TEAMS)
#if TEAMS > 1
__device__ __forceinline__ int team_of() { return threadIdx.x / TEAM_THREADS; }
__device__ __forceinline__ int of_team() { return threadIdx.x % TEAM_THREADS; }
__device__ __forceinline__ void meet() {
  asm volatile("bar.sync %0, %1;" ::"r"(team_of() + 1), "n"(TEAM_THREADS) : "memory");
}
// Teams take turns at the tensor cores: while one's sums are made, the others store and fetch. Left to themselves
// they would all do the same at the same time.
__device__ __forceinline__ void await_turn() {
  asm volatile("bar.sync %0, %1;" ::"r"(TEAMS + 1 + team_of()), "n"(2 * TEAM_THREADS) : "memory");
}
__device__ __forceinline__ void give_turn() {
  asm volatile("bar.arrive %0, %1;" ::"r"(TEAMS + 1 + (team_of() + 1) % TEAMS), "n"(2 * TEAM_THREADS) : "memory");
}
#else
__device__ __forceinline__ int team_of() { return 0; }
__device__ __forceinline__ int of_team() { return threadIdx.x; }
__device__ __forceinline__ void meet() { __syncthreads(); }
#endif
extern __shared__ __align__(128) unsigned char memory[];
// Of each voxel of the halo, worked out once: how far it is from the first in memory, and which it is along each axis,
// ten bits each.
#define HALO_TABLE ((vec8*)(memory + TABLE_AT))
#define PACKED(a, b, c) ((u32)(a) | (u32)(b) << 10 | (u32)(c) << 20)
#define SIGNS PACKED(MOST_HALO, MOST_HALO, MOST_HALO)
// Of a phase's inputs from ``first`` on, how many are before the volume, and the last that is inside.
__device__ __forceinline__ int before_volume(int first, int step) {
  return first < 0 ? min((step - 1 - first) / step, MOST_HALO) : 0;
}
__device__ __forceinline__ int last_inside(int first, int step, int size) {
  return first < size ? min((size - 1 - first) / step, MOST_HALO - 1) : -1;
}
// What of a halo is in the volume. Three comparisons at once: a sum or difference whose tenth bit is left is not
// negative.
struct Bounds {
  u32 low, high;
  __device__ __forceinline__ Bounds(int i0, int i1, int i2, int step0, int step1, int step2, int n0, int n1, int n2) {
    low = SIGNS - PACKED(before_volume(i0, step0), before_volume(i1, step1), before_volume(i2, step2));
    high =
        SIGNS + last_inside(i0, step0, n0) + last_inside(i1, step1, n1) * 1024 + last_inside(i2, step2, n2) * 1048576;
  }
  __device__ __forceinline__ bool has(u32 packed) const { return ((packed + low) & (high - packed) & SIGNS) == SIGNS; }
};
__device__ __forceinline__ u32 chunk_place(int i) {
  const int v = i / CHUNKS, half = i % CHUNKS;
#if WARP_GROUPS || K_BLOCK == 16
  return (half * HALO + v) * 16;
#else
  return v * K_BLOCK + ((half ^ ((v >> 2) & 1)) << 4);
#endif
}
__device__ __forceinline__ void fill_weights(u32 to, const Params& p, int kind, int round) {
  const unsigned char* from = p.weights + (((i64)kind * gridDim.y + blockIdx.y) * ROUNDS + round) * WEIGHT_BYTES;
  for (int i = threadIdx.x; i < WEIGHT_BYTES / 16; i += THREADS) copy16(to + i * 16, from + i * 16, true);
}
