// The sliding window on the GPU: cut, blend, reduce. Compiled at run time by NVRTC (engines/cuda).
//
// Volumes and patches are (channel, a0, a1, a2), a2 fastest. Scores are added up in a ring of planes along the slowest
// axis of the plan: ring(class, slow mod depth, u, v) with the two other axes u, v; a plane is turned into labels, and
// cleared, as soon as no later window touches it.

#include "half_precision.cuh"

// Where a voxel of a mirrored patch lies in the patch as it is: bit a of `flip` reverses axis a. It is its own inverse.
__device__ void turn_back(int flip, int p0, int p1, int p2, int& x0, int& x1, int& x2) {
  if (flip & 1) x0 = p0 - 1 - x0;
  if (flip & 2) x1 = p1 - 1 - x1;
  if (flip & 4) x2 = p2 - 1 - x2;
}

// A patch out of a volume: value -> clamp(value, low, high) * scale + offset; what lies outside the volume is `pad`.
template <typename From, typename To>
__device__ void cut_patch(const From* volume, To* patch, int channels, int n0, int n1, int n2, int p0, int p1, int p2,
                          int s0, int s1, int s2, int flip, float low, float high, float scale, float offset,
                          float pad) {
  long long total = (long long)channels * p0 * p1 * p2;
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < total;
       i += (long long)gridDim.x * blockDim.x) {
    int x2 = i % p2, x1 = (i / p2) % p1, x0 = (i / ((long long)p2 * p1)) % p0, c = i / ((long long)p2 * p1 * p0);
    turn_back(flip, p0, p1, p2, x0, x1, x2);
    int v0 = s0 + x0, v1 = s1 + x1, v2 = s2 + x2;
    float value = pad;
    if (v0 >= 0 && v0 < n0 && v1 >= 0 && v1 < n1 && v2 >= 0 && v2 < n2) {
      value = as_float(volume[(((long long)c * n0 + v0) * n1 + v1) * n2 + v2]);
      value = fminf(fmaxf(value, low), high) * scale + offset;
    }
    patch[i] = from_float<To>(value);
  }
}

#define CUT(NAME, FROM, TO)                                                                                            \
  extern "C" __global__ void NAME(const FROM* volume, TO* patch, int channels, int n0, int n1, int n2, int p0, int p1, \
                                  int p2, int s0, int s1, int s2, int flip, float low, float high, float scale,        \
                                  float offset, float pad) {                                                           \
    cut_patch<FROM, TO>(volume, patch, channels, n0, n1, n2, p0, p1, p2, s0, s1, s2, flip, low, high, scale, offset,   \
                        pad);                                                                                          \
  }
CUT(cut_f32_f32, float, float)
CUT(cut_i16_f32, short, float)
CUT(cut_u16_f32, unsigned short, float)
CUT(cut_u8_f32, unsigned char, float)
CUT(cut_f32_f16, float, half_t)
CUT(cut_i16_f16, short, half_t)
CUT(cut_u16_f16, unsigned short, half_t)
CUT(cut_u8_f16, unsigned char, half_t)

// Add the weighted scores of up to four windows that lie near each other, which may be mirrored, to the ring, in their
// order: a voxel's sums are read and written once for all of them. A thread has a voxel of the box around them, from b
// on and e long; s is where each window begins. `sum` (one channel more, for the weights) may be null.
#define AT_ONCE 4
// Classes whose sums a thread reads before it writes any of them.
#define CLASSES_AT_ONCE 4
struct Window {
  int s0, s1, s2, flip;
};
template <typename From>
__device__ void blend_windows(const From* scores, const float* weights, float* ring, float* sum, int classes,
                              int sigmoid, int count, const Window* windows, int p0, int p1, int p2, int b0, int b1,
                              int b2, int e0, int e1, int e2, int slow, int depth, int nu, int nv) {
  long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i >= (long long)e0 * e1 * e2) return;
  int at[3] = {b0 + (int)(i / ((long long)e2 * e1)), b1 + (int)(i / e2 % e1), b2 + (int)(i % e2)};
  int u = slow == 0 ? at[1] : at[0], v = slow == 2 ? at[1] : at[2];
  long long plane = (long long)nu * nv, voxels = (long long)p0 * p1 * p2;
  long long place = (long long)(at[slow] % depth) * plane + (long long)u * nv + v;
  const From* from[AT_ONCE];
  float weight[AT_ONCE];
  bool has[AT_ONCE], any = false;
