// A scan on its way to network space: laid out, resampled axis by axis, normalized. Compiled at run time by NVRTC
// (engines/cuda). Arrays are float32 and contiguous, but for the scan itself, which is read as it lies in memory.

// A box of an array, turned and padded: the voxel (x0, x1, x2) of the target lies at first + x0 s0 + x1 s1 + x2 s2 of
// the source where it is at or above the lows and below the highs, else it is `pad`.
template <typename From>
__device__ void lay_out(const From* source, float* target, int n0, int n1, int n2, int low0, int low1, int low2,
                        int high0, int high1, int high2, long long first, long long s0, long long s1, long long s2,
                        float pad) {
  long long total = (long long)n0 * n1 * n2;
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < total;
       i += (long long)gridDim.x * blockDim.x) {
    int x2 = i % n2, x1 = (i / n2) % n1, x0 = i / ((long long)n2 * n1);
    bool inside = x0 >= low0 && x0 < high0 && x1 >= low1 && x1 < high1 && x2 >= low2 && x2 < high2;
    target[i] = inside ? (float)source[first + x0 * s0 + x1 * s1 + x2 * s2] : pad;
  }
}
#define LAY_OUT(NAME, FROM)                                                                                          \
  extern "C" __global__ void NAME(const FROM* source, float* target, int n0, int n1, int n2, int low0, int low1,     \
                                  int low2, int high0, int high1, int high2, long long first, long long s0,          \
                                  long long s1, long long s2, float pad) {                                           \
    lay_out<FROM>(source, target, n0, n1, n2, low0, low1, low2, high0, high1, high2, first, s0, s1, s2, pad);        \
  }
LAY_OUT(lay_out_i8, signed char)
LAY_OUT(lay_out_u8, unsigned char)
LAY_OUT(lay_out_i16, short)
LAY_OUT(lay_out_u16, unsigned short)
LAY_OUT(lay_out_i32, int)
LAY_OUT(lay_out_u32, unsigned int)
LAY_OUT(lay_out_f32, float)
LAY_OUT(lay_out_f64, double)

// One axis of (outer, old, inner) resampled to (outer, fresh, inner): each new voxel is a weighted sum of `taps` old
// ones, from `starts` on.
extern "C" __global__ void weigh_axis(const float* source, float* target, const int* starts, const float* weights,
                                      int taps, int old, int fresh, long long inner, long long total) {
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < total;
       i += (long long)gridDim.x * blockDim.x) {
    long long place = i % inner, row = i / inner % fresh, outer = i / inner / fresh;
    const float* from = source + (outer * old + starts[row]) * inner + place;
    const float* share = weights + row * taps;
    float sum = 0.0f;
    for (int t = 0; t < taps; ++t) sum += share[t] * from[t * inner];
    target[i] = sum;
  }
}

// All three axes at once, of an array that is read as `lay_out` reads it, for weights of few taps: nothing is stored between the axes.
template <typename From>
__device__ void weigh_axes(const From* source, float* target, const int* starts0, const int* starts1, const int* starts2,
                           const float* weights0, const float* weights1, const float* weights2, int taps0, int taps1,
                           int taps2, int n0, int n1, int n2, long long first, long long s0, long long s1, long long s2) {
  long long total = (long long)n0 * n1 * n2;
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < total;
       i += (long long)gridDim.x * blockDim.x) {
    int x2 = i % n2, x1 = (i / n2) % n1, x0 = i / ((long long)n2 * n1);
    const From* from = source + first + starts0[x0] * s0 + starts1[x1] * s1 + starts2[x2] * s2;
    float sum = 0.0f;
    for (int a = 0; a < taps0; ++a) {
      float plane = 0.0f;
      for (int b = 0; b < taps1; ++b) {
        float row = 0.0f;
        for (int c = 0; c < taps2; ++c) row += weights2[x2 * taps2 + c] * (float)from[a * s0 + b * s1 + c * s2];
        plane += weights1[x1 * taps1 + b] * row;
      }
      sum += weights0[x0 * taps0 + a] * plane;
    }
    target[i] = sum;
  }
}
#define WEIGH_AXES(NAME, FROM)                                                                                         \
  extern "C" __global__ void NAME(const FROM* source, float* target, const int* starts0, const int* starts1,           \
                                  const int* starts2, const float* weights0, const float* weights1,                    \
                                  const float* weights2, int taps0, int taps1, int taps2, int n0, int n1, int n2,      \
                                  long long first, long long s0, long long s1, long long s2) {                         \
    weigh_axes<FROM>(source, target, starts0, starts1, starts2, weights0, weights1, weights2, taps0, taps1, taps2, n0, \
                     n1, n2, first, s0, s1, s2);                                                                       \
  }
