// How the kernels that go over voxels begin: a thread keeps its eight slots, so that the epilogue's constants stay in
// registers.

BEGIN_NEXT();
AWAIT_LAST();
const int n = PATCH, c = (threadIdx.x % GROUPS) * 8, row = threadIdx.x / GROUPS;
Epilogue<8> epilogue(p, n, c);
#if STATISTICS
float sum[8], square[8];
#pragma unroll
for (int i = 0; i < 8; ++i) sum[i] = square[i] = 0.0f;
#endif
