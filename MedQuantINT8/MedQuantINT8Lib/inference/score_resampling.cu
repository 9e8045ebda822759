// Blended class scores to labels on the scan's grid, in one pass: scores of that grid are never stored. Compiled at run
// time by NVRTC (engines/cuda).
//
// The ring is that of sliding_window.cu: ring(class, w mod depth, u, v), w along the slowest axis of the plan. It holds
// one plane more than a window is long: the last finished plane stays until the next one is finished, because a new
// voxel lies between two of them.

#include "half_precision.cuh"

// Classes whose scores a thread reads before it writes any of them: they are on their way together.
#define CLASSES_AT_ONCE 8

// What is made of a blended score before scores are interpolated. activation: 0 none, 1 sigmoid, 2 softmax, which
// begins with the largest and is ended by activate_all.
__device__ float activated(float score, int activation) {
  return activation == 1 ? 1.0f / (1.0f + expf(-fminf(fmaxf(score, -60.0f), 60.0f))) : score;
}
__device__ void activate_all(float* scores, const float* cuts, int classes, int activation, float largest,
                             long long step) {
  if (activation == 2) {
    float total = 0.0f;
    for (int c = 0; c < classes; ++c) {
      float power = expf(scores[c * step] - largest);
      scores[c * step] = power;
      total += power;
    }
    for (int c = 0; c < classes; ++c) scores[c * step] /= total;
  }
  if (cuts)
    for (int c = 0; c < classes; ++c)
      if (cuts[c] == cuts[c]) scores[c * step] = scores[c * step] > cuts[c] ? 1.0f : 0.0f;
}

// Planes [begin, end), which no later window touches: divided by the sum of the weights, which is cleared, then turned
// into what is interpolated. activation: 0 none, 1 sigmoid, 2 softmax. `cuts` may be null; a class whose cut is a
// number becomes 1 above it and 0 elsewhere.
extern "C" __global__ void prepare_planes(float* ring, float* sum, const float* cuts, int classes, int activation,
                                          int depth, int nu, int nv, int begin, int end) {
  long long plane = (long long)nu * nv;
  long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i >= plane * (end - begin)) return;
  long long place = (begin + i / plane) % depth * plane + i % plane, step = depth * plane;
  float weight = sum[place], largest = -3.4e38f;
  sum[place] = 0.0f;
  float* scores = ring + place;
  for (int first = 0; first < classes; first += CLASSES_AT_ONCE) {
    float read[CLASSES_AT_ONCE];
#pragma unroll
    for (int k = 0; k < CLASSES_AT_ONCE; ++k)
      if (first + k < classes) read[k] = scores[(first + k) * step];
#pragma unroll
    for (int k = 0; k < CLASSES_AT_ONCE; ++k) {
      if (first + k >= classes) continue;
      float score = activated(read[k] / weight, activation);
      if (score > largest) largest = score;
      scores[(first + k) * step] = score;
    }
  }
  activate_all(scores, cuts, classes, activation, largest, step);
}

// Classes that are gathered at once: as many as take no more registers than few do.
#define GATHERED_AT_ONCE 16
// The same of windows whose scores were kept, not blended: window number n of row r in place (r mod rows) * per_row +
// n. Sums are those of blending one window after the other, to the bit. The windows of a row lie in the order of two
// axes; `swapped` says that the outer one is v. Which windows touch a coordinate, from the first to the one before
// `stop`, and where each begins stand in tables of each axis: w, outer, inner.
template <typename From>
__device__ void gather_windows(const From* scores, const float* weights, float* ring, const float* cuts, int classes,
                               int sigmoid, int activation, const int* start_w, const int* first_w, const int* stop_w,
                               const int* start_o, const int* first_o, const int* stop_o, const int* start_i,
                               const int* first_i, const int* stop_i, int rows, int per_row, int per_outer, int voxels,
                               int step_w, int step_o, int step_i, int swapped, int depth, int nu, int nv, int begin,
                               int end) {
  int plane = nu * nv;
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= (unsigned)(plane * (end - begin))) return;
  int w = begin + i / plane, at = i % plane, u = at / nv, v = at % nv;
  int outer = swapped ? v : u, inner = swapped ? u : v;
  const int r0 = first_w[w], r1 = stop_w[w], o0 = first_o[outer], o1 = stop_o[outer], i0 = first_i[inner],
            i1 = stop_i[inner];
  long long step = (long long)depth * plane;
  float* target = ring + ((long long)(w % depth) * plane + at);
  float weight_sum = 0.0f, largest = -3.4e38f;
  for (int first = 0; first < classes; first += GATHERED_AT_ONCE) {
    float total[GATHERED_AT_ONCE];
#pragma unroll
    for (int k = 0; k < GATHERED_AT_ONCE; ++k) total[k] = 0.0f;
    for (int r = r0; r < r1; ++r)
      for (int o = o0; o < o1; ++o)
        for (int n = i0; n < i1; ++n) {
          int inside = (w - start_w[r]) * step_w + (outer - start_o[o]) * step_o + (inner - start_i[n]) * step_i;
          float weight = weights[inside];
          long long place = r % rows * per_row + o * per_outer + n;
          const From* from = scores + ((place * classes + first) * voxels + inside);
          if (first == 0) weight_sum += weight;
#pragma unroll
          for (int k = 0; k < GATHERED_AT_ONCE; ++k) {
            if (first + k >= classes) continue;
            float score = as_float(from[(long long)k * voxels]);
            if (sigmoid) score = activated(score, 1);
            total[k] += score * weight;
          }
        }
#pragma unroll
    for (int k = 0; k < GATHERED_AT_ONCE; ++k) {
      if (first + k >= classes) continue;
      float score = activated(total[k] / weight_sum, activation);
      if (score > largest) largest = score;
      target[(first + k) * step] = score;
    }
  }
  activate_all(target, cuts, classes, activation, largest, step);
}

