"""CUDA C of a convolution on tensor cores: an implicit matrix product whose left side is read out of a tile's halo in shared memory.

A tile's inputs are fetched once, not once a tap, and what lies outside the volume is filled in with zeros on the way. A team of threads goes
from tile to tile; what the next one needs is under way while the present one is multiplied and stored. A block has one team, or several with
weights in common, which take turns at the tensor cores.
"""

FILL = r"""
__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void copy16(u32 to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(to), "l"(from), "r"(inside ? 16 : 0));
}
__device__ __forceinline__ void copy4(u32 to, const void* from) { asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(to), "l"(from)); }
__device__ __forceinline__ void copies_end() { asm volatile("cp.async.commit_group;"); }
template <int LATER> __device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_group %0;" :: "n"(LATER)); }

// First output voxel of a tile, and its first input.
struct Spot { int o0, o1, o2, i0, i1, i2; };
__device__ __forceinline__ Spot spot_of(int tile, int p0, int p1, int p2) {
  const int d2 = tile % TILES2 * TILE2, d1 = tile / TILES2 % TILES1 * TILE1, d0 = tile / (TILES1 * TILES2) * TILE0;
  Spot s;
  s.o0 = p0 + d0 * OUT_STEP0; s.o1 = p1 + d1 * OUT_STEP1; s.o2 = p2 + d2 * OUT_STEP2;
  s.i0 = STARTS0[p0] + d0 * STRIDE0 * IN_STEP0; s.i1 = STARTS1[p1] + d1 * STRIDE1 * IN_STEP1; s.i2 = STARTS2[p2] + d2 * STRIDE2 * IN_STEP2;
  return s;
}

#define HALO (H0 * H1 * H2)
#define TEAM_THREADS (32 * WARPS)
#define THREADS (TEAM_THREADS * TEAMS)
#if TEAMS > 1
__device__ __forceinline__ int team_of() { return threadIdx.x / TEAM_THREADS; }
__device__ __forceinline__ int of_team() { return threadIdx.x % TEAM_THREADS; }
__device__ __forceinline__ void meet() { asm volatile("bar.sync %0, %1;" :: "r"(team_of() + 1), "n"(TEAM_THREADS) : "memory"); }
// Teams take turns at the tensor cores: while one's sums are made, the others store and fetch. Left to themselves they would all do the same
// at the same time.
__device__ __forceinline__ void await_turn() { asm volatile("bar.sync %0, %1;" :: "r"(TEAMS + 1 + team_of()), "n"(2 * TEAM_THREADS) : "memory"); }
__device__ __forceinline__ void give_turn() { asm volatile("bar.arrive %0, %1;" :: "r"(TEAMS + 1 + (team_of() + 1) % TEAMS), "n"(2 * TEAM_THREADS) : "memory"); }
#else
__device__ __forceinline__ int team_of() { return 0; }
__device__ __forceinline__ int of_team() { return threadIdx.x; }
__device__ __forceinline__ void meet() { __syncthreads(); }
#endif
extern __shared__ __align__(128) unsigned char memory[];
// Of each voxel of the halo, worked out once: how far it is from the first in memory, and which it is along each axis, ten bits each.
#define HALO_TABLE ((vec8*)(memory + TABLE_AT))
#define PACKED(a, b, c) ((u32)(a) | (u32)(b) << 10 | (u32)(c) << 20)
#define SIGNS PACKED(MOST_HALO, MOST_HALO, MOST_HALO)
// Of lattice inputs from ``first`` on, how many are before the volume, and the last that is inside.
__device__ __forceinline__ int before_volume(int first, int step) { return first < 0 ? min((step - 1 - first) / step, MOST_HALO) : 0; }
__device__ __forceinline__ int last_inside(int first, int step, int size) { return first < size ? min((size - 1 - first) / step, MOST_HALO - 1) : -1; }
// What of a halo is in the volume. Three comparisons at once: a sum or difference whose tenth bit is left is not negative.
struct Bounds {
  u32 low, high;
  __device__ __forceinline__ Bounds(int i0, int i1, int i2, int step0, int step1, int step2, int n0, int n1, int n2) {
    low = SIGNS - PACKED(before_volume(i0, step0), before_volume(i1, step1), before_volume(i2, step2));
    high = SIGNS + last_inside(i0, step0, n0) + last_inside(i1, step1, n1) * 1024 + last_inside(i2, step2, n2) * 1048576;
  }
  __device__ __forceinline__ bool has(u32 packed) const { return ((packed + low) & (high - packed) & SIGNS) == SIGNS; }
};
__device__ __forceinline__ u32 piece_place(int i) {
  const int v = i / PIECES, half = i % PIECES;
#if WARP_GROUPS || CHUNK == 16
  return (half * HALO + v) * 16;
#else
  return v * CHUNK + ((half ^ ((v >> 2) & 1)) << 4);
#endif
}
__device__ __forceinline__ void fill_weights(u32 to, const Params& p, int kind, int round) {
  const unsigned char* from = p.weights + (((i64)kind * gridDim.y + blockIdx.y) * ROUNDS + round) * WEIGHT_BYTES;
  for (int i = threadIdx.x; i < WEIGHT_BYTES / 16; i += THREADS) copy16(to + i * 16, from + i * 16, true);
}
"""