WEIGH_AXES(weigh_axes_i8, signed char)
WEIGH_AXES(weigh_axes_u8, unsigned char)
WEIGH_AXES(weigh_axes_i16, short)
WEIGH_AXES(weigh_axes_u16, unsigned short)
WEIGH_AXES(weigh_axes_i32, int)
WEIGH_AXES(weigh_axes_u32, unsigned int)
WEIGH_AXES(weigh_axes_f32, float)
WEIGH_AXES(weigh_axes_f64, double)

// Smallest and largest value of each slice of (outer, slices, inner), as `lanes` threads a slice see them.
extern "C" __global__ void find_extremes(const float* values, float* lows, float* highs, int slices, long long outer,
                                         long long inner, int lanes) {
  long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i >= (long long)slices * lanes) return;
  long long slice = i / lanes;
  float low = 3.4e38f, high = -3.4e38f;
  for (long long n = i % lanes; n < outer * inner; n += lanes) {
    float value = values[(n / inner * slices + slice) * inner + n % inner];
    low = fminf(low, value), high = fmaxf(high, value);
  }
  lows[i] = low, highs[i] = high;
}

// Each slice of (outer, slices, inner) is kept between its low and its high.
extern "C" __global__ void clip_slices(float* values, const float* lows, const float* highs, int slices,
                                       long long inner, long long total) {
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < total;
       i += (long long)gridDim.x * blockDim.x) {
    int slice = i / inner % slices;
    values[i] = fminf(fmaxf(values[i], lows[slice]), highs[slice]);
  }
}

// How many of the chosen values a thread sees, their sum, and the sum of the squares of their distances from `center`.
// mask: 0 all, 1 those that are not 0, 2 those above `above`.
extern "C" __global__ void sum_values(const float* values, double* sums, double* squares, long long* counts, int mask,
                                      float above, double center, long long total) {
  long long lane = blockIdx.x * (long long)blockDim.x + threadIdx.x, count = 0;
  double sum = 0.0, square = 0.0;
  for (long long i = lane; i < total; i += (long long)gridDim.x * blockDim.x) {
    float value = values[i];
    if ((mask == 1 && value == 0.0f) || (mask == 2 && !(value > above))) continue;
    double distance = value - center;
    sum += value, square += distance * distance, ++count;
  }
  sums[lane] = sum, squares[lane] = square, counts[lane] = count;
}

// A whole number that grows with the value.
__device__ unsigned int rank_of(float value) {
  union {
    float number;
    unsigned int bits;
  } it;
  it.number = value == 0.0f ? 0.0f : value;
  return it.bits & 0x80000000u ? ~it.bits : it.bits | 0x80000000u;
}
// How many values have each upper half of that number (prefix below 0), or, of those with one upper half, each lower.
extern "C" __global__ void count_ranks(const float* values, unsigned int* counts, int prefix, long long total) {
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < total;
       i += (long long)gridDim.x * blockDim.x) {
    unsigned int rank = rank_of(values[i]);
    if (prefix < 0)
      atomicAdd(counts + (rank >> 16), 1u);
    else if ((int)(rank >> 16) == prefix)
      atomicAdd(counts + (rank & 0xffffu), 1u);
  }
}

// Values changed in place. kind: 0 clipped to a..b; 1 (value - a) / b, then to 0..1 if c is not 0; 2 the same, but 0
// stays 0; 3 value * a + b; 4 logistic function; 5 a * tanh(value / a); 6 without fraction; 7 c where not above a; 8 c
// where not below a; 9 c.
extern "C" __global__ void change_values(float* values, int kind, float a, float b, float c, long long total) {
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < total;
       i += (long long)gridDim.x * blockDim.x) {
    float value = values[i];
    if (kind == 0) value = fminf(fmaxf(value, a), b);
    if (kind == 1) value = c != 0.0f ? fminf(fmaxf((value - a) / b, 0.0f), 1.0f) : (value - a) / b;
    if (kind == 2) value = value == 0.0f ? 0.0f : (value - a) / b;
    if (kind == 3) value = value * a + b;
    if (kind == 4) value = 1.0f / (1.0f + expf(-fminf(fmaxf(value, -80.0f), 80.0f)));
    if (kind == 5) value = a * tanhf(value / a);
    if (kind == 6) value = truncf(value);
    if (kind == 7) value = value > a ? value : c;
    if (kind == 8) value = value < a ? value : c;
    if (kind == 9) value = c;
    values[i] = value;
  }
}
