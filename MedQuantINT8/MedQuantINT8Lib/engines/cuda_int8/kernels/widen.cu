// FP16 scores as float32, for callers that want them so.

#include "prelude.cuh"

extern "C" __global__ void __launch_bounds__(256) run(const __grid_constant__ Params p) {
  BEGIN_NEXT();
  AWAIT_LAST();
  const i64 i = ((i64)blockIdx.x * 256 + threadIdx.x) * 2;
  const i64 count = (i64)p.ptr[0];
  if (i >= count) return;
  const u32 pair = i + 1 < count ? read4(p.source + i * 2) : *(const unsigned short*)(p.source + i * 2);
  ((float*)p.output)[i] = low_half(pair);
  if (i + 1 < count) ((float*)p.output)[i + 1] = high_half(pair);
}
