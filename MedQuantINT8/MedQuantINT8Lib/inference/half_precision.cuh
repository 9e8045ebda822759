// Half precision without CUDA's headers, which a machine with only the driver does not have.
struct half_t {
  unsigned short bits;
};
__device__ float half_to_float(half_t value) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(value.bits));
  return f;
}
__device__ half_t float_to_half(float value) {
  half_t h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(value));
  return h;
}

template <typename T>
__device__ float as_float(T value) {
  return (float)value;
}
template <>
__device__ float as_float<half_t>(half_t value) {
  return half_to_float(value);
}
template <typename T>
__device__ T from_float(float value) {
  return (T)value;
}
template <>
__device__ half_t from_float<half_t>(float value) {
  return float_to_half(value);
}
