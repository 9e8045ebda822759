"""CUDA C of what transformers need besides products: LayerNorm, and attention on tensor cores.

Attention never writes its scores: a block keeps the keys and values of one window and head in shared memory, and each of its warps takes sixteen
queries over all of them, with a running maximum and sum (the online softmax of arXiv 1805.02867, tiled as in arXiv 2205.14135).
"""

from __future__ import annotations

import numpy as np

from ..plan.kernel_plan import Plan, Step
from .elementwise import Grid, source_definitions
from .epilogue import PRELUDE, ChainSource
from .loads import READ

_LAYERNORM = r"""
#define GROUPS (WIDTH / 8)
#define CHUNKS ((GROUPS + LANES - 1) / LANES)
#define WANTED(c, i) (DENSE || channel_of((c) + (i)) >= 0)
// LANES threads share a voxel, eight slots each at a time.
extern "C" __global__ void __launch_bounds__(THREADS) run(const __grid_constant__ Params p) {
  const int n = blockIdx.y, lane = threadIdx.x % LANES;
  const i64 voxel = (i64)blockIdx.x * ROWS + threadIdx.x / LANES;
  const bool mine = voxel < VOXELS;
  const i64 row = !mine ? -1 : MOVES ? (i64)__ldg((const int*)p.ptr[TABLES + 2] + voxel) : voxel;
  float v[CHUNKS][8], sum = 0.0f, square = 0.0f;
#pragma unroll
  for (int k = 0; k < CHUNKS; ++k) {
    const int c = (k * LANES + lane) * 8;
    if (row >= 0 && c < WIDTH) {
      read_source(v[k], p, (i64)n * SOURCE_VOXELS + row, c);
#pragma unroll
      for (int i = 0; i < 8; ++i) if (WANTED(c, i)) sum += v[k][i];
    }
  }
#pragma unroll
  for (int apart = LANES / 2; apart > 0; apart /= 2) sum += __shfl_xor_sync(0xffffffff, sum, apart);
  const float mean = sum / CHANNELS;
#pragma unroll
  for (int k = 0; k < CHUNKS; ++k) {
    const int c = (k * LANES + lane) * 8;
    if (row >= 0 && c < WIDTH) {
#pragma unroll
      for (int i = 0; i < 8; ++i) if (WANTED(c, i)) square += (v[k][i] - mean) * (v[k][i] - mean);
    }
  }
#pragma unroll
  for (int apart = LANES / 2; apart > 0; apart /= 2) square += __shfl_xor_sync(0xffffffff, square, apart);
  if (!mine) return;
  const float by = rsqrtf(square / CHANNELS + EPSILON);
#pragma unroll
  for (int k = 0; k < CHUNKS; ++k) {
    const int c = (k * LANES + lane) * 8;
    if (c < WIDTH) {
      float w[8], gamma[8], beta[8];
      read_floats<8>(gamma, (const float*)p.ptr[TABLES] + c);
      read_floats<8>(beta, (const float*)p.ptr[TABLES + 1] + c);
#pragma unroll
      for (int i = 0; i < 8; ++i) w[i] = row >= 0 && WANTED(c, i) ? (v[k][i] - mean) * by * gamma[i] + beta[i] : 0.0f;
      Chain<8> chain(p, n, c);
      chain.apply(w, (int)voxel EXTRA(, , nullptr));
    }
  }
}
"""

