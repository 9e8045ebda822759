"""CUDA C of a convolution on tensor cores: an implicit matrix product whose left side is read out of a tile's halo in shared memory.

A tile's inputs are fetched once, not once a tap, and what lies outside the volume is filled in with zeros on the way. Two forms of the
product: ``mma`` with ``ldmatrix`` (compute capability 8.0 on) and ``wgmma`` straight from shared memory (9.0), in which eight
neighbouring voxels of 16 bytes are the core matrix that it asks for, whichever tap moves them. INT8 in 32 bits, FP16 in float32.
A block goes from tile to tile; what the next one needs is under way while the present one is multiplied and stored.
"""

FILL = r"""
__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void copy16(u32 to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(to), "l"(from), "r"(inside ? 16 : 0));
}
__device__ __forceinline__ void copies_end() { asm volatile("cp.async.commit_group;"); }
__device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_group 0;"); }

// First output voxel of a tile, and its first input.
struct Spot { int o0, o1, o2, i0, i1, i2; };
__device__ __forceinline__ Spot spot_of(int tile, int p0, int p1, int p2) {
  const int d2 = tile % TILES2 * TILE2, d1 = tile / TILES2 % TILES1 * TILE1, d0 = tile / (TILES1 * TILES2) * TILE0;
  Spot s;
  s.o0 = p0 + d0 * OUT_STEP0; s.o1 = p1 + d1 * OUT_STEP1; s.o2 = p2 + d2 * OUT_STEP2;
  s.i0 = STARTS0[p0] + d0 * STRIDE0 * IN_STEP0; s.i1 = STARTS1[p1] + d1 * STRIDE1 * IN_STEP1; s.i2 = STARTS2[p2] + d2 * STRIDE2 * IN_STEP2;
  return s;
}

#define PIECES (CHUNK / 16)
#define HALO (H0 * H1 * H2)
#define MINE ((HALO * PIECES + THREADS - 1) / THREADS)
// Threads take every so many pieces of the halo; where those lie does not change from tile to tile, and is kept if there is room.
#define KEEPS_PLACES (MINE <= 12)
#if WARP_GROUPS
#define PIECE_STEP (THREADS / PIECES * 16)
#else
#define PIECE_STEP (THREADS / PIECES * CHUNK)
#endif
__device__ __forceinline__ void piece_at(int i, int& x0, int& x1, int& x2, int& half) {
  const int v = i / PIECES, w = v % H2;
  half = i % PIECES;
  x0 = v / (H1 * H2) * IN_STEP0; x1 = v / H2 % H1 * IN_STEP1;
  x2 = (STRIDE2 == 1 ? w : w % (H2 / STRIDE2) * STRIDE2 + w / (H2 / STRIDE2)) * IN_STEP2;
}
__device__ __forceinline__ u32 piece_place(int i) {
  const int v = i / PIECES, half = i % PIECES;
#if WARP_GROUPS || CHUNK == 16
  return (half * HALO + v) * 16;
#else
  return v * CHUNK + ((half ^ ((v >> 2) & 1)) << 4);
#endif
}
__device__ __forceinline__ void note_places(int (&near)[MINE]) {
#if KEEPS_PLACES
#pragma unroll
  for (int k = 0; k < MINE; ++k) {
    int x0, x1, x2, half;
    piece_at(threadIdx.x + k * THREADS, x0, x1, x2, half);
    near[k] = ((x0 * I1 + x1) * I2 + x2) * PITCH + half * 16;
  }
#endif
}
__device__ __forceinline__ void fill_halo(u32 to, const Params& p, int n, const Spot& s, int chunk, const int (&near)[MINE]) {
#if KEEPS_PLACES
  if (s.i0 >= 0 && s.i0 + (H0 - 1) * IN_STEP0 < I0 && s.i1 >= 0 && s.i1 + (H1 - 1) * IN_STEP1 < I1 && s.i2 >= 0 && s.i2 + (H2 - 1) * IN_STEP2 < I2 && (chunk + 1) * CHUNK <= SOURCE_WIDTH) {
    const unsigned char* from = p.source + ((((i64)n * I0 + s.i0) * I1 + s.i1) * I2 + s.i2) * PITCH + chunk * CHUNK;
    const u32 first = to + piece_place(threadIdx.x);
#pragma unroll
    for (int k = 0; k < MINE; ++k)
      if ((k + 1) * THREADS <= HALO * PIECES || threadIdx.x + k * THREADS < HALO * PIECES) copy16(first + k * PIECE_STEP, from + near[k], true);
    return;
  }
#endif
  for (int i = threadIdx.x; i < HALO * PIECES; i += THREADS) {
    int x0, x1, x2, half;
    piece_at(i, x0, x1, x2, half);
    const int i0 = s.i0 + x0, i1 = s.i1 + x1, i2 = s.i2 + x2, byte = chunk * CHUNK + half * 16;
    const bool inside = (unsigned)i0 < I0 && (unsigned)i1 < I1 && (unsigned)i2 < I2 && byte < SOURCE_WIDTH;
    const unsigned char* from = inside ? p.source + ((((i64)n * I0 + i0) * I1 + i1) * I2 + i2) * PITCH + byte : p.source;
    copy16(to + piece_place(i), from, inside);
  }
}
__device__ __forceinline__ void fill_weights(u32 to, const Params& p, int kind, int round) {
  const unsigned char* from = p.weights + (((i64)kind * gridDim.y + blockIdx.y) * ROUNDS + round) * WEIGHT_BYTES;
  for (int i = threadIdx.x; i < WEIGHT_BYTES / 16; i += THREADS) copy16(to + i * 16, from + i * 16, true);
}
"""

