// Parts of structures in a label map (planes, rows, columns): voxels of one group that touch. Compiled at run time by NVRTC (engines/cuda).
//
// Voxels of a group that follow each other in a row are a run. A run is known by its first voxel, a part by its first voxel of all, which is
// the smallest number of a voxel in it. `parents` leads from a voxel to a smaller one of the same part until it leads to itself; runs that
// touch are joined by leading the larger of their ends to the smaller, whatever the order of the threads.

// What a value of the label map belongs to; 0 is outside.
template <typename T>
__device__ int group_of(const T* labels, const unsigned short* groups, int voxel) {
  return groups[labels[voxel]];
}

__device__ int first_of(const int* parents, int voxel) {
  for (int parent = parents[voxel]; parent != voxel; parent = parents[voxel]) voxel = parent;
  return voxel;
}

__device__ void join(int* parents, int a, int b) {
  while (true) {
    a = first_of(parents, a);
    b = first_of(parents, b);
    if (a == b) return;
    if (a < b) {
      int other = a;
      a = b;
      b = other;
    }
    int before = atomicMin(&parents[a], b);
    if (before == a) return;
    // Another thread had led it elsewhere: that part is joined as well.
    a = before;
  }
}

template <typename T>
__device__ void start_runs(const T* labels, const unsigned short* groups, int* parents, int* sizes, int rows, int columns) {
  for (int row = blockIdx.x * blockDim.x + threadIdx.x; row < rows; row += gridDim.x * blockDim.x) {
    int start = row * columns, last = 0;
    for (int voxel = row * columns; voxel < (row + 1) * columns; ++voxel) {
      int group = group_of(labels, groups, voxel);
      if (group != last) start = voxel;
      parents[voxel] = start;
      sizes[voxel] = 0;
      last = group;
    }
  }
}

// Runs of a row and of rows before it: in the plane before (three rows), and in its own. `touching` is the number of axes along which voxels
// of a part may be apart: 1 by faces, 2 by edges as well, 3 by corners as well.
template <typename T>
__device__ void join_runs(const T* labels, const unsigned short* groups, int* parents, int planes, int rows, int columns,
                          int touching) {
  int total = planes * rows * columns;
  for (int voxel = blockIdx.x * blockDim.x + threadIdx.x; voxel >= 0 && voxel < total; voxel += gridDim.x * blockDim.x) {
    int group = group_of(labels, groups, voxel);
    if (!group) continue;
    int column = voxel % columns, row = voxel / columns % rows, plane = voxel / columns / rows;
    bool inside_run = column > 0 && group_of(labels, groups, voxel - 1) == group;
    for (int n = 0; n < 4; ++n) {
      int up = n < 3 ? -1 : 0, over = n < 3 ? n - 1 : -1;
      if (plane + up < 0 || row + over < 0 || row + over >= rows) continue;
      for (int along = -1; along <= 1; ++along) {
        if ((up != 0) + (over != 0) + (along != 0) > touching) continue;
        if (column + along < 0 || column + along >= columns) continue;
        int other = voxel + (up * rows + over) * columns + along;
        if (group_of(labels, groups, other) != group) continue;
        // The voxel before this one joins the same two runs.
        if (inside_run && column + along > 0 && group_of(labels, groups, other - 1) == group) continue;
        join(parents, voxel, other);
      }
    }
  }
}

template <typename T>
__device__ void measure_parts(const T* labels, const unsigned short* groups, const int* parents, int* sizes, int rows,
                              int columns) {
  for (int row = blockIdx.x * blockDim.x + threadIdx.x; row < rows; row += gridDim.x * blockDim.x) {
    int start = row * columns, last = 0;
    for (int voxel = row * columns; voxel <= (row + 1) * columns; ++voxel) {
      int group = voxel < (row + 1) * columns ? group_of(labels, groups, voxel) : 0;
      if (group == last) continue;
      if (last) atomicAdd(&sizes[first_of(parents, start)], voxel - start);
      start = voxel;
      last = group;
    }
  }
}

// The first voxel of each part, its group and its size, in any order; `found` counts those for which there was no room as well.
template <typename T>
__device__ void list_parts(const T* labels, const unsigned short* groups, const int* parents, const int* sizes, int* parts,
                           int* found, int room, int total) {
  for (int voxel = blockIdx.x * blockDim.x + threadIdx.x; voxel >= 0 && voxel < total; voxel += gridDim.x * blockDim.x) {
    int group = group_of(labels, groups, voxel);
    if (!group || parents[voxel] != voxel) continue;
    int place = atomicAdd(found, 1);
    if (place >= room) continue;
    parts[3 * place] = voxel;
    parts[3 * place + 1] = group;
    parts[3 * place + 2] = sizes[voxel];
  }
}

// Parts that are to go are marked by a size below 0.
extern "C" __global__ void mark_parts(const int* firsts, int* sizes, int count) {
  for (int n = blockIdx.x * blockDim.x + threadIdx.x; n < count; n += gridDim.x * blockDim.x) sizes[firsts[n]] = -1;
}

template <typename T>
__device__ void erase_parts(T* labels, const unsigned short* groups, const int* parents, const int* sizes, int rows,
                            int columns) {
  for (int row = blockIdx.x * blockDim.x + threadIdx.x; row < rows; row += gridDim.x * blockDim.x) {
    int last = 0;
    bool goes = false;
    for (int voxel = row * columns; voxel < (row + 1) * columns; ++voxel) {
      int group = group_of(labels, groups, voxel);
      if (group && group != last) goes = sizes[first_of(parents, voxel)] < 0;
      if (group && goes) labels[voxel] = 0;
      last = group;
    }
  }
}

#define KERNELS(SUFFIX, T)                                                                                             \
  extern "C" __global__ void start_runs_##SUFFIX(const T* labels, const unsigned short* groups, int* parents,          \
                                                 int* sizes, int rows, int columns) {                                  \
    start_runs<T>(labels, groups, parents, sizes, rows, columns);                                                      \
  }                                                                                                                    \
  extern "C" __global__ void join_runs_##SUFFIX(const T* labels, const unsigned short* groups, int* parents,           \
                                                int planes, int rows, int columns, int touching) {                     \
    join_runs<T>(labels, groups, parents, planes, rows, columns, touching);                                            \
  }                                                                                                                    \
  extern "C" __global__ void measure_parts_##SUFFIX(const T* labels, const unsigned short* groups, const int* parents, \
                                                    int* sizes, int rows, int columns) {                               \
    measure_parts<T>(labels, groups, parents, sizes, rows, columns);                                                   \
  }                                                                                                                    \
  extern "C" __global__ void list_parts_##SUFFIX(const T* labels, const unsigned short* groups, const int* parents,    \
                                                 const int* sizes, int* parts, int* found, int room, int total) {      \
    list_parts<T>(labels, groups, parents, sizes, parts, found, room, total);                                          \
  }                                                                                                                    \
  extern "C" __global__ void erase_parts_##SUFFIX(T* labels, const unsigned short* groups, const int* parents,         \
                                                  const int* sizes, int rows, int columns) {                           \
    erase_parts<T>(labels, groups, parents, sizes, rows, columns);                                                     \
  }

KERNELS(u8, unsigned char)
KERNELS(u16, unsigned short)