_ATTENTION = r"""
#define LOG2E 1.44269504f
#define KEYS ((TOKENS + 31) / 32 * 32)
#define TILES ((TOKENS + 15) / 16)
// Rows lie 16 bytes farther apart than they are long, so that ldmatrix meets no bank twice.
#define ROW (DEEP + 8)
// Channels that are read and stored at once; those of a head are filled up with zeros to whole sixteens.
#define UNIT (HEAD % 8 ? 4 : 8)
extern __shared__ __align__(16) unsigned char memory[];
__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void load_matrix(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}
__device__ __forceinline__ void load_turned(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}
__device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Of probabilities, which do not overflow.
__device__ __forceinline__ u32 pair_of(float low, float high) { u32 r; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r; }
__device__ __forceinline__ float power2(float x) { float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
__device__ __forceinline__ void keep(u32 to, vec16 r) { asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" :: "r"(to), "r"(r.x), "r"(r.y), "r"(r.z), "r"(r.w) : "memory"); }
__device__ __forceinline__ void keep(u32 to, vec8 r) { asm volatile("st.shared.v2.u32 [%0], {%1, %2};" :: "r"(to), "r"(r.x), "r"(r.y) : "memory"); }
#if HEAD % 8
typedef vec8 Unit;
__device__ __forceinline__ Unit read_unit(const void* p) { return read8(p); }
#else
typedef vec16 Unit;
__device__ __forceinline__ Unit read_unit(const void* p) { return read16(p); }
#endif
__device__ __forceinline__ i64 voxel_of(const Params& p, int window, int token) {
  return HAS_ROWS ? (i64)__ldg((const int*)p.ptr[TABLES] + window * TOKENS + token) : (i64)window * TOKENS + token;
}
extern "C" __global__ void __launch_bounds__(WARPS * 32) run(const __grid_constant__ Params p) {
  const int window = blockIdx.x / HEADS, head = blockIdx.x % HEADS, n = blockIdx.z;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
  // The last head's block also fills the slots behind the last channel.
  const int parts = (head == HEADS - 1 ? WIDTH - head * HEAD : HEAD) / UNIT;
  unsigned short* keys = (unsigned short*)memory;
  unsigned short* values = keys + KEYS * ROW;
  float* staged = (float*)(values + KEYS * ROW) + warp * 16 * DEEP;
  int* regions = (int*)((float*)(values + KEYS * ROW) + WARPS * 16 * DEEP);
  const unsigned short* source = (const unsigned short*)p.source + (i64)n * VOXELS * PITCH + head * HEAD;
  for (int i = threadIdx.x; i < KEYS * (DEEP / UNIT); i += WARPS * 32) {
    const int token = i / (DEEP / UNIT), at = i % (DEEP / UNIT) * UNIT;
    Unit k = {}, v = {};
    if (token < TOKENS && at < HEAD) {
      const unsigned short* from = source + voxel_of(p, window, token) * PITCH + at;
      k = read_unit(from + START_K); v = read_unit(from + START_V);
    }
    keep(shared_address(keys + token * ROW + at), k);
    keep(shared_address(values + token * ROW + at), v);
  }
#if HAS_REGIONS
  // Most windows are one region.
  const int* all = (const int*)p.ptr[TABLES + 2] + window * TOKENS;
  bool other = false;
  for (int i = threadIdx.x; i < TOKENS; i += WARPS * 32) { regions[i] = __ldg(all + i); other |= regions[i] != __ldg(all); }
  const bool several = __syncthreads_or(other);
#else
  __syncthreads();
#endif
  const u32 keys_at = shared_address(keys) + (((lane >> 4) * 8 + (lane & 7)) * ROW + (lane >> 3 & 1) * 8) * 2;
  const u32 values_at = shared_address(values) + (((lane >> 3 & 1) * 8 + (lane & 7)) * ROW + (lane >> 4) * 8) * 2;
  for (int tile = blockIdx.y * WARPS + warp; tile < TILES; tile += gridDim.y * WARPS) {
    const int rows[2] = {tile * 16 + g, tile * 16 + g + 8};
#if HAS_BIAS
    const unsigned short* bias[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) bias[r] = (const unsigned short*)p.ptr[TABLES + 1] + ((i64)head * TOKENS + min(rows[r], TOKENS - 1)) * BIAS_PITCH;
#endif
#if HAS_REGIONS
    const int region[2] = {regions[min(rows[0], TOKENS - 1)], regions[min(rows[1], TOKENS - 1)]};
#endif
    u32 a[DEEP / 16][4];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool there = rows[r] < TOKENS;
      const unsigned short* from = source + (there ? voxel_of(p, window, rows[r]) * PITCH : 0) + START_Q + q * 2;
#pragma unroll
      for (int k = 0; k < DEEP / 16; ++k) {
        a[k][r] = there && k * 16 + q * 2 < HEAD ? read4(from + k * 16) : 0;
        a[k][2 + r] = there && k * 16 + q * 2 + 8 < HEAD ? read4(from + k * 16 + 8) : 0;
      }
    }
    float o[DEEP / 8][4], largest[2] = {-3e38f, -3e38f}, total[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < DEEP / 8; ++i)
#pragma unroll
      for (int k = 0; k < 4; ++k) o[i][k] = 0.0f;
    for (int first = 0; first < KEYS; first += 32) {
      float s[4][4];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int k = 0; k < 8; ++k) s[2 * j + k / 4][k % 4] = 0.0f;
#pragma unroll
        for (int k = 0; k < DEEP / 16; ++k) {
          u32 b[4];
          load_matrix(b, keys_at + ((first + j * 16) * ROW + k * 16) * 2);
          multiply(s[2 * j], a[k], b[0], b[1]);
          multiply(s[2 * j + 1], a[k], b[2], b[3]);
        }
      }
      float most[2] = {-3e38f, -3e38f};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int key = first + j * 8 + q * 2;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float added[2] = {0.0f, 0.0f};
#if HAS_BIAS
          // Behind the last token lies what is of no use: it is not looked at below.
          const u32 pair = read4(bias[r] + min(key, BIAS_PITCH - 2));
          added[0] = low_half(pair); added[1] = high_half(pair);
#endif
#if HAS_REGIONS
          if (several) {
#pragma unroll
            for (int k = 0; k < 2; ++k) added[k] += regions[min(key + k, TOKENS - 1)] != region[r] ? APART : 0.0f;
          }
#endif
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            float& x = s[j][2 * r + k];
            x = __fmaf_rn(x, SCALE, added[k]);
            if (first + 32 > TOKENS && key + k >= TOKENS) x = -3e38f;
            most[r] = fmaxf(most[r], x);
          }
        }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        most[r] = fmaxf(most[r], __shfl_xor_sync(0xffffffff, most[r], 1));
        most[r] = fmaxf(most[r], __shfl_xor_sync(0xffffffff, most[r], 2));
        const float now = fmaxf(largest[r], most[r]), less = power2((largest[r] - now) * LOG2E), below = -now * LOG2E;
        largest[r] = now;
        total[r] *= less;
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int k = 0; k < 2; ++k) { float& x = s[j][2 * r + k]; x = power2(__fmaf_rn(x, LOG2E, below)); total[r] += x; }
#pragma unroll
        for (int i = 0; i < DEEP / 8; ++i) { o[i][2 * r] *= less; o[i][2 * r + 1] *= less; }
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const u32 chances[4] = {pair_of(s[2 * j][0], s[2 * j][1]), pair_of(s[2 * j][2], s[2 * j][3]), pair_of(s[2 * j + 1][0], s[2 * j + 1][1]), pair_of(s[2 * j + 1][2], s[2 * j + 1][3])};
#pragma unroll
        for (int k = 0; k < DEEP / 16; ++k) {
          u32 b[4];
          load_turned(b, values_at + ((first + j * 16) * ROW + k * 16) * 2);
          multiply(o[2 * k], chances, b[0], b[1]);
          multiply(o[2 * k + 1], chances, b[2], b[3]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      total[r] += __shfl_xor_sync(0xffffffff, total[r], 1);
      total[r] += __shfl_xor_sync(0xffffffff, total[r], 2);
#pragma unroll
      for (int i = 0; i < DEEP / 8; ++i)
#pragma unroll
        for (int k = 0; k < 2; ++k) staged[(g + r * 8) * DEEP + i * 8 + q * 2 + k] = o[i][2 * r + k] / total[r];
    }
    __syncwarp();
    for (int i = lane; i < 16 * parts; i += 32) {
      const int row = i / parts, at = i % parts * UNIT, token = tile * 16 + row;
      if (token < TOKENS) {
        float v[UNIT];
#pragma unroll
        for (int k = 0; k < UNIT; ++k) v[k] = at < HEAD ? staged[row * DEEP + at + k] : 0.0f;
        Chain<UNIT> chain(p, n, head * HEAD + at);
        chain.apply(v, (int)voxel_of(p, window, token) EXTRA(, , nullptr));
      }
    }
    __syncwarp();
  }
  // Voxels that fill up a group belong to no window.
  if (window == 0 && blockIdx.y == 0 && warp == 0)
    for (int i = lane; i < (VOXELS - (i64)WINDOWS * TOKENS) * parts; i += 32) {
      float v[UNIT] = {};
      Chain<UNIT> chain(p, n, head * HEAD + i % parts * UNIT);
      chain.apply(v, WINDOWS * TOKENS + i / parts EXTRA(, , nullptr));
    }
}
"""

