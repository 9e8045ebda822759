// A network that can be computed by hand, with which the way through the GPU is compared with the processor's
// (gpu_road_check.py): the score of class c is height - slope * (sum of the channels - center of c)^2.
#include "half_precision.cuh"

template <typename T>
__device__ void score(const T* patches, T* scores, const float* centers, float height, float slope, int channels,
                      int classes, long long voxels, int batch) {
  long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i >= voxels * batch) return;
  long long n = i / voxels, v = i % voxels;
  float sum = 0.0f;
  for (int c = 0; c < channels; ++c) sum += as_float(patches[(n * channels + c) * voxels + v]);
  for (int c = 0; c < classes; ++c) {
    float distance = sum - centers[c];
    scores[(n * classes + c) * voxels + v] = from_float<T>(height - slope * (distance * distance));
  }
}
extern "C" __global__ void score_f32(const float* patches, float* scores, const float* centers, float height,
                                     float slope, int channels, int classes, long long voxels, int batch) {
  score<float>(patches, scores, centers, height, slope, channels, classes, voxels, batch);
}
extern "C" __global__ void score_f16(const half_t* patches, half_t* scores, const float* centers, float height,
                                     float slope, int channels, int classes, long long voxels, int batch) {
  score<half_t>(patches, scores, centers, height, slope, channels, classes, voxels, batch);
}