MMA = r"""
#define MI (TILE0 * TILE1 / 2 / WARPS)
#define NJ (COLUMNS / 8)
__device__ __forceinline__ void clear(Sum (&sums)[MI][NJ][4]) {
#pragma unroll
  for (int i = 0; i < MI * NJ * 4; ++i) sums[i / (NJ * 4)][i / 4 % NJ][i % 4] = 0;
}
__device__ __forceinline__ void load_matrix(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
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
__device__ __forceinline__ void first_row(int& d, int& h) { row_of_team(threadIdx.x >> 5, d, h); }
__device__ __forceinline__ void multiply_round(Sum (&sums)[MI][NJ][4], u32 halo, u32 weights, int turns, const int* places, bool fresh) {
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
    const int place = places[t];
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
__device__ __forceinline__ u64 described(u32 address, u32 across, u32 down) {
  return (u64)((address & 0x3FFFF) >> 4) | (u64)across << 16 | (u64)down << 32;
}
#define ROWS_OF 8
__device__ __forceinline__ void first_row(int& d, int& h) { row_of_team(threadIdx.x >> 7, d, h); h += ((threadIdx.x >> 5) & 3) * 2; }
// Keeps the compiler from moving sums while they are written asynchronously.
__device__ __forceinline__ void hold(Sum (&sums)[MI][NJ][4]) {
#pragma unroll
  for (int i = 0; i < MI * NJ * 4; ++i) asm volatile("" : HOLD(sums[i / (NJ * 4)][i / 4 % NJ][i % 4]) :: "memory");
}
// The first turn of a tile overwrites what the sums held.
__device__ __forceinline__ void multiply_round(Sum (&sums)[MI][NJ][4], u32 halo, u32 weights, int turns, const int* places, bool fresh) {
  const int team = threadIdx.x >> 7;
  hold(sums);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll 3
  for (int t = 0; t < turns; ++t) {
#if CHUNK == 16
    const int place = places[2 * t], across = places[2 * t + 1] - place;
#else
    const int place = places[t], across = H0 * H1 * H2;
#endif
    const u64 b = described(weights + t * COLUMNS * DEPTH, COLUMNS, 8);
#pragma unroll
    for (int i = 0; i < MI; ++i) {
      const int f = team * MI + i, d = f / (TILE1 / 8), h = f % (TILE1 / 8) * 8;
      multiply_group(sums[i], described(halo + ((d * STRIDE0 * H1 + h * STRIDE1) * H2 + place) * 16, across, STRIDE1 * H2), b, t > 0 || !fresh);
    }
  }
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
"""

RUN_DEFINITIONS = r"""
#define TILES (TILES0 * TILES1 * TILES2)
// Rows of eight scores change places from one thread's channels to the next, so that threads write to different banks.
#define STAGED_TURN(column) (((column) / LANES) & 3)
#define RANKS (NJ / (LANES / 2))
extern __shared__ __align__(128) unsigned char memory[];
"""

