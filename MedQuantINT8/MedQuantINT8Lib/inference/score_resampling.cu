// Blended class scores to labels on the scan's grid, in one pass: scores of that grid are never stored. Compiled at run
// time by NVRTC (engines/cuda).
//
// The ring is that of sliding_window.cu: ring(class, w mod depth, u, v), w along the slowest axis of the plan. It holds
// one plane more than a window is long: the last finished plane stays until the next one is finished, because a new
// voxel lies between two of them.

// Classes whose scores a thread reads before it writes any of them: they are on their way together.
#define CLASSES_AT_ONCE 8

// Planes [begin, end), which no later window touches: divided by the sum of the weights, which is cleared, then turned
// into what is interpolated. activation: 0 none, 1 sigmoid, 2 softmax. `cuts` may be null; a class whose cut is a
// number becomes 1 above it and 0 elsewhere.
extern "C" __global__ void prepare_planes(float* ring, float* sum, const float* cuts, int classes, int activation,
                                          int depth, int nu, int nv, int begin, int end) {
  long long plane = (long long)nu * nv;
  long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i >= plane * (end - begin)) return;
  long long place = (begin + i / plane) % depth * plane + i % plane, step = depth * plane;
  float weight = sum[place], largest = -3.4e38f, total = 0.0f;
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
      float score = read[k] / weight;
      if (activation == 1) score = 1.0f / (1.0f + expf(-fminf(fmaxf(score, -60.0f), 60.0f)));
      if (score > largest) largest = score;
      scores[(first + k) * step] = score;
    }
  }
  if (activation == 2) {
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

// A new voxel within an old plane: between two lines and two voxels, each with its share of the second.
struct Neighbors {
  long long near_line, far_line;
  int near_voxel, far_voxel;
  float line_share, voxel_share;
};
__device__ float along_line(const float* line, const Neighbors& at) {
  return line[at.near_voxel] * (1.0f - at.voxel_share) + line[at.far_voxel] * at.voxel_share;
}
__device__ float in_plane(const float* plane, const Neighbors& at) {
  return along_line(plane + at.near_line, at) * (1.0f - at.line_share) +
         along_line(plane + at.far_line, at) * at.line_share;
}

// New planes [begin, end) of labels. low and share: of each new voxel along w, u and v the first of its two old voxels
// and the share of the second. Without `channels` the label of the largest of `count` classes, the first of equal ones;
// else `count` regions, each above its cut, later ones over earlier ones. A label goes to `to` + the new voxel's place
// times the steps, which lay it on the scan's own grid. A thread makes the labels of several new planes that follow
// each other: what they need of an old plane is interpolated once.
#define PLANES_AT_ONCE 4
template <typename T>
__device__ void resample_labels(const float* ring, T* labels, const T* values, const int* channels, const float* cuts,
                                int count, const int* low_w, const float* share_w, const int* low_u,
                                const float* share_u, const int* low_v, const float* share_v, int begin, int end,
                                int new_u, int new_v, int depth, int nu, int nv, long long to, long long step_w,
                                long long step_u, long long step_v) {
  long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  int groups = (end - begin + PLANES_AT_ONCE - 1) / PLANES_AT_ONCE;
  if (i >= (long long)groups * new_u * new_v) return;
  int v = i % new_v, u = (i / new_v) % new_u, first = begin + i / ((long long)new_v * new_u) * PLANES_AT_ONCE;
  long long plane = (long long)nu * nv, step = depth * plane;
  Neighbors at;
  at.line_share = share_u[u], at.voxel_share = share_v[v];
  at.near_line = (long long)low_u[u] * nv;
  at.far_line = (long long)(low_u[u] + (at.line_share > 0.0f)) * nv;
  at.near_voxel = low_v[v];
  at.far_voxel = low_v[v] + (at.voxel_share > 0.0f);
  int low[PLANES_AT_ONCE];
  float share[PLANES_AT_ONCE], best[PLANES_AT_ONCE];
  T label[PLANES_AT_ONCE];
#pragma unroll
  for (int k = 0; k < PLANES_AT_ONCE; ++k) {
    // Planes after the last are its own once more.
    int w = first + k < end ? first + k : end - 1;
    low[k] = low_w[w], share[k] = share_w[w];
    best[k] = 0.0f, label[k] = channels ? (T)0 : values[0];
  }
  for (int c = 0; c < count; ++c) {
    const float* scores = ring + (channels ? channels[c] : c) * step;
    float cut = channels ? cuts[c] : 0.0f, near = 0.0f, far = 0.0f;
    T value = values[c];
    bool has_far = false;
#pragma unroll
    for (int k = 0; k < PLANES_AT_ONCE; ++k) {
      if (k == 0 || low[k] != low[k - 1]) {
        near = has_far && low[k] == low[k - 1] + 1 ? far : in_plane(scores + low[k] % depth * plane, at);
        has_far = false;
      }
      if (share[k] > 0.0f && !has_far) {
        far = in_plane(scores + (low[k] + 1) % depth * plane, at);
        has_far = true;
      }
      float score = near * (1.0f - share[k]) + (share[k] > 0.0f ? far : near) * share[k];
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
