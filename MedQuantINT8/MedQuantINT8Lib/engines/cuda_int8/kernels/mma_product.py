"""CUDA C of a convolution's product on tensor cores: ``multiply_round`` adds to a team's sums what one filling of shared memory gives.

``LOAD`` comes first, then one of three forms. ``MMA`` with ldmatrix (compute capability 8.0 on). ``WGMMA`` and one of: ``BY_TAPS`` straight from shared memory (9.0), in which eight
neighbouring voxels of 16 bytes are the core matrix that it asks for, whichever tap moves them; ``BY_LINES`` from registers, for few columns, where
shared memory could not keep up. The instruction itself is written by wgmma_source.py. INT8 in 32 bits, FP16 in float32.
"""

LOAD = r"""
// Four matrices of eight rows of 16 bytes; each thread gives the address of one row.
__device__ __forceinline__ void load_matrix(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}
"""

MMA = r"""
#define MI (TILE0 * TILE1 / 2 / WARPS)
#define NJ (COLUMNS / 8)
__device__ __forceinline__ void clear(Sum (&sums)[MI][NJ][4]) {
#pragma unroll
  for (int i = 0; i < MI * NJ * 4; ++i) sums[i / (NJ * 4)][i / 4 % NJ][i % 4] = 0;
}
#if HALF
__device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#else
__device__ __forceinline__ void multiply(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif
// Rows of eight voxels go in pairs.
#define ROWS_OF 2
__device__ __forceinline__ void first_row(int& d, int& h) { row_of_share(of_team() >> 5, d, h); }
template <class F> __device__ __forceinline__ void multiply_round(Sum (&sums)[MI][NJ][4], u32 halo, u32 weights, int turns, const int* places, bool fresh, F meanwhile) {
  meanwhile();
  if (fresh) clear(sums);
  const int lane = threadIdx.x & 31, kh = lane >> 4, bk = (lane >> 3) & 1, br = (lane & 7) + ((lane >> 4) << 3);
  int first[MI];
#pragma unroll
  for (int i = 0; i < MI; ++i) {
    int d, h;
    first_row(d, h);
    first[i] = ((d + ROW_D(i)) * STRIDE0 * H1 + (h + ROW_H(i, 0) + (lane >> 3 & 1)) * STRIDE1) * H2 + (lane & 7);
  }
#pragma unroll 3
  for (int t = 0; t < turns; ++t) {
    u32 b[NJ / 2][4];
#pragma unroll
    for (int j = 0; j < NJ / 2; ++j) {
      const int r = t * COLUMNS + j * 16 + br;
      load_matrix(b[j], weights + r * DEPTH + ((bk ^ ((r >> 2) & 1)) << 4));
    }
#if CHUNK == 16
    const int place = kh ? places[2 * t + 1] : places[2 * t];
#else
    const int place = places[2 * t] / 2;
#endif
#pragma unroll
    for (int i = 0; i < MI; ++i) {
      const int v = first[i] + place;
      u32 a[4];
#if CHUNK == 16
      load_matrix(a, halo + v * 16);
#else
      load_matrix(a, halo + v * CHUNK + ((kh ^ ((v >> 2) & 1)) << 4));
#endif
#pragma unroll
      for (int j = 0; j < NJ / 2; ++j) { multiply(sums[i][2 * j], a, b[j][0], b[j][1]); multiply(sums[i][2 * j + 1], a, b[j][2], b[j][3]); }
    }
  }
}
"""

WGMMA = r"""
#define MI (TILE0 * TILE1 * 4 / 8 / WARPS)
#define NJ (COLUMNS / 8)
// A matrix in shared memory, all in units of 16 bytes: where it begins, from one core matrix to the next across, and down.
__device__ __forceinline__ u64 described(u32 begin, u32 across, u32 down) { return (u64)down << 32 | (begin + (across << 16)); }
#define ROWS_OF 8
__device__ __forceinline__ void first_row(int& d, int& h) { row_of_share(of_team() >> 7, d, h); h += ((threadIdx.x >> 5) & 3) * 2; }
// Keeps the compiler from moving sums while they are written asynchronously.
__device__ __forceinline__ void hold(Sum (&sums)[MI][NJ][4]) {
#pragma unroll
  for (int i = 0; i < MI * NJ * 4; ++i) asm volatile("" : HOLD(sums[i / (NJ * 4)][i / 4 % NJ][i % 4]) :: "memory");
}
"""

