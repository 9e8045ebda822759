// A part's label map painted over that of a whole task. Compiled at run time by NVRTC (engines/cuda).

// Each value of (n0, n1, n2) labels becomes that of the table, 0 where the table ends before it; 0 leaves what is there. The labels' first voxel lies
// at `first` of the merged map, whose rows and planes are `step1` and `step0` voxels apart.
template <typename From, typename To>
__device__ void paint_labels(const From* labels, To* merged, const To* table, int known, int n0, int n1, int n2,
                             long long first, long long step0, long long step1) {
  long long rows = (long long)n0 * n1;
  for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
    const From* from = labels + row * n2;
    To* to = merged + first + row / n1 * step0 + row % n1 * step1;
    for (int x = threadIdx.x; x < n2; x += blockDim.x) {
      int label = from[x];
      To painted = label < known ? table[label] : (To)0;
      if (painted) to[x] = painted;
    }
  }
}
#define PAINT(NAME, FROM, TO)                                                                                       \
  extern "C" __global__ void NAME(const FROM* labels, TO* merged, const TO* table, int known, int n0, int n1, int n2, \
                                  long long first, long long step0, long long step1) {                              \
    paint_labels<FROM, TO>(labels, merged, table, known, n0, n1, n2, first, step0, step1);                          \
  }
PAINT(paint_u8_u8, unsigned char, unsigned char)
PAINT(paint_u8_u16, unsigned char, unsigned short)
PAINT(paint_u16_u8, unsigned short, unsigned char)
PAINT(paint_u16_u16, unsigned short, unsigned short)