#: Warps of a block, and blocks that keep a large GPU busy.
_WARPS, _BUSY = 4, 528
ATTENTION_THREADS = 32 * _WARPS


def layernorm_source(plan: Plan, step: Step, chain: ChainSource) -> tuple[str, Grid]:
    """CUDA C of a LayerNorm, and its grid for one patch and block: (blocks, threads)."""
    assert step.source is not None
    groups = step.layout.width // 8
    lanes = min(32, 1 << (groups - 1).bit_length())
    rows = 256 // lanes
    defined: dict[str, object] = {
        **source_definitions(plan, step),
        "THREADS": 256,
        "LANES": lanes,
        "ROWS": rows,
        "CHANNELS": f"{step.layout.channels}.0f",
        "DENSE": int(step.layout.channels == step.layout.width),
        "EPSILON": _float(step.epsilon),
        "MOVES": int(len(step.tables) > 2),
        "SOURCE_VOXELS": f"{int(np.prod(step.source_size))}ll",
        "TABLES": len(chain.pointers),
    }
    return PRELUDE + _definitions(defined) + chain.text + READ + _LAYERNORM, (-(-step.voxels // rows), 256)


def attention_source(plan: Plan, step: Step, chain: ChainSource) -> tuple[str, int]:
    """CUDA C of attention, and the bytes of shared memory that a block takes."""
    assert step.source is not None and step.attention is not None
    a = step.attention
    rows, bias, regions = step.tables
    defined: dict[str, object] = {
        "WARPS": _WARPS,
        "TOKENS": a.tokens,
        "HEADS": a.heads,
        "HEAD": a.width,
        "DEEP": _deep(a.width),
        "WINDOWS": a.windows,
        "PITCH": plan.buffers[step.source.buffer].pitch,
        **{f"START_{name}": start for name, start in zip("QKV", a.starts, strict=True)},
        "SCALE": _float(a.scale),
        "APART": _float(a.apart),
        "HAS_ROWS": int(bool(rows)),
        "HAS_BIAS": int(bool(bias)),
        "HAS_REGIONS": int(bool(regions)),
        "BIAS_PITCH": plan.arrays[bias].shape[2] if bias else 0,
        "TABLES": len(chain.pointers),
    }
    keys = -(-a.tokens // 32) * 32
    shared = keys * (_deep(a.width) + 8) * 2 * 2 + _WARPS * 16 * _deep(a.width) * 4 + (a.tokens * 4 if regions else 0)
    return PRELUDE + _definitions(defined) + chain.text + _ATTENTION, shared


def attention_grid(step: Step, batch: int) -> tuple[int, int, int]:
    """Blocks of attention: one for each window and head, more where those are few."""
    assert step.attention is not None
    a = step.attention
    pairs = a.windows * a.heads
    most = -(-a.tokens // (16 * _WARPS))
    return pairs, min(most, max(1, -(-_BUSY // (pairs * batch)))), batch


def _deep(width: int) -> int:
    """Channels of a head as tensor cores take them."""
    return -(-width // 16) * 16


def _float(value: float) -> str:
    """In hexadecimal a float stays what it is."""
    return f"{float(np.float32(value)).hex()}f"


def _definitions(defined: dict[str, object]) -> str:
    return "".join(f"#define {name} {value}\n" for name, value in defined.items())