RUN = r"""
#define FETCHES_EARLY (FETCHES && ROOM_TO_FETCH)
#if FETCHES_EARLY
#define HELD(held) , held
#else
#define HELD(held)
#endif
#if KEEPS_WEIGHTS
#define HALO_AT(stage) (shared + WEIGHT_BYTES + (stage) * HALO_BYTES)
#define WEIGHTS_AT(stage) shared
#else
#define HALO_AT(stage) (shared + (stage) * (HALO_BYTES + WEIGHT_BYTES))
#define WEIGHTS_AT(stage) (HALO_AT(stage) + HALO_BYTES)
#endif
extern "C" __global__ void __launch_bounds__(THREADS, LEAST_BLOCKS) run(const __grid_constant__ Params p) {
  const u32 shared = shared_address(memory);
#if OUTPUT
  unsigned short* scores = (unsigned short*)(memory + SCORES_AT);
#endif
  const int n = blockIdx.x / BLOCKS, lot = blockIdx.x % BLOCKS, phase = blockIdx.z / SPLIT, part = blockIdx.z % SPLIT;
  const int p2 = phase % PHASES2, p1 = phase / PHASES2 % PHASES1, p0 = phase / (PHASES1 * PHASES2), kind = SAME_TAPS ? 0 : phase;
  const int first = part * ROUNDS / SPLIT, each = (part + 1) * ROUNDS / SPLIT - first, total = ((TILES - 1 - lot) / BLOCKS + 1) * each;
  const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
#if STATISTICS
  float sum[RANKS][LANES], square[RANKS][LANES];
#pragma unroll
  for (int j = 0; j < RANKS; ++j)
#pragma unroll
    for (int k = 0; k < LANES; ++k) sum[j][k] = square[j][k] = 0.0f;
#endif
  Sum sums[MI][NJ][4];
#if WARP_GROUPS
#pragma unroll
  for (int i = 0; i < MI * NJ * 4; ++i) sums[i / (NJ * 4)][i / 4 % NJ][i % 4] = 0;
#endif
#if FETCHES_EARLY
  typename Chain<LANES>::Held held[RANKS][MI][2];
#endif
  int near[MINE];
  note_places(near);
  fill_weights(WEIGHTS_AT(0), p, kind, first);
  fill_halo(HALO_AT(0), p, n, spot_of(lot, p0, p1, p2), first / TURN_GROUPS, near);
  copies_end();
  for (int step = 0; step < total; ++step) {
    const int stage = STAGES == 2 ? step & 1 : 0, round = first + step % each, next = first + (step + 1) % each, tile = lot + step / each * BLOCKS;
    const bool more = step + 1 < total;
    wait_copies();
#if WARP_GROUPS
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
    __syncthreads();
    // With two stages the other was read to its end before the barrier: it is filled while this one is multiplied.
#define FILL_NEXT { \
      if (!KEEPS_WEIGHTS) fill_weights(WEIGHTS_AT(STAGES == 2 ? stage ^ 1 : 0), p, kind, next); \
      fill_halo(HALO_AT(STAGES == 2 ? stage ^ 1 : 0), p, n, spot_of(lot + (step + 1) / each * BLOCKS, p0, p1, p2), next / TURN_GROUPS, near); \
      copies_end(); }
#if STAGES == 2 && !WARP_GROUPS
    if (more) FILL_NEXT
#endif
#if FETCHES_EARLY
    // What the sums will meet is under way while they are made.
    if (round == first + each - 1) {
      const Rows rows(spot_of(tile, p0, p1, p2), g);
#pragma unroll
      for (int j = 0; j < RANKS; ++j) {
        const Place at(j, q);
#pragma unroll
        for (int i = 0; i < MI; ++i)
#pragma unroll
          for (int hh = 0; hh < 2; ++hh)
            if (rows.has(at, i, hh)) Chain<LANES>::fetch(held[j][i][hh], p, n, at.c, rows.first(at), ROW_STEP(i, hh));
      }
    }
#endif
    multiply_round(sums, HALO_AT(stage), WEIGHTS_AT(stage), ROUND_TURNS[kind * TURN_GROUPS + round % TURN_GROUPS], PLACES + (kind * TURN_GROUPS + round % TURN_GROUPS) * (GROUP_TURNS * DEPTH / CHUNK), round == first);
#if STAGES == 2 && WARP_GROUPS
    if (more) FILL_NEXT
#endif
#if WARP_GROUPS
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    hold(sums);
#endif
#if STAGES == 1
    if (more) { __syncthreads(); FILL_NEXT }
#endif
    if (round != first + each - 1) continue;
#if SPLIT > 1
    // Each block leaves its sums; the last to come adds them up, always in the same order.
    const i64 share = (i64)MI * NJ * 4 * THREADS;
    const i64 group = (((i64)n * TILES + tile) * gridDim.y + blockIdx.y) * (gridDim.z / SPLIT) + phase;
    Sum* kept = (Sum*)p.workspace + group * SPLIT * share;
#pragma unroll
    for (int i = 0; i < MI * NJ * 4; ++i) __stcg(kept + part * share + i * THREADS + threadIdx.x, sums[i / (NJ * 4)][i / 4 % NJ][i % 4]);
    __threadfence();
    __shared__ int last;
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd((int*)p.counters + group, 1) == SPLIT - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    if (threadIdx.x == 0) ((int*)p.counters)[group] = 0;
#pragma unroll
    for (int i = 0; i < MI * NJ * 4; ++i) {
      Sum whole = 0;
      for (int s = 0; s < SPLIT; ++s) whole += __ldcg(kept + s * share + i * THREADS + threadIdx.x);
      sums[i / (NJ * 4)][i / 4 % NJ][i % 4] = whole;
    }
#endif
    const Spot s = spot_of(tile, p0, p1, p2);
    const Rows rows(s, g);
#if OUTPUT
    int row_d, row_h;
    first_row(row_d, row_h);
#endif
    const auto give = [&](auto checked) {
#pragma unroll
      for (int j = 0; j < RANKS; ++j) {
        const Place at(j, q);
        Chain<LANES> chain(p, n, at.c, rows.first(at));
#pragma unroll
        for (int i = 0; i < MI; ++i)
#pragma unroll
          for (int hh = 0; hh < 2; ++hh)
            if (!checked.value || rows.has(at, i, hh)) {
              float v[LANES];
#pragma unroll
              for (int k = 0; k < LANES / 2; ++k) { v[2 * k] = (float)sums[i][j * LANES / 2 + k][hh * 2]; v[2 * k + 1] = (float)sums[i][j * LANES / 2 + k][hh * 2 + 1]; }
              chain.apply(v, ROW_STEP(i, hh) HELD(held[j][i][hh]) EXTRA(sum[j], square[j], scores + at.inside * STAGED_ROW + ((row_h + ROW_H(i, hh)) ^ STAGED_TURN(at.inside)) * TILE2 + g));
            }
      }
    };
    // Most tiles are inside: without a question between them, the work on one row fills the waits of another.
    if (rows.whole && (blockIdx.y + 1) * COLUMNS <= WIDTH * SPREAD) give(Known<false>()); else give(Known<true>());
#if STAGES_OUTPUT
    // A tile is a row of voxels: of each channel it goes out in one piece, eight scores a thread.
    __syncthreads();
    const int begin = s.o1 * TILE2, length = min(TILE1, (int)(VOXELS - begin) / TILE2);
    for (int i = threadIdx.x; i < COLUMNS * TILE1; i += THREADS) {
      const int column = i / TILE1, at = i % TILE1, slot = blockIdx.y * COLUMNS + column, k = slot < WIDTH ? channel_of(slot) : -1;
      if (k >= 0 && at < length) {
        vec16 row;
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(row.x), "=r"(row.y), "=r"(row.z), "=r"(row.w) : "r"(shared_address(scores + column * STAGED_ROW + (at ^ STAGED_TURN(column)) * 8)) : "memory");
        write16((unsigned short*)p.output + ((i64)n * CLASSES + k) * VOXELS + begin + at * 8, row.x, row.y, row.z, row.w);
      }
    }
#endif
  }
#if STATISTICS
  float* kept_sums = (float*)memory;
  __syncthreads();
#pragma unroll
  for (int j = 0; j < RANKS; ++j)
#pragma unroll
    for (int k = 0; k < LANES; ++k) {
#pragma unroll
      for (int apart = 4; apart < 32; apart *= 2) {
        sum[j][k] += __shfl_xor_sync(0xffffffff, sum[j][k], apart);
        square[j][k] += __shfl_xor_sync(0xffffffff, square[j][k], apart);
      }
      if (g == 0) {
        float* to = kept_sums + ((threadIdx.x >> 5) * COLUMNS + j * LANES * 4 + q * LANES + k) * 2;
        to[0] = sum[j][k]; to[1] = square[j][k];
      }
    }
  __syncthreads();
  for (int i = threadIdx.x; i < COLUMNS * 2; i += THREADS) {
    const int column = blockIdx.y * COLUMNS + i / 2, beside = column / WIDTH, c = column % WIDTH;
    if (beside < SPREAD) {
      float whole = 0.0f;
      for (int r = 0; r < WARPS; ++r) whole += kept_sums[r * COLUMNS * 2 + i];
      const i64 row = ((i64)(n * BLOCKS + lot) * (gridDim.z / SPLIT) + phase) * SPREAD + beside;
      p.partials[(row * WIDTH + c) * 2 + i % 2] = whole;
    }
  }
#endif
}
"""
