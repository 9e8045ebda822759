"""CUDA C of the steps that walk over voxels: input, pooling, resizing, elementwise work, softmax; and of normalisation's statistics.

A thread keeps its eight slots and goes from voxel to voxel, so that the constants of its chain stay in registers.
"""

from __future__ import annotations

import numpy as np

from ..plan.kernel_plan import Plan, Step
from .epilogue import PRELUDE, ChainSource
from .loads import READ, TAKE, TAKE_WHOLE

_LEAVE_SUMS = r"""
#if STATISTICS
  __shared__ float kept[ROWS * WIDTH * 2];
#pragma unroll
  for (int i = 0; i < 8; ++i) { kept[(row * WIDTH + c + i) * 2] = sum[i]; kept[(row * WIDTH + c + i) * 2 + 1] = square[i]; }
  __syncthreads();
  float* to = p.partials + ((i64)n * gridDim.x + blockIdx.x) * WIDTH * 2;
  for (int i = threadIdx.x; i < WIDTH * 2; i += THREADS) {
    float total = 0.0f;
    for (int r = 0; r < ROWS; ++r) total += kept[r * WIDTH * 2 + i];
    to[i] = total;
  }
#endif
}
"""

_BEGIN = r"""
#define GROUPS (WIDTH / 8)
extern "C" __global__ void __launch_bounds__(THREADS) run(const __grid_constant__ Params p) {
  const int n = PATCH, c = (threadIdx.x % GROUPS) * 8, row = threadIdx.x / GROUPS;
  Chain<8> chain(p, n, c);
#if STATISTICS
  float sum[8], square[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) sum[i] = square[i] = 0.0f;
#endif
"""

# Of a few voxels everything is read before any is worked on; only at the end of a volume are there fewer.
_LOOP = (
    _BEGIN
    + r"""
  for (int pass = 0; pass < PASSES; pass += AHEAD) {
    const i64 first = ((i64)TURN * PASSES + pass) * ROWS + row;
    if (first + (AHEAD - 1) * ROWS < VOXELS) {
      Taken taken[AHEAD];
      typename Chain<8>::Held held[AHEAD];
#pragma unroll
      for (int k = 0; k < AHEAD; ++k) {
        taken[k].read(p, n, first + k * ROWS, c);
        Chain<8>::fetch(held[k], p, n, c, 0, (int)first + k * ROWS);
      }
#pragma unroll
      for (int k = 0; k < AHEAD; ++k) {
        float v[8];
        taken[k].opened(v);
        chain.apply(v, (int)first + k * ROWS, held[k] EXTRA(sum, square, nullptr));
      }
    } else {
      for (i64 voxel = first; voxel < VOXELS; voxel += ROWS) {
        float v[8];
        take(v, p, n, voxel, c);
        chain.apply(v, (int)voxel EXTRA(sum, square, nullptr));
      }
    }
  }
"""
    + _LEAVE_SUMS
)

# A thread goes along the fastest axis, two outputs at a time: what it blended across the others for one output serves the next as well, and
# what two of them need is under way before either is worked out.
_LINES = (
    _BEGIN
    + r"""
  for (int pass = 0; pass < PASSES; ++pass) {
    const i64 item = ((i64)blockIdx.x * PASSES + pass) * ROWS + row;
    if (item >= LINES) break;
    const int first = (int)(item % RUNS) * RUN, end = min(first + RUN, O2);
    const i64 line = item / RUNS;
    const Place y = place_of(p.ptr[TABLES + 1], O1, (int)(line % O1)), z = place_of(p.ptr[TABLES], O0, (int)(line / O1));
    int at_low = -1, at_high = -1;
    float below[8], above[8];
    for (int o2 = first; o2 < end; o2 += 2) {
      const Place both[2] = {place_of(p.ptr[TABLES + 2], O2, o2), place_of(p.ptr[TABLES + 2], O2, min(o2 + 1, O2 - 1))};
      const int ahead = LINEAR2 ? both[1].high : both[1].low;
      Column next;
      if (ahead != at_high) next.read(p, n, z, y, ahead, c);
      typename Chain<8>::Held held[2];
#pragma unroll
      for (int k = 0; k < 2; ++k)
        if (o2 + k < end) Chain<8>::fetch(held[k], p, n, c, 0, (int)line * O2 + o2 + k);
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        if (o2 + k >= end) break;
        const Place x = both[k];
        if (x.low != at_low) {
          at_low = x.low;
          if (at_low == at_high) {
#pragma unroll
            for (int i = 0; i < 8; ++i) below[i] = above[i];
          } else column(below, next, ahead, p, n, z, y, at_low, c);
        }
        float v[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = below[i];
        if (LINEAR2) {
          if (x.high != at_high) { at_high = x.high; column(above, next, ahead, p, n, z, y, at_high, c); }
          mixed(v, above, x.share);
        }
        chain.apply(v, (int)line * O2 + o2 + k, held[k] EXTRA(sum, square, nullptr));
      }
    }
  }
"""
    + _LEAVE_SUMS
)

