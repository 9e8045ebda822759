// The mean of several networks' scores, one network after the other. Compiled at run time by NVRTC (engines/cuda).
#include "half_precision.cuh"

// Scores of network `number` of `count` are added to `sums`, which the first one begins and the last one divides.
template <typename T>
__device__ void add_scores(const T* scores, float* sums, int number, int count, long long total) {
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < total;
       i += (long long)gridDim.x * blockDim.x) {
    float sum = as_float(scores[i]);
    if (number > 0) sum = sums[i] + sum;
    sums[i] = number + 1 == count ? sum / (float)count : sum;
  }
}
extern "C" __global__ void add_scores_f32(const float* scores, float* sums, int number, int count, long long total) {
  add_scores<float>(scores, sums, number, count, total);
}
extern "C" __global__ void add_scores_f16(const half_t* scores, float* sums, int number, int count, long long total) {
  add_scores<half_t>(scores, sums, number, count, total);
}
