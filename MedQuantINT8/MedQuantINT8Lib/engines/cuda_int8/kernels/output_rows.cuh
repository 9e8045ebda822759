// Which row of a tile a thread's sums are of, along its first two axes: what is known when the kernel is compiled apart
// from what is not. The product that follows says how many voxels a thread's rows are apart (ROWS_OF).

#define PER_PLANE (TILE1 / ROWS_OF)
#define ROW_D(i) (MI >= PER_PLANE ? (i) / PER_PLANE : 0)
#define ROW_H(i, hh) ((MI >= PER_PLANE ? (i) % PER_PLANE : (i)) * ROWS_OF + (hh))
__device__ __forceinline__ void row_of_share(int share, int& d, int& h);