_SOFTMAX = r"""
extern "C" __global__ void __launch_bounds__(THREADS) run(const __grid_constant__ Params p) {
  const int n = blockIdx.y;
  i64 voxel = (i64)blockIdx.x * THREADS + threadIdx.x;
  if (voxel >= VOXELS) return;
  float largest = -3.4e38f, total = 0.0f;
  for (int c = 0; c < WIDTH; c += 8) { float v[8]; take(v, p, n, voxel, c); for (int i = 0; i < 8; ++i) if (channel_of(c + i) >= 0) largest = fmaxf(largest, v[i]); }
  for (int c = 0; c < WIDTH; c += 8) { float v[8]; take(v, p, n, voxel, c); for (int i = 0; i < 8; ++i) if (channel_of(c + i) >= 0) total += expf(v[i] - largest); }
  for (int c = 0; c < WIDTH; c += 8) {
    Chain<8> chain(p, n, c);
    float v[8];
    take(v, p, n, voxel, c);
    for (int i = 0; i < 8; ++i) v[i] = channel_of(c + i) >= 0 ? expf(v[i] - largest) / total : 0.0f;
    chain.apply(v, (int)voxel EXTRA(, , nullptr));
  }
}
"""

NORMALIZE = (
    PRELUDE
    + r"""
#define NUMBER(i) ((int)(i64)p.ptr[5 + (i)])
#define PARTIALS NUMBER(0)
#define WIDTH NUMBER(1)
#define VOXELS NUMBER(2)
#define FIRST NUMBER(3)
#if REGULAR
#define SLOT(i) (FIRST + (int)blockIdx.x * MEMBERS + (i))
#else
#define SLOT(i) __ldg((const int*)p.ptr[0] + blockIdx.x * MEMBERS + (i))
#endif
// Sums of partial sums in a fixed order, in double precision: the same result every time.
extern "C" __global__ void __launch_bounds__(256) run(const __grid_constant__ Params p) {
  const int n = blockIdx.y, lane = threadIdx.x & 31;
  // What becomes scale and shift is on its way while sums are added up.
  const int mine = SLOT(min((int)threadIdx.x, MEMBERS - 1));
  const float gamma = __ldg((const float*)p.ptr[1] + mine), beta = __ldg((const float*)p.ptr[2] + mine);
  double sum = 0.0, square = 0.0;
#pragma unroll 4
  for (int i = threadIdx.x; i < PARTIALS * MEMBERS; i += 256) {
    const vec8 both = read8(p.partials + (((i64)n * PARTIALS + i / MEMBERS) * WIDTH + SLOT(i % MEMBERS)) * 2);
    sum += (double)__uint_as_float(both.x); square += (double)__uint_as_float(both.y);
  }
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) { sum += __shfl_xor_sync(0xffffffff, sum, apart); square += __shfl_xor_sync(0xffffffff, square, apart); }
  __shared__ double sums[8], squares[8];
  if (lane == 0) { sums[threadIdx.x / 32] = sum; squares[threadIdx.x / 32] = square; }
  __syncthreads();
  if (threadIdx.x >= MEMBERS) return;
  sum = square = 0.0;
#pragma unroll
  for (int warp = 0; warp < 8; ++warp) { sum += sums[warp]; square += squares[warp]; }
  const double count = (double)VOXELS * MEMBERS, mean = sum / count;
  const double spread = 1.0 / sqrt(fmax(square / count - mean * mean, 0.0) + (double)p.f[0]);
  for (int i = threadIdx.x; i < MEMBERS; i += 256) {
    const int slot = SLOT(i);
    const float scale = (float)((double)(i < 256 ? gamma : __ldg((const float*)p.ptr[1] + slot)) * spread);
    ((float*)p.ptr[3])[n * WIDTH + slot] = scale;
    ((float*)p.ptr[4])[n * WIDTH + slot] = (float)((double)(i < 256 ? beta : __ldg((const float*)p.ptr[2] + slot)) - mean * (double)scale);
  }
}
"""
)

