// A convolution on tensor cores: an implicit matrix product whose left side is read out of a tile's halo in shared
// memory.
//
// A team of threads goes from tile to tile; what the next one needs is under way while the present one is multiplied
// and stored. A block has one team, or several with weights in common, which take turns at the tensor cores.
// kernels/convolution.py puts the texts together: prelude, sizes, tables, the epilogue, the copies, the product, this.

// What the epilogue multiplies and adds, of the block's columns: read by each tile anew it would be waited for each
// time.
#define KEPT_CONSTANTS ((float*)(memory + CONSTANTS_AT))
__device__ __forceinline__ void keep_constants(const Params& p, int n) {
  for (int i = threadIdx.x; i < CONSTANTS * COLUMNS; i += THREADS) {
    const int column = blockIdx.y * COLUMNS + i % COLUMNS;
    copy4(shared_address(KEPT_CONSTANTS + i),
          Epilogue<THREAD_CHANNELS>::constant(p, n, column < WIDTH * SPREAD ? column % WIDTH : 0, i / COLUMNS));
  }
}
// Rows of eight or four sums of a thread. What the first of them will meet is read while sums are made; each that was
// worked on makes room for another.
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
  const int n = blockIdx.x / BLOCKS, tile_index = blockIdx.x % BLOCKS * TEAMS + team_of(), phase = blockIdx.z / SPLIT,
            part = blockIdx.z % SPLIT;
  const int p2 = phase % PHASES2, p1 = phase / PHASES2 % PHASES1, p0 = phase / (PHASES1 * PHASES2),
            kind = SAME_TAPS ? 0 : phase;
  const int first = part * ROUNDS / SPLIT, each = (part + 1) * ROUNDS / SPLIT - first;
  const int total = tile_index < TILES ? ((TILES - 1 - tile_index) / TILE_STRIDE + 1) * each : 0;
  const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
#if STATISTICS
  float sum[RANKS][THREAD_CHANNELS], square[RANKS][THREAD_CHANNELS];
#pragma unroll
  for (int j = 0; j < RANKS; ++j)
#pragma unroll
    for (int k = 0; k < THREAD_CHANNELS; ++k) sum[j][k] = square[j][k] = 0.0f;
#endif
  Sum sums[MI][NJ][4];
#if WARP_GROUPS
#pragma unroll
  for (int i = 0; i < MI * NJ * 4; ++i) sums[i / (NJ * 4)][i / 4 % NJ][i % 4] = 0;
#endif
#if FETCHES
  typename Epilogue<THREAD_CHANNELS>::Held held[HELD_ROWS];
  const auto fetch_row = [&](const Rows& rows, int row) {
    const Place at(row / (MI * 2), q);
    const int i = row / 2 % MI, hh = row % 2;
    if (rows.has(at, i, hh))
      Epilogue<THREAD_CHANNELS>::fetch(held[row % HELD_ROWS], p, n, at.c, rows.first(at), ROW_STEP(i, hh));
  };
  const auto fetch_rows = [&](const Rows& rows) {
#pragma unroll
    for (int row = 0; row < HELD_ROWS; ++row) fetch_row(rows, row);
  };
#endif
  if (KEEPS_WEIGHTS) {
    fill_weights(WEIGHTS_AT(0), p, kind, first);
  } else {
#pragma unroll
    for (int step = 0; step < STAGES; ++step)
      if (step < total) fill_weights(WEIGHTS_AT(step), p, kind, first + step % each);
  }
  note_halo();
  // Weights and the table of the halo are no other kernel's work: the first are under way by now.
  AWAIT_LAST();
  keep_constants(p, n);
  __syncthreads();
  int kept[MINE];
  begin_filling(kept, p, n, tile_origin(tile_index, p0, p1, p2));
  // What a step multiplies; of weights that are kept, nothing more.
  const auto fill = [&](int step) {
    const int stage = STAGES == 2 ? step & 1 : 0, round = first + step % each;
    if (!KEEPS_WEIGHTS && step >= STAGES) fill_weights(WEIGHTS_AT(stage), p, kind, round);
    const auto origin = [&](int step) {
      return tile_origin(tile_index + min(step, total - 1) / each * TILE_STRIDE, p0, p1, p2);
    };
    fill_halo(HALO_AT(stage), p, n, origin(step), origin(step + 1), round / MMA_STEP_GROUPS, kept);
    copies_end();
  };
  const auto await_fill = [&](int step) {
    if (STAGES == 2 && step == 0 && total > 1)
      wait_copies<1>();
    else
      wait_copies<0>();
#if WARP_GROUPS
    // What threads copied is for the tensor cores to see.
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
  };
  if (total)
    fill(0);
  else
    copies_end();
  if (STAGES == 2 && total > 1) fill(1);
#if TEAMS > 1
  // All threads bring weights, and all of them use what the others brought.
  await_fill(0);
  __syncthreads();