BY_TAPS = r"""
// The first turn of a tile overwrites what the sums held. The tensor cores take what they are given as they get on with it: what is to happen
// ``meanwhile`` comes after the first few turns, since giving them all takes as long as working on them.
template <class F> __device__ __forceinline__ void multiply_round(Sum (&sums)[MI][NJ][4], u32 halo, u32 weights, int turns, const int* places, bool fresh, F meanwhile) {
  int d, h;
  row_of_share(of_team() >> 7, d, h);
  // Told that a warp's threads agree, the compiler keeps descriptions in registers that they share.
  const u32 a0 = __shfl_sync(0xffffffff, (halo >> 4) + (d * STRIDE0 * H1 + h * STRIDE1) * H2, 0), b0 = __shfl_sync(0xffffffff, weights >> 4, 0);
  hold(sums);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#if WRITTEN_OUT
  const u64 a = described(a0, 0, STRIDE1 * H2), b = described(b0, COLUMNS, 8);
  multiply_first(sums, a, b, !fresh);
  meanwhile();
  multiply_rest(sums, a, b);
#else
#pragma unroll 3
  for (int t = 0; t < turns; ++t) {
    if (t == TURNS_BEFORE) meanwhile();
#pragma unroll
    for (int i = 0; i < MI; ++i)
      multiply_group(sums[i], described(a0 + (ROW_D(i) * STRIDE0 * H1 + ROW_H(i, 0) * STRIDE1) * H2 + places[2 * t], places[2 * t + 1] - places[2 * t], STRIDE1 * H2), described(b0 + t * COLUMNS * (DEPTH / 16), COLUMNS, 8), t > 0 || !fresh);
  }
  if (turns <= TURNS_BEFORE) meanwhile();
#endif
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
"""

# A warp holds lines of eight voxels in registers, for all taps along the first axis: from shared memory they come a third as often as if each tap
# took them from there. What the next turns multiply is loaded while the present ones are.
BY_LINES = r"""
#define PLANES (MI + TAPS0 - 1)
#define STEPS (PIECES / 2 * TAPS2 * PLANES)
// Of a step, two pieces moved along the fastest axis, of one plane: for each tap along the second axis a warp's two lines.
__device__ __forceinline__ void load_step(u32 (&lines)[TAPS1][4], u32 from, int s) {
  const int moved = s / PLANES, place = moved / TAPS2 * 2 * HALO + moved % TAPS2 + s % PLANES * H1 * H2;
#pragma unroll
  for (int k = 0; k < TAPS1; ++k) load_matrix(lines[k], from + (place + k * H2) * 16);
}
template <class F> __device__ __forceinline__ void multiply_round(Sum (&sums)[MI][NJ][4], u32 halo, u32 weights, int turns, const int* places, bool fresh, F meanwhile) {
  const int lane = threadIdx.x & 31;
  int d, h;
  row_of_share(of_team() >> 7, d, h);
  // A lane has a voxel of one of two lines, and one of two pieces.
  const u32 from = halo + ((lane >> 4) * HALO + (d * H1 + (of_team() >> 5 & 3) * 2 + (lane >> 3 & 1)) * H2 + (lane & 7)) * 16;
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
        const u32 (&a)[4] = lines[s % 3][k1];
        if (i >= 0 && i < MI) multiply_group(sums[i], a[0], a[1], a[2], a[3], described(b0 + t * COLUMNS * (DEPTH / 16), COLUMNS, 8), t > 0 || !fresh);
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
"""
