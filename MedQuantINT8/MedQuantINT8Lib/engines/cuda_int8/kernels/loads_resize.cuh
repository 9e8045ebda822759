// What a thread loads of the source of a resizing step: along the second axis, then the first, then the fastest, as the
// reference.

struct Place {
  int low, high;
  float share;
};
__device__ __forceinline__ Place place_of(const void* table, int m, int at) {
  const float* t = (const float*)table;
  Place r;
  r.low = (int)__ldg(t + at);
  r.high = (int)__ldg(t + m + at);
  r.share = __ldg(t + 2 * m + at);
  return r;
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
    if (LINEAR1) {
      float w[8];
      open_source(w, at[i][LINEAR1]);
      mixed(v, w, y.share);
    }
  }
  __device__ __forceinline__ void blended(float (&v)[8], Place z, Place y) const {
    along1(v, 0, y);
    if (LINEAR0) {
      float w[8];
      along1(w, LINEAR0, y);
      mixed(v, w, z.share);
    }
  }
};
// Of a place that was read ahead, or else of another.
__device__ __forceinline__ void column(float (&v)[8], const Column& next, int ahead, const Params& p, int n, Place z,
                                       Place y, int i2, int c) {
  if (i2 == ahead) {
    next.blended(v, z, y);
    return;
  }
  Column other;
  other.read(p, n, z, y, i2, c);
  other.blended(v, z, y);
}