FILL_HALO = r"""
// Threads take every so many pieces of the halo: each always the same piece of a voxel.
#define FILLING (TEAM_THREADS / PIECES * PIECES)
#define VOXEL_STEP (FILLING / PIECES)
#define MINE ((HALO * PIECES + FILLING - 1) / FILLING)
#define KEEPS_PLACES (MINE <= 16)
#if WARP_GROUPS
#define PIECE_STEP (VOXEL_STEP * 16)
#else
#define PIECE_STEP (VOXEL_STEP * CHUNK)
#endif
__device__ __forceinline__ void note_halo() {
  for (int v = threadIdx.x; v < HALO; v += THREADS) {
    const int w = v % H2, h0 = v / (H1 * H2), h1 = v / H2 % H1, h2 = STRIDE2 == 1 ? w : w % (H2 / STRIDE2) * STRIDE2 + w / (H2 / STRIDE2);
    vec8 r;
    r.x = ((h0 * IN_STEP0 * I1 + h1 * IN_STEP1) * I2 + h2 * IN_STEP2) * PITCH; r.y = PACKED(h0, h1, h2);
    HALO_TABLE[v] = r;
  }
}
// What a thread fetches of each tile that is inside, if there is room to keep it.
__device__ __forceinline__ void begin_filling(int (&near)[MINE], const Params& p, int n, const Spot& s) {
#if KEEPS_PLACES
#pragma unroll
  for (int k = 0; k < MINE; ++k) near[k] = HALO_TABLE[min(of_team() / PIECES + k * VOXEL_STEP, HALO - 1)].x;
#endif
}
__device__ __forceinline__ void fill_halo(u32 to, const Params& p, int n, const Spot& s, const Spot& next, int chunk, int (&near)[MINE]) {
  if (FILLING < TEAM_THREADS && of_team() >= FILLING) return;
  const int byte = chunk * CHUNK + of_team() % PIECES * 16;
  const unsigned char* from = p.source + ((((i64)n * I0 + s.i0) * I1 + s.i1) * I2 + s.i2) * PITCH + byte;
  u32 place = to + piece_place(of_team());
#if KEEPS_PLACES
  if (s.i0 >= 0 && s.i0 + (H0 - 1) * IN_STEP0 < I0 && s.i1 >= 0 && s.i1 + (H1 - 1) * IN_STEP1 < I1 && s.i2 >= 0 && s.i2 + (H2 - 1) * IN_STEP2 < I2 && (chunk + 1) * CHUNK <= SOURCE_WIDTH) {
#pragma unroll
    for (int k = 0; k < MINE; ++k)
      if ((k + 1) * FILLING <= HALO * PIECES || of_team() + k * FILLING < HALO * PIECES) copy16(place + k * PIECE_STEP, from + near[k], true);
    return;
  }
#endif
  const Bounds bounds(s.i0, s.i1, s.i2, IN_STEP0, IN_STEP1, IN_STEP2, I0, I1, I2);
  const bool deep = byte < SOURCE_WIDTH;
#pragma unroll 4
  for (int v = of_team() / PIECES; v < HALO; v += VOXEL_STEP, place += PIECE_STEP) {
    const vec8 at = HALO_TABLE[v];
    const bool inside = deep && bounds.has(at.y);
    copy16(place, inside ? from + (int)at.x : p.source, inside);
  }
}
"""