#define GATHER(NAME, FROM)                                                                                             \
  extern "C" __global__ void NAME(const FROM* scores, const float* weights, float* ring, const float* cuts,            \
                                  int classes, int sigmoid, int activation, const int* start_w, const int* first_w,    \
                                  const int* stop_w, const int* start_o, const int* first_o, const int* stop_o,        \
                                  const int* start_i, const int* first_i, const int* stop_i, int rows, int per_row,    \
                                  int per_outer, int voxels, int step_w, int step_o, int step_i, int swapped,          \
                                  int depth, int nu, int nv, int begin, int end) {                                     \
    gather_windows<FROM>(scores, weights, ring, cuts, classes, sigmoid, activation, start_w, first_w, stop_w, start_o, \
                         first_o, stop_o, start_i, first_i, stop_i, rows, per_row, per_outer, voxels, step_w, step_o,  \
                         step_i, swapped, depth, nu, nv, begin, end);                                                  \
  }
GATHER(gather_f32, float)
GATHER(gather_f16, half_t)

// A new voxel within an old plane: where its four neighbors lie, and the shares of the second line and of the second
// voxel of each.
struct Neighbors {
  int near_near, near_far, far_near, far_far;
  float line_share, voxel_share;
};
__device__ float in_plane(const float* plane, const Neighbors& at) {
  float near = plane[at.near_near] * (1.0f - at.voxel_share) + plane[at.near_far] * at.voxel_share;
  float far = plane[at.far_near] * (1.0f - at.voxel_share) + plane[at.far_far] * at.voxel_share;
  return near * (1.0f - at.line_share) + far * at.line_share;
}

// New planes [begin, end) of labels. low and share: of each new voxel along w, u and v the first of its two old voxels
// and the share of the second. Without `channels` the label of the largest of `count` classes, the first of equal ones;
// else `count` regions, each above its cut, later ones over earlier ones. A label goes to `to` + the new voxel's place
// times the steps, which lay it on the scan's own grid. A thread makes the labels of several new planes that follow
// each other, which lie between the same old ones, or nearly.
#define PLANES_AT_ONCE 2
template <typename T>
__device__ void resample_labels(const float* ring, T* labels, const T* values, const int* channels, const float* cuts,
                                int count, const int* low_w, const float* share_w, const int* low_u,
                                const float* share_u, const int* low_v, const float* share_v, int begin, int end,
                                int new_u, int new_v, int depth, int nu, int nv, long long to, long long step_w,
                                long long step_u, long long step_v) {
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  unsigned groups = (end - begin + PLANES_AT_ONCE - 1) / PLANES_AT_ONCE;
  if (i >= groups * new_u * new_v) return;
  int v = i % new_v, u = i / new_v % new_u, first = begin + i / (unsigned)(new_v * new_u) * PLANES_AT_ONCE;
  long long plane = (long long)nu * nv, step = depth * plane;
  Neighbors at;
  at.line_share = share_u[u], at.voxel_share = share_v[v];
  int near_line = low_u[u] * nv, far_line = (low_u[u] + (at.line_share > 0.0f)) * nv;
  int near_voxel = low_v[v], far_voxel = low_v[v] + (at.voxel_share > 0.0f);
  at.near_near = near_line + near_voxel, at.near_far = near_line + far_voxel;
  at.far_near = far_line + near_voxel, at.far_far = far_line + far_voxel;
  const float* near_plane[PLANES_AT_ONCE];
  const float* far_plane[PLANES_AT_ONCE];
  float share[PLANES_AT_ONCE], best[PLANES_AT_ONCE];
  T label[PLANES_AT_ONCE];
#pragma unroll
  for (int k = 0; k < PLANES_AT_ONCE; ++k) {
    // Planes after the last are its own once more.
    int w = first + k < end ? first + k : end - 1, low = low_w[w];
    share[k] = share_w[w];
    near_plane[k] = ring + low % depth * plane, far_plane[k] = ring + (low + (share[k] > 0.0f)) % depth * plane;
    best[k] = 0.0f, label[k] = channels ? (T)0 : values[0];
  }
  for (int c = 0; c < count; ++c) {
    long long shift = (channels ? channels[c] : c) * step;
    float cut = channels ? cuts[c] : 0.0f;
    T value = values[c];
    float near[PLANES_AT_ONCE], far[PLANES_AT_ONCE];
#pragma unroll
    for (int k = 0; k < PLANES_AT_ONCE; ++k) {
      near[k] = in_plane(near_plane[k] + shift, at);
      far[k] = in_plane(far_plane[k] + shift, at);
    }
#pragma unroll
    for (int k = 0; k < PLANES_AT_ONCE; ++k) {
      float score = near[k] * (1.0f - share[k]) + far[k] * share[k];
      if (channels ? score > cut : c == 0 || score > best[k]) {
        best[k] = score;
        label[k] = value;
      }
    }
  }
#pragma unroll
  for (int k = 0; k < PLANES_AT_ONCE; ++k)
    if (first + k < end) labels[to + (first + k) * step_w + u * step_u + v * step_v] = label[k];
}

