// Resizing, nearest or linear along each axis.
//
// A thread goes along the fastest axis, two outputs at a time: what it blended across the others for one output serves
// the next as well, and what two of them need is under way before either is worked out.

#define GROUPS (WIDTH / 8)
extern "C" __global__ void __launch_bounds__(THREADS) run(const __grid_constant__ Params p) {
#include "elementwise_begin.cuh"
  for (int pass = 0; pass < PASSES; ++pass) {
    const i64 item = ((i64)blockIdx.x * PASSES + pass) * ROWS + row;
    if (item >= LINES) break;
    const int first = (int)(item % RUNS) * RUN, end = min(first + RUN, O2);
    const i64 line = item / RUNS;
    const Place y = place_of(p.ptr[TABLES + 1], O1, (int)(line % O1)),
                z = place_of(p.ptr[TABLES], O0, (int)(line / O1));
    int at_low = -1, at_high = -1;
    float below[8], above[8];
    for (int o2 = first; o2 < end; o2 += 2) {
      const Place both[2] = {place_of(p.ptr[TABLES + 2], O2, o2), place_of(p.ptr[TABLES + 2], O2, min(o2 + 1, O2 - 1))};
      const int ahead = LINEAR2 ? both[1].high : both[1].low;
      Column next;
      if (ahead != at_high) next.read(p, n, z, y, ahead, c);
      typename Epilogue<8>::Held held[2];
#pragma unroll
      for (int k = 0; k < 2; ++k)
        if (o2 + k < end) Epilogue<8>::fetch(held[k], p, n, c, 0, (int)line * O2 + o2 + k);
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        if (o2 + k >= end) break;
        const Place x = both[k];
        if (x.low != at_low) {
          at_low = x.low;
          if (at_low == at_high) {
#pragma unroll
            for (int i = 0; i < 8; ++i) below[i] = above[i];
          } else
            column(below, next, ahead, p, n, z, y, at_low, c);
        }
        float v[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = below[i];
        if (LINEAR2) {
          if (x.high != at_high) {
            at_high = x.high;
            column(above, next, ahead, p, n, z, y, at_high, c);
          }
          mixed(v, above, x.share);
        }
        epilogue.apply(v, (int)line * O2 + o2 + k, held[k] EXTRA(sum, square, nullptr));
      }
    }
  }
#include "leave_sums.cuh"
}
