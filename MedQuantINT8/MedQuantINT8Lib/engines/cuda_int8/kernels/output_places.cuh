// Where a convolution's sums belong: which rows and columns of a tile a thread has, and where those are in the output.

__device__ __forceinline__ void row_of_share(int share, int& d, int& h) {
  d = share * MI / PER_PLANE;
  h = share * MI % PER_PLANE * ROWS_OF;
}
// Neighboring columns of a thread: which channels they are, of which voxel beside the first (of a spread convolution).
struct Place {
  int inside, c, b0, b1, b2;
  bool wanted;
  __device__ __forceinline__ Place(int j, int q) {
    inside = j * THREAD_CHANNELS * 4 + q * THREAD_CHANNELS;
    const int column = blockIdx.y * COLUMNS + inside, beside = column / WIDTH;
    wanted = beside < SPREAD;
    c = wanted ? column % WIDTH : 0;
    b0 = beside / (SPREAD1 * SPREAD2);
    b1 = beside / SPREAD2 % SPREAD1;
    b2 = beside % SPREAD2;
  }
};
template <bool V>
struct Known {
  static constexpr bool value = V;
};
// The rows of a thread in the output: the first one's voxel, and whether the others are inside the volume.
struct Rows {
  int o0, o1, o2;
  bool whole;
  __device__ __forceinline__ Rows(const TileOrigin& s, int g) {
    whole = s.o0 + (TILE0 - 1) * OUT_STEP0 + SPREAD0 <= O0 && s.o1 + (TILE1 - 1) * OUT_STEP1 + SPREAD1 <= O1 &&
            s.o2 + (TILE2 - 1) * OUT_STEP2 + SPREAD2 <= O2;
    int d, h;
    first_row(d, h);
    o0 = s.o0 + d * OUT_STEP0;
    o1 = s.o1 + h * OUT_STEP1;
    o2 = s.o2 + g * OUT_STEP2;
  }
  __device__ __forceinline__ int first(const Place& at) const {
    return ((o0 + at.b0) * O1 + o1 + at.b1) * O2 + o2 + at.b2;
  }
  // Of the first voxel beside: the same for all threads of a warp, if rows are of eight voxels.
  __device__ __forceinline__ bool has(int i, int hh) const {
    return whole || (o0 + ROW_D(i) * OUT_STEP0 < O0 && o1 + ROW_H(i, hh) * OUT_STEP1 < O1);
  }
  __device__ __forceinline__ bool has(const Place& at, int i, int hh) const {
    return at.wanted && (whole || (o0 + ROW_D(i) * OUT_STEP0 + at.b0 < O0 &&
                                   o1 + ROW_H(i, hh) * OUT_STEP1 + at.b1 < O1 && o2 + at.b2 < O2));
  }
};
#define ROW_STEP(i, hh) ((ROW_D(i) * OUT_STEP0 * O1 + ROW_H(i, hh) * OUT_STEP1) * O2)