#: Voxels that a thread takes in turn, where that leaves so many blocks; of a resize, along the fastest axis.
PASSES, ENOUGH_BLOCKS, RUN = 4, 512, 12
#: Blocks, about, where each leaves its sums.
MOST_PARTIALS = 2048


def threads_of(width: int) -> int:
    """Threads of a block: whole voxels, about 256."""
    groups = width // 8
    return groups * max(1, 256 // groups)


#: Blocks for one patch, and threads of a block.
Grid = tuple[int, int]


def source_definitions(plan: Plan, step: Step) -> dict[str, object]:
    """What READ needs to know of a step's source."""
    assert step.source is not None
    scale = step.source.scale
    # In hexadecimal a float stays what it is.
    return {
        "PITCH": plan.buffers[step.source.buffer].pitch,
        "SOURCE_BYTES": int(bool(scale)),
        "SOURCE_SCALE": f"{float(np.float32(scale)).hex()}f",
    }


def walk_source(plan: Plan, step: Step, chain: ChainSource) -> tuple[str, Grid]:
    """CUDA C of a step, and its grid for one patch and block: (blocks, threads)."""
    alone = step.kind == "softmax"
    threads = 256 if alone else threads_of(step.layout.width)
    rows = threads // (step.layout.width // 8) if not alone else 1
    voxels = step.voxels
    # Where statistics are gathered, few blocks leave few partial sums.
    runs = -(-step.size[2] // RUN)
    items = voxels // step.size[2] * runs if step.kind == "resize" else voxels
    least = PASSES if step.kind != "resize" and items >= rows * PASSES * ENOUGH_BLOCKS else 1
    ahead = least if step.kind in ("apply", "move") else 1
    passes = max(least, -(-items // (rows * MOST_PARTIALS * ahead)) * ahead) if chain.norm else least
    defined: dict[str, object] = {"THREADS": threads, "ROWS": rows, "PASSES": passes, "AHEAD": ahead}
    # What the step before wrote last is still in the cache, and is read first.
    backwards = step.kind == "apply"
    defined["TURN"], defined["PATCH"] = (
        ("(gridDim.x - 1 - blockIdx.x)", "(gridDim.y - 1 - blockIdx.y)") if backwards else ("blockIdx.x", "blockIdx.y")
    )
    text = ""
    if step.source is not None:
        defined |= source_definitions(plan, step)
        text = READ
    kind = {"maxpool": "pool", "avgpool": "pool", "softmax": "apply"}.get(step.kind, step.kind)
    if kind in ("pool", "resize"):
        for axis in range(3):
            defined |= {f"O{axis}": step.size[axis], f"I{axis}": step.source_size[axis]}
    if kind == "pool":
        g = step.geometry
        for axis in range(3):
            defined |= {
                f"K{axis}": g.kernel[axis],
                f"S{axis}": g.stride[axis],
                f"D{axis}": g.dilation[axis],
                f"B{axis}": g.before[axis],
            }
        defined |= {"LARGEST": int(step.kind == "maxpool"), "WHOLE": int(g.whole)}
    if kind in ("resize", "move"):
        defined |= {"TABLES": len(chain.pointers), "SOURCE_VOXELS": f"{int(np.prod(step.source_size))}ll"}
    if kind == "resize":
        linear = {f"LINEAR{axis}": int(plan.arrays[step.tables[axis]][2].any()) for axis in range(3)}
        defined |= {"RUN": RUN, "RUNS": runs, "LINES": f"{items}ll", **linear}
    if kind == "input":
        defined["CHANNELS"] = plan.channels
    head = "".join(f"#define {name} {value}\n" for name, value in defined.items())
    if step.kind == "softmax":
        blocks, body = -(-voxels // threads), _SOFTMAX
    else:
        blocks, body = -(-items // (rows * passes)), _LINES if kind == "resize" else _LOOP
    return PRELUDE + head + chain.text + text + TAKE[kind] + ("" if kind == "resize" else TAKE_WHOLE) + body, (
        blocks,
        threads,
    )


#: FP16 scores as float32, for who wants them so.
WIDEN = (
    PRELUDE
    + r"""
extern "C" __global__ void __launch_bounds__(256) run(const __grid_constant__ Params p) {
  const i64 i = ((i64)blockIdx.x * 256 + threadIdx.x) * 2;
  const i64 count = (i64)p.ptr[0];
  if (i >= count) return;
  const u32 pair = i + 1 < count ? read4(p.source + i * 2) : *(const unsigned short*)(p.source + i * 2);
  ((float*)p.output)[i] = low_half(pair);
  if (i + 1 < count) ((float*)p.output)[i + 1] = high_half(pair);
}
"""
)