#pragma unroll
  for (int n = 0; n < AT_ONCE; ++n) {
    int x0 = at[0] - windows[n].s0, x1 = at[1] - windows[n].s1, x2 = at[2] - windows[n].s2;
    has[n] = n < count && x0 >= 0 && x0 < p0 && x1 >= 0 && x1 < p1 && x2 >= 0 && x2 < p2;
    from[n] = scores;
    weight[n] = 0.0f;
    if (!has[n]) continue;
    any = true;
    weight[n] = weights[((long long)x0 * p1 + x1) * p2 + x2];
    turn_back(windows[n].flip, p0, p1, p2, x0, x1, x2);
    from[n] = scores + (n * (long long)classes * voxels + ((long long)x0 * p1 + x1) * p2 + x2);
  }
  if (!any) return;
  for (int first = 0; first < classes; first += CLASSES_AT_ONCE) {
    float total[CLASSES_AT_ONCE];
#pragma unroll
    for (int k = 0; k < CLASSES_AT_ONCE; ++k)
      if (first + k < classes) total[k] = ring[(first + k) * depth * plane + place];
#pragma unroll
    for (int n = 0; n < AT_ONCE; ++n) {
      if (!has[n]) continue;
#pragma unroll
      for (int k = 0; k < CLASSES_AT_ONCE; ++k) {
        if (first + k >= classes) continue;
        float score = as_float(from[n][(first + k) * voxels]);
        if (sigmoid) score = 1.0f / (1.0f + expf(-fminf(fmaxf(score, -60.0f), 60.0f)));
        total[k] += score * weight[n];
      }
    }
#pragma unroll
    for (int k = 0; k < CLASSES_AT_ONCE; ++k)
      if (first + k < classes) ring[(first + k) * depth * plane + place] = total[k];
  }
  if (sum) {
    float total = sum[place];
#pragma unroll
    for (int n = 0; n < AT_ONCE; ++n)
      if (has[n]) total += weight[n];
    sum[place] = total;
  }
}

#define BLEND(NAME, FROM)                                                                                              \
  extern "C" __global__ void NAME(const FROM* scores, const float* weights, float* ring, float* sum, int classes,      \
                                  int sigmoid, int count, int s00, int s01, int s02, int flip0, int s10, int s11,      \
                                  int s12, int flip1, int s20, int s21, int s22, int flip2, int s30, int s31, int s32, \
                                  int flip3, int p0, int p1, int p2, int b0, int b1, int b2, int e0, int e1, int e2,   \
                                  int slow, int depth, int nu, int nv) {                                               \
    const Window windows[AT_ONCE] = {                                                                                  \
        {s00, s01, s02, flip0}, {s10, s11, s12, flip1}, {s20, s21, s22, flip2}, {s30, s31, s32, flip3}};               \
    blend_windows<FROM>(scores, weights, ring, sum, classes, sigmoid, count, windows, p0, p1, p2, b0, b1, b2, e0, e1,  \
                        e2, slow, depth, nu, nv);                                                                      \
  }
BLEND(blend_f32, float)
BLEND(blend_f16, half_t)

// Planes [begin, end) of the ring become labels and are cleared. Softmax: the first of the largest scores wins, as
// NumPy's argmax. Regions: each class above the threshold paints its value, later ones over earlier ones.
extern "C" __global__ void reduce_planes(float* ring, float* sum, const unsigned short* values, unsigned short* labels,
                                         int classes, float threshold, int slow, int depth, int nu, int nv, int begin,
                                         int end, int before0, int before1, int before2, int n0, int n1, int n2) {
  long long plane = (long long)nu * nv;
  long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i >= plane * (end - begin)) return;
  int w = begin + i / plane, u = (i % plane) / nv, v = i % nv;
  long long place = (long long)(w % depth) * plane + (long long)u * nv + v;
  unsigned short label = 0;
  if (sum) {
    float total = sum[place];
    sum[place] = 0.0f;
    for (int c = 0; c < classes; ++c) {
      float score = ring[c * depth * plane + place];
      ring[c * depth * plane + place] = 0.0f;
      if (values[c] && total > 0.0f && score / total > threshold) label = values[c];
    }
  } else {
    float best = -3.4e38f;
    for (int c = 0; c < classes; ++c) {
      float score = ring[c * depth * plane + place];
      ring[c * depth * plane + place] = 0.0f;
      if (score > best) {
        best = score;
        label = values[c];
      }
    }
  }
  int at[3];
  at[slow] = w;
  at[slow == 0 ? 1 : 0] = u;
  at[slow == 2 ? 1 : 2] = v;
  int x0 = at[0] - before0, x1 = at[1] - before1, x2 = at[2] - before2;
  if (x0 >= 0 && x0 < n0 && x1 >= 0 && x1 < n1 && x2 >= 0 && x2 < n2)
    labels[((long long)x0 * n1 + x1) * n2 + x2] = label;
}

// Labels that several GPUs have made, each of its own voxels and 0 elsewhere, become one map, byte by byte.
extern "C" __global__ void merge_labels(unsigned char* labels, const unsigned char* other, long long count) {
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < count;
       i += (long long)gridDim.x * blockDim.x)
    labels[i] |= other[i];
}
