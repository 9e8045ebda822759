"""CUDA C of what the steps that walk over voxels take for each of them, out of their source or the network's input."""

READ = r"""
#if SOURCE_BYTES
typedef signed char Source;
typedef Bytes<8> Slots;
__device__ __forceinline__ void open_source(float (&v)[8], const Slots& slots) { slots.opened(v, SOURCE_SCALE); }
#else
typedef unsigned short Source;
typedef Halves<8> Slots;
__device__ __forceinline__ void open_source(float (&v)[8], const Slots& slots) { slots.opened(v); }
#endif
__device__ __forceinline__ const Source* source_at(const Params& p, i64 at, int c) { return (const Source*)p.source + at * PITCH + c; }
__device__ __forceinline__ void read_source(float (&v)[8], const Params& p, i64 at, int c) { Slots slots; slots.read(source_at(p, at, c)); open_source(v, slots); }
"""

TAKE_WHOLE = """
__device__ __forceinline__ void take(float (&v)[8], const Params& p, int n, i64 voxel, int c) { Taken taken; taken.read(p, n, voxel, c); taken.opened(v); }
"""

# What is worked out as it is read.
_WORKED_OUT = """
struct WorkedOut {
  float x[8];
  __device__ __forceinline__ void opened(float (&v)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = x[i];
  }
};
"""

# What a thread takes for one voxel: as it was read, until it is worked on.
TAKE = {
    "apply": """
struct Taken {
  Slots slots;
  __device__ __forceinline__ void read(const Params& p, int n, i64 voxel, int c) { slots.read(source_at(p, (i64)n * VOXELS + voxel, c)); }
  __device__ __forceinline__ void opened(float (&v)[8]) const { open_source(v, slots); }
};
""",
    "move": """
struct Taken {
  Slots slots;
  int row;
  __device__ __forceinline__ void read(const Params& p, int n, i64 voxel, int c) {
    row = __ldg((const int*)p.ptr[TABLES] + voxel);
    if (row >= 0) slots.read(source_at(p, (i64)n * SOURCE_VOXELS + row, c));
  }
  __device__ __forceinline__ void opened(float (&v)[8]) const {
    if (row >= 0) { open_source(v, slots); return; }
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = 0.0f;
  }
};
""",
    "input": _WORKED_OUT
    + """
struct Taken : WorkedOut {
  __device__ __forceinline__ void read(const Params& p, int n, i64 voxel, int c) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      i64 from = ((i64)n * CHANNELS + c + i) * VOXELS + voxel;
      x[i] = c + i >= CHANNELS ? 0.0f : p.source_half ? low_half(((const unsigned short*)p.source)[from]) : ((const float*)p.source)[from];
    }
  }
};
""",
    "pool": _WORKED_OUT
    + """
struct Taken : WorkedOut {
  __device__ __forceinline__ void read(const Params& p, int n, i64 voxel, int c) {
    int o2 = voxel % O2, o1 = (voxel / O2) % O1, o0 = voxel / (O1 * O2), inside = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = LARGEST ? -__int_as_float(0x7f800000) : 0.0f;
    for (int k0 = 0; k0 < K0; ++k0) for (int k1 = 0; k1 < K1; ++k1) for (int k2 = 0; k2 < K2; ++k2) {
      int i0 = o0 * S0 + k0 * D0 - B0, i1 = o1 * S1 + k1 * D1 - B1, i2 = o2 * S2 + k2 * D2 - B2;
      if (i0 < 0 || i0 >= I0 || i1 < 0 || i1 >= I1 || i2 < 0 || i2 >= I2) continue;
      float w[8];
      read_source(w, p, (((i64)n * I0 + i0) * I1 + i1) * I2 + i2, c);
      ++inside;
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] = LARGEST ? fmaxf(x[i], w[i]) : x[i] + w[i];
    }
    if (!LARGEST) {
      float by = (float)(WHOLE ? K0 * K1 * K2 : inside);
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] = x[i] / by;
    }
  }
};
""",
    # Along the second axis, then the first, then the fastest, as the reference.
    "resize": """
struct Place { int low, high; float share; };
__device__ __forceinline__ Place place_of(const void* table, int m, int at) {
  const float* t = (const float*)table;
  Place r; r.low = (int)__ldg(t + at); r.high = (int)__ldg(t + m + at); r.share = __ldg(t + 2 * m + at); return r;
}
__device__ __forceinline__ void mixed(float (&v)[8], const float (&w)[8], float share) {
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = v[i] * (1.0f - share) + w[i] * share;
}
// The source voxels around a line, at one place along it.
struct Column {
  Slots at[1 + LINEAR0][1 + LINEAR1];
  __device__ __forceinline__ void read(const Params& p, int n, Place z, Place y, int i2, int c) {
#pragma unroll
    for (int i = 0; i < 1 + LINEAR0; ++i)
#pragma unroll
      for (int j = 0; j < 1 + LINEAR1; ++j)
        at[i][j].read(source_at(p, (((i64)n * I0 + (i ? z.high : z.low)) * I1 + (j ? y.high : y.low)) * I2 + i2, c));
  }
  __device__ __forceinline__ void along1(float (&v)[8], int i, Place y) const {
    open_source(v, at[i][0]);
    if (LINEAR1) { float w[8]; open_source(w, at[i][LINEAR1]); mixed(v, w, y.share); }
  }
  __device__ __forceinline__ void blended(float (&v)[8], Place z, Place y) const {
    along1(v, 0, y);
    if (LINEAR0) { float w[8]; along1(w, LINEAR0, y); mixed(v, w, z.share); }
  }
};
// Of a place that was read ahead, or else of another.
__device__ __forceinline__ void column(float (&v)[8], const Column& next, int ahead, const Params& p, int n, Place z, Place y, int i2, int c) {
  if (i2 == ahead) { next.blended(v, z, y); return; }
  Column other;
  other.read(p, n, z, y, i2, c);
  other.blended(v, z, y);
}
""",
}
