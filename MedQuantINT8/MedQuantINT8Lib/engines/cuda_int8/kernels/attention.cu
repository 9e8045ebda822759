// Attention on tensor cores.
//
// It never writes its scores: a block keeps the keys and values of one window and head in shared memory, and each of
// its warps takes sixteen queries over all of them, with a running maximum and sum (the online softmax of arXiv
// 1805.02867, tiled as in arXiv 2205.14135). Where windows and heads are few, KEY_PARTS warps share the keys of sixteen
// queries, and the first of them puts together what they came to.

#define LOG2E 1.44269504f
#define KEYS ((TOKENS + 31) / 32 * 32)
#define TILES ((TOKENS + 15) / 16)
#define PART_KEYS ((KEYS / 32 + KEY_PARTS - 1) / KEY_PARTS * 32)
// Rows lie 16 bytes farther apart than they are long, so that ldmatrix meets no bank twice.
#define ROW (DEEP + 8)
// Channels that are read and stored at once; those of a head are filled up with zeros to whole sixteens.
#define UNIT (HEAD % 8 ? 4 : 8)
extern __shared__ __align__(16) unsigned char memory[];
__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void load_matrix(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}
__device__ __forceinline__ void load_turned(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}
__device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Of probabilities, which do not overflow.
__device__ __forceinline__ u32 pair_of(float low, float high) {
  u32 r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
__device__ __forceinline__ float power2(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
// Channels of a token to shared memory, without a register between; zeros where there is nothing.
__device__ __forceinline__ void copy_unit(u32 to, const void* from, bool there) {
#if HEAD % 8
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(there ? 8 : 0) : "memory");
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
#endif
}
#if KEY_PARTS > 1
// Warps that share queries.
__device__ __forceinline__ void parts_meet(int warp) {
  asm volatile("bar.sync %0, %1;" ::"r"(warp / KEY_PARTS + 1), "n"(KEY_PARTS * 32) : "memory");
}
#endif
__device__ __forceinline__ i64 voxel_of(const Params& p, int window, int token) {
  return HAS_ROWS ? (i64)__ldg((const int*)p.ptr[TABLES] + window * TOKENS + token) : (i64)window * TOKENS + token;
}
extern "C" __global__ void __launch_bounds__(WARPS * 32) run(const __grid_constant__ Params p) {
  BEGIN_NEXT();
  AWAIT_LAST();
  const int window = blockIdx.x / HEADS, head = blockIdx.x % HEADS, n = blockIdx.z;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
  // The last head's block also fills the slots behind the last channel.
  const int parts = (head == HEADS - 1 ? WIDTH - head * HEAD : HEAD) / UNIT;
  unsigned short* keys = (unsigned short*)memory;
  unsigned short* values = keys + KEYS * ROW;
  float* staged = (float*)(values + KEYS * ROW) + warp * 16 * DEEP;
  int* regions = (int*)((float*)(values + KEYS * ROW) + WARPS * 16 * DEEP);
#if KEY_PARTS > 1
  // Of a part's sixteen queries the largest score, and the sum.
  float* part_rows = (float*)(regions + (HAS_REGIONS ? TOKENS : 0));
#endif
  const int key_part = warp % KEY_PARTS;
  const unsigned short* source = (const unsigned short*)p.source + (i64)n * VOXELS * PITCH + head * HEAD;
  for (int i = threadIdx.x; i < KEYS * (DEEP / UNIT); i += WARPS * 32) {
    const int token = i / (DEEP / UNIT), at = i % (DEEP / UNIT) * UNIT;
    const bool there = token < TOKENS && at < HEAD;
    const unsigned short* from = source + (there ? voxel_of(p, window, token) * PITCH + at : 0);
    copy_unit(shared_address(keys + token * ROW + at), from + START_K, there);
    copy_unit(shared_address(values + token * ROW + at), from + START_V, there);
  }
  asm volatile("cp.async.commit_group;");
#if HAS_REGIONS
  // Most windows are one region.
  const int* all = (const int*)p.ptr[TABLES + 2] + window * TOKENS;
  bool other = false;
  for (int i = threadIdx.x; i < TOKENS; i += WARPS * 32) {
    regions[i] = __ldg(all + i);
    other |= regions[i] != __ldg(all);
  }
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  const bool several = __syncthreads_or(other);
#else
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncthreads();
#endif
  const u32 keys_at = shared_address(keys) + (((lane >> 4) * 8 + (lane & 7)) * ROW + (lane >> 3 & 1) * 8) * 2;
  const u32 values_at = shared_address(values) + (((lane >> 3 & 1) * 8 + (lane & 7)) * ROW + (lane >> 4) * 8) * 2;
  for (int tile = (blockIdx.y * WARPS + warp) / KEY_PARTS; tile < TILES; tile += gridDim.y * WARPS / KEY_PARTS) {
    const int rows[2] = {tile * 16 + g, tile * 16 + g + 8};
#if HAS_BIAS
    const unsigned short* bias[2];
#pragma unroll
    for (int r = 0; r < 2; ++r)
      bias[r] = (const unsigned short*)p.ptr[TABLES + 1] + ((i64)head * TOKENS + min(rows[r], TOKENS - 1)) * BIAS_PITCH;
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
    for (int first = key_part * PART_KEYS; first < min(KEYS, (key_part + 1) * PART_KEYS); first += 32) {
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
          added[0] = low_half(pair);
          added[1] = high_half(pair);
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
          for (int k = 0; k < 2; ++k) {
            float& x = s[j][2 * r + k];
            x = power2(__fmaf_rn(x, LOG2E, below));
            total[r] += x;
          }
#pragma unroll
        for (int i = 0; i < DEEP / 8; ++i) {
          o[i][2 * r] *= less;
          o[i][2 * r + 1] *= less;
        }
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const u32 chances[4] = {pair_of(s[2 * j][0], s[2 * j][1]), pair_of(s[2 * j][2], s[2 * j][3]),
                                pair_of(s[2 * j + 1][0], s[2 * j + 1][1]), pair_of(s[2 * j + 1][2], s[2 * j + 1][3])};
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
    }
#if KEY_PARTS > 1
    // As soon as the parts have met, the first of them adds to its own what the others left.
    if (key_part > 0) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (q == 0) {
          part_rows[(warp * 16 + g + r * 8) * 2] = largest[r];
          part_rows[(warp * 16 + g + r * 8) * 2 + 1] = total[r];
        }
#pragma unroll
        for (int i = 0; i < DEEP / 8; ++i)
#pragma unroll
          for (int k = 0; k < 2; ++k) staged[(g + r * 8) * DEEP + i * 8 + q * 2 + k] = o[i][2 * r + k];
      }
    }
    parts_meet(warp);
    if (key_part > 0) {
      // What it left has been read.
      parts_meet(warp);
      continue;
    }
#pragma unroll
    for (int part = 1; part < KEY_PARTS; ++part)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float* other = part_rows + ((warp + part) * 16 + g + r * 8) * 2;
        const float now = fmaxf(largest[r], other[0]), less = power2((largest[r] - now) * LOG2E),
                    its = power2((other[0] - now) * LOG2E);
        largest[r] = now;
        total[r] = total[r] * less + other[1] * its;
#pragma unroll
        for (int i = 0; i < DEEP / 8; ++i)
#pragma unroll
          for (int k = 0; k < 2; ++k)
            o[i][2 * r + k] = o[i][2 * r + k] * less +
                              staged[part * 16 * DEEP + (g + r * 8) * DEEP + i * 8 + q * 2 + k] * its;
      }
    parts_meet(warp);
#endif
#pragma unroll
    for (int r = 0; r < 2; ++r) {
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
        Epilogue<UNIT> epilogue(p, n, head * HEAD + at);
        epilogue.apply(v, (int)voxel_of(p, window, token) EXTRA(, , nullptr));
      }
    }
    __syncwarp();
  }
  // Voxels that fill up a group belong to no window.
  if (window == 0 && blockIdx.y == 0 && warp == 0)
    for (int i = lane; i < (VOXELS - (i64)WINDOWS * TOKENS) * parts; i += 32) {
      float v[UNIT] = {};
      Epilogue<UNIT> epilogue(p, n, head * HEAD + i % parts * UNIT);
      epilogue.apply(v, WINDOWS * TOKENS + i / parts EXTRA(, , nullptr));
    }
}
