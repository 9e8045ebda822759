// A convolution's product by mma.sync, on compute capability 8.0 and later: multiply_round adds to a team's sums what
// one filling of shared memory gives. INT8 is summed up in 32 bits, FP16 in float32.

#define MI (TILE0 * TILE1 / 2 / WARPS)
#define NJ (COLUMNS / 8)
__device__ __forceinline__ void clear(Sum (&sums)[MI][NJ][4]) {
#pragma unroll
  for (int i = 0; i < MI * NJ * 4; ++i) sums[i / (NJ * 4)][i / 4 % NJ][i % 4] = 0;
}
#if HALF
__device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#else
__device__ __forceinline__ void multiply(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif
// Rows of eight voxels go in pairs.
#define ROWS_OF 2
__device__ __forceinline__ void first_row(int& d, int& h) { row_of_share(of_team() >> 5, d, h); }
template <class F>
__device__ __forceinline__ void multiply_round(Sum (&sums)[MI][NJ][4], u32 halo, u32 weights, int mma_steps,
                                               const int* places, bool fresh, F meanwhile) {
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
  for (int t = 0; t < mma_steps; ++t) {
    u32 b[NJ / 2][4];
#pragma unroll
    for (int j = 0; j < NJ / 2; ++j) {
      const int r = t * COLUMNS + j * 16 + br;
      load_matrix(b[j], weights + r * DEPTH + ((bk ^ ((r >> 2) & 1)) << 4));
    }
#if K_BLOCK == 16
    const int place = kh ? places[2 * t + 1] : places[2 * t];
#else
    const int place = places[2 * t] / 2;
#endif
#pragma unroll
    for (int i = 0; i < MI; ++i) {
      const int v = first[i] + place;
      u32 a[4];
#if K_BLOCK == 16
      load_matrix(a, halo + v * 16);
#else
      load_matrix(a, halo + v * K_BLOCK + ((kh ^ ((v >> 2) & 1)) << 4));
#endif
#pragma unroll
      for (int j = 0; j < NJ / 2; ++j) {
        multiply(sums[i][2 * j], a, b[j][0], b[j][1]);
        multiply(sums[i][2 * j + 1], a, b[j][2], b[j][3]);
      }
    }
  }
}