RUN_DEFINITIONS = r"""
#define TILES (TILES0 * TILES1 * TILES2)
#define LOTS (BLOCKS * TEAMS)
#define RANKS (NJ / (LANES / 2))
"""

RUN = r"""
// What the chain multiplies and adds, of the block's columns: read by each tile anew it would be waited for each time.
#define KEPT_CONSTANTS ((float*)(memory + CONSTANTS_AT))
__device__ __forceinline__ void keep_constants(const Params& p, int n) {
  for (int i = threadIdx.x; i < CONSTANTS * COLUMNS; i += THREADS) {
    const int column = blockIdx.y * COLUMNS + i % COLUMNS;
    copy4(shared_address(KEPT_CONSTANTS + i), Chain<LANES>::constant(p, n, column < WIDTH * SPREAD ? column % WIDTH : 0, i / COLUMNS));
  }
}
// Rows of eight or four sums of a thread. What the first of them will meet is read while sums are made; each that was worked on makes room for
// another.
#define THREAD_ROWS (RANKS * MI * 2)
#if FETCHES
#define HELD_ROW(row) , held[(row) % HELD_ROWS]
#else
#define HELD_ROW(row)
#endif
#if KEEPS_WEIGHTS
#define HALO_AT(stage) (shared + WEIGHT_BYTES + (team_of() * STAGES + (stage)) * HALO_BYTES)
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
  const int n = blockIdx.x / BLOCKS, lot = blockIdx.x % BLOCKS * TEAMS + team_of(), phase = blockIdx.z / SPLIT, part = blockIdx.z % SPLIT;
  const int p2 = phase % PHASES2, p1 = phase / PHASES2 % PHASES1, p0 = phase / (PHASES1 * PHASES2), kind = SAME_TAPS ? 0 : phase;
  const int first = part * ROUNDS / SPLIT, each = (part + 1) * ROUNDS / SPLIT - first;
  const int total = lot < TILES ? ((TILES - 1 - lot) / LOTS + 1) * each : 0;
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
#if FETCHES
  typename Chain<LANES>::Held held[HELD_ROWS];
  const auto fetch_row = [&](const Rows& rows, int row) {
    const Place at(row / (MI * 2), q);
    const int i = row / 2 % MI, hh = row % 2;
    if (rows.has(at, i, hh)) Chain<LANES>::fetch(held[row % HELD_ROWS], p, n, at.c, rows.first(at), ROW_STEP(i, hh));
  };
  const auto fetch_rows = [&](const Rows& rows) {
#pragma unroll
    for (int row = 0; row < HELD_ROWS; ++row) fetch_row(rows, row);
  };
#endif
  if (KEEPS_WEIGHTS) fill_weights(WEIGHTS_AT(0), p, kind, first);
  keep_constants(p, n);
  note_halo();
  __syncthreads();
  int kept[MINE];
  begin_filling(kept, p, n, spot_of(lot, p0, p1, p2));
  // What a step multiplies; of weights that are kept, nothing more.
  const auto fill = [&](int step) {
    const int stage = STAGES == 2 ? step & 1 : 0, round = first + step % each;
    if (!KEEPS_WEIGHTS) fill_weights(WEIGHTS_AT(stage), p, kind, round);
    const auto spot = [&](int step) { return spot_of(lot + min(step, total - 1) / each * LOTS, p0, p1, p2); };
    fill_halo(HALO_AT(stage), p, n, spot(step), spot(step + 1), round / TURN_GROUPS, kept);
    copies_end();
  };
  const auto await_fill = [&](int step) {
    if (STAGES == 2 && step == 0 && total > 1) wait_copies<1>(); else wait_copies<0>();
#if WARP_GROUPS
    // What threads copied is for the tensor cores to see.
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
  };
  if (total) fill(0); else copies_end();
  if (STAGES == 2 && total > 1) fill(1);
#if TEAMS > 1
  // All threads bring weights, and all of them use what the others brought.
  await_fill(0);
  __syncthreads();
#endif
  for (int step = 0; step < total; ++step) {
    const int stage = STAGES == 2 ? step & 1 : 0, round = first + step % each, tile = lot + step / each * LOTS;
    await_fill(step);
#if STAGES_OUTPUT
    await_scores();
#endif
    meet();
    // With two stages the other was read to its end before the barrier: it is filled while this one is multiplied, from the second step on. A team
    // that has its turn makes haste, and fetches when the next one has it.
    const bool more = step + 1 < total && (STAGES == 1 || step > 0);
    const auto meanwhile = [&] { if (STAGES == 2 && TEAMS == 1 && more) fill(step + 1); };
#if FETCHES && SPLIT == 1
    if (round == first + each - 1) fetch_rows(Rows(spot_of(tile, p0, p1, p2), g));
#endif
#if TEAMS > 1
    if (step > 0 || team_of() > 0) await_turn();
#endif
    multiply_round(sums, HALO_AT(stage), WEIGHTS_AT(stage), ROUND_TURNS[kind * TURN_GROUPS + round % TURN_GROUPS], PLACES + (kind * TURN_GROUPS + round % TURN_GROUPS) * GROUP_TURNS * 2, round == first, meanwhile);
#if TEAMS > 1
    // To who has a tile left: the next team, or the first again.
    if (tile + (team_of() + 1 < TEAMS ? 1 : LOTS - TEAMS + 1) < TILES) give_turn();
    if (STAGES == 2 && more) fill(step + 1);
#endif
#if WARP_GROUPS
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    hold(sums);
#endif
#if STAGES == 1
    if (more) { meet(); fill(step + 1); }
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
#if FETCHES && SPLIT > 1
    fetch_rows(rows);
#endif
#if OUTPUT
    int row_d, row_h;
    first_row(row_d, row_h);
#endif
    const auto give = [&](auto checked) {
#pragma unroll
      for (int j = 0; j < RANKS; ++j) {
        const Place at(j, q);
        Chain<LANES> chain(p, n, at.c, rows.first(at), KEPT_CONSTANTS + at.inside, COLUMNS);
#pragma unroll
        for (int i = 0; i < MI; ++i)
#pragma unroll
          for (int hh = 0; hh < 2; ++hh) {
            const int row = (j * MI + i) * 2 + hh;
            if (!checked.value || (STAGES_OUTPUT ? rows.has(i, hh) : rows.has(at, i, hh))) {
              float v[LANES];
#pragma unroll
              for (int k = 0; k < LANES / 2; ++k) { v[2 * k] = (float)sums[i][j * LANES / 2 + k][hh * 2]; v[2 * k + 1] = (float)sums[i][j * LANES / 2 + k][hh * 2 + 1]; }
              chain.apply(v, ROW_STEP(i, hh) HELD_ROW(row) EXTRA(sum[j], square[j], scores + staged_at(j * LANES * 4, row_h + ROW_H(i, hh))));
            }
#if FETCHES
            if (row + HELD_ROWS < THREAD_ROWS) fetch_row(rows, row + HELD_ROWS);
#endif
          }
      }
    };
    // Most tiles are inside: without a question between them, the work on one row fills the waits of another.
    if (EVEN || (rows.whole && (blockIdx.y + 1) * COLUMNS <= WIDTH * SPREAD)) give(Known<false>()); else give(Known<true>());
#if STAGES_OUTPUT
    send_scores(p, scores, n, s.o1);
#endif
  }
#if STAGES_OUTPUT
  end_scores();
#endif
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
      for (int r = 0; r < WARPS * TEAMS; ++r) whole += kept_sums[r * COLUMNS * 2 + i];
      const i64 row = ((i64)blockIdx.x * (gridDim.z / SPLIT) + phase) * SPREAD + beside;
      p.partials[(row * WIDTH + c) * 2 + i % 2] = whole;
    }
  }
#endif
}
"""