#define RESAMPLE(NAME, T)                                                                                            \
  extern "C" __global__ void NAME(const float* ring, T* labels, const T* values, const int* channels,                \
                                  const float* cuts, int count, const int* low_w, const float* share_w,              \
                                  const int* low_u, const float* share_u, const int* low_v, const float* share_v,    \
                                  int begin, int end, int new_u, int new_v, int depth, int nu, int nv, long long to, \
                                  long long step_w, long long step_u, long long step_v) {                            \
    resample_labels<T>(ring, labels, values, channels, cuts, count, low_w, share_w, low_u, share_u, low_v, share_v,  \
                       begin, end, new_u, new_v, depth, nu, nv, to, step_w, step_u, step_v);                         \
  }
RESAMPLE(resample_u8, unsigned char)
RESAMPLE(resample_u16, unsigned short)

// Planes [begin, end) of all classes are free for later windows.
extern "C" __global__ void clear_planes(float* ring, int classes, int depth, int nu, int nv, int begin, int end) {
  long long plane = (long long)nu * nv;
  long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i >= plane * (end - begin)) return;
  long long place = (begin + i / plane) % depth * plane + i % plane;
  for (int c = 0; c < classes; ++c) ring[c * depth * plane + place] = 0.0f;
}

// Labels of network space (n0, n1, n2) on the scan's grid: each new voxel has the label of one old one, from_0 and so
// on saying which along each axis. It goes to `to` + its place times the steps.
template <typename T>
__device__ void place_labels(const unsigned short* labels, T* target, const int* from_0, const int* from_1,
                             const int* from_2, int new_0, int new_1, int new_2, int n1, int n2, long long to,
                             long long step_0, long long step_1, long long step_2) {
  long long total = (long long)new_0 * new_1 * new_2;
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < total;
       i += (long long)gridDim.x * blockDim.x) {
    int x2 = i % new_2, x1 = (i / new_2) % new_1, x0 = i / ((long long)new_2 * new_1);
    long long place = ((long long)from_0[x0] * n1 + from_1[x1]) * n2 + from_2[x2];
    target[to + x0 * step_0 + x1 * step_1 + x2 * step_2] = (T)labels[place];
  }
}
extern "C" __global__ void place_u8(const unsigned short* labels, unsigned char* target, const int* from_0,
                                    const int* from_1, const int* from_2, int new_0, int new_1, int new_2, int n1,
                                    int n2, long long to, long long step_0, long long step_1, long long step_2) {
  place_labels(labels, target, from_0, from_1, from_2, new_0, new_1, new_2, n1, n2, to, step_0, step_1, step_2);
}
extern "C" __global__ void place_u16(const unsigned short* labels, unsigned short* target, const int* from_0,
                                     const int* from_1, const int* from_2, int new_0, int new_1, int new_2, int n1,
                                     int n2, long long to, long long step_0, long long step_1, long long step_2) {
  place_labels(labels, target, from_0, from_1, from_2, new_0, new_1, new_2, n1, n2, to, step_0, step_1, step_2);
}