#endif
  for (int step = 0; step < total; ++step) {
    const int stage = STAGES == 2 ? step & 1 : 0, round = first + step % each,
              tile = tile_index + step / each * TILE_STRIDE;
    await_fill(step);
#if STAGES_OUTPUT
    await_scores();
#endif
    meet();
    // With two stages the other was read to its end before the barrier: it is filled while this one is multiplied, from
    // the second step on. A team that has its turn makes haste, and fetches when the next one has it.
    const bool more = step + 1 < total && (STAGES == 1 || step > 0);
    const auto meanwhile = [&] {
      if (STAGES == 2 && TEAMS == 1 && more) fill(step + 1);
    };
#if FETCHES && SPLIT == 1
    if (round == first + each - 1) fetch_rows(Rows(tile_origin(tile, p0, p1, p2), g));
#endif
#if TEAMS > 1
    if (step > 0 || team_of() > 0) await_turn();
#endif
    multiply_round(
        sums, HALO_AT(stage), WEIGHTS_AT(stage), ROUND_MMA_STEPS[kind * MMA_STEP_GROUPS + round % MMA_STEP_GROUPS],
        PLACES + (kind * MMA_STEP_GROUPS + round % MMA_STEP_GROUPS) * GROUP_MMA_STEPS * 2, round == first, meanwhile);
#if TEAMS > 1
    // To who has a tile left: the next team, or the first again.
    if (tile + (team_of() + 1 < TEAMS ? 1 : TILE_STRIDE - TEAMS + 1) < TILES) give_turn();
    if (STAGES == 2 && more) fill(step + 1);
#endif
#if WARP_GROUPS
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    hold(sums);
#endif
#if STAGES == 1
    if (more) {
      meet();
      fill(step + 1);
    }
#endif
    if (round != first + each - 1) continue;
#if SPLIT > 1
    // Each block leaves its sums; the last to come adds them up, always in the same order.
    const i64 share = (i64)MI * NJ * 4 * THREADS;
    const i64 group = (((i64)n * TILES + tile) * gridDim.y + blockIdx.y) * (gridDim.z / SPLIT) + phase;
    Sum* kept = (Sum*)p.workspace + group * SPLIT * share;
#pragma unroll
    for (int i = 0; i < MI * NJ * 4; ++i)
      __stcg(kept + part * share + i * THREADS + threadIdx.x, sums[i / (NJ * 4)][i / 4 % NJ][i % 4]);
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
    const TileOrigin s = tile_origin(tile, p0, p1, p2);
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
        Epilogue<THREAD_CHANNELS> epilogue(p, n, at.c, rows.first(at), KEPT_CONSTANTS + at.inside, COLUMNS);
#pragma unroll
        for (int i = 0; i < MI; ++i)
#pragma unroll
          for (int hh = 0; hh < 2; ++hh) {
            const int row = (j * MI + i) * 2 + hh;
            if (!checked.value || (STAGES_OUTPUT ? rows.has(i, hh) : rows.has(at, i, hh))) {
              float v[THREAD_CHANNELS];
#pragma unroll
              for (int k = 0; k < THREAD_CHANNELS / 2; ++k) {
                v[2 * k] = (float)sums[i][j * THREAD_CHANNELS / 2 + k][hh * 2];
                v[2 * k + 1] = (float)sums[i][j * THREAD_CHANNELS / 2 + k][hh * 2 + 1];
              }
              epilogue.apply(
                  v, ROW_STEP(i, hh) HELD_ROW(row)
                         EXTRA(sum[j], square[j], scores + staged_at(j * THREAD_CHANNELS * 4, row_h + ROW_H(i, hh))));
            }
#if FETCHES
            if (row + HELD_ROWS < THREAD_ROWS) fetch_row(rows, row + HELD_ROWS);
#endif
          }
      }
    };
    // Most tiles are inside: without a question between them, the work on one row fills the waits of another.
    if (EVEN || (rows.whole && (blockIdx.y + 1) * COLUMNS <= WIDTH * SPREAD))
      give(Known<false>());
    else
      give(Known<true>());
#if STAGES_OUTPUT
    send_scores(p, scores, n, s.o1);
#endif
  }
  BEGIN_NEXT();
#if STAGES_OUTPUT
  end_scores();
#endif
#if STATISTICS
  float* kept_sums = (float*)memory;
  __syncthreads();
#pragma unroll
  for (int j = 0; j < RANKS; ++j)
#pragma unroll
    for (int k = 0; k < THREAD_CHANNELS; ++k) {
#pragma unroll
      for (int apart = 4; apart < 32; apart *= 2) {
        sum[j][k] += __shfl_xor_sync(0xffffffff, sum[j][k], apart);
        square[j][k] += __shfl_xor_sync(0xffffffff, square[j][k], apart);
      }
      if (g == 0) {
        float* to = kept_sums + ((threadIdx.x >> 5) * COLUMNS + j * THREAD_CHANNELS * 4 + q * THREAD_CHANNELS + k) * 2;
        to[0] = sum[j][k];
        to[1] = square[j][k];
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
