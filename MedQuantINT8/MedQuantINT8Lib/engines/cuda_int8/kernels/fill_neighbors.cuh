// A first convolution's left side: rows of a product, made of the network's input where they are multiplied.
//
// A voxel of one channel or a few is too short for tensor cores, which load 32 bytes at once; its neighbors at all
// places of the kernel fill them. Kept in memory, such rows would be as large as the layer's output. M is the size of
// the network's input, R of what a tile takes of it; K, S, D and B are kernel, stride, dilation and padding before.

#if HALF
typedef unsigned short Entry;
__device__ __forceinline__ u32 entered(float value) { return halves(value, 0.0f); }
#else
typedef unsigned char Entry;
__device__ __forceinline__ u32 entered(float value) { return rounded(value * SOURCE_INVERSE); }
#endif
#define ITEMS (4 / (int)sizeof(Entry))
#define WORDS (K_BLOCK / 4)
#define K_BLOCKS ((SOURCE_WIDTH + K_BLOCK - 1) / K_BLOCK)
// All that a tile takes of the network's input lies behind its rows, by channel, each rounded once. What the next tile
// takes is read while this one is worked on, if threads have room to keep it; else in parts that they have room for.
#define ALL_MINE ((ENTRIES + TEAM_THREADS - 1) / TEAM_THREADS)
#define MINE (READS_AHEAD ? ALL_MINE : MOST_READ)
__device__ __forceinline__ void note_halo() {
  for (int i = threadIdx.x; i < ENTRIES; i += THREADS) {
    const int x2 = i % R2, x1 = i / R2 % R1, x0 = i / (R1 * R2) % R0, channel = i / (R0 * R1 * R2);
    vec8 r;
    r.x = ((channel * M0 + x0) * M1 + x1) * M2 + x2;
    r.y = PACKED(x0, x1, x2);
    HALO_TABLE[i] = r;
  }
}
struct Region {
  const unsigned char* from;
  Bounds bounds;
  int half;
  __device__ __forceinline__ Region(const Params& p, int n, const TileOrigin& s)
      : Region(p, n, s.i0 * S0 - B0, s.i1 * S1 - B1, s.i2 * S2 - B2) {}
  __device__ __forceinline__ Region(const Params& p, int n, int i0, int i1, int i2)
      : bounds(i0, i1, i2, 1, 1, 1, M0, M1, M2), half(p.source_half) {
    from = p.source + ((((i64)n * CHANNELS * M0 + i0) * M1 + i1) * M2 + i2) * (half ? 2 : 4);
  }
  // As it lies there.
  __device__ __forceinline__ int read(int i) const {
    const vec8 at = HALO_TABLE[i];
    if (!bounds.has(at.y)) return 0;
    return half ? (int)__ldg((const unsigned short*)from + (int)at.x) : __ldg((const int*)from + (int)at.x);
  }
  __device__ __forceinline__ void enter(u32 to, int i, int raw) const {
    const u32 entry = entered(half ? low_half((u32)raw) : __int_as_float(raw));
#if HALF
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(to + i * 2), "h"((unsigned short)entry) : "memory");
#else
    asm volatile("st.shared.u8 [%0], %1;" ::"r"(to + i), "r"(entry) : "memory");
#endif
  }
};
// Whether a thread has a number of a part, known beforehand of all but the last.
__device__ __forceinline__ bool has_mine(int first, int k) {
  return (first + k + 1) * TEAM_THREADS <= ENTRIES || of_team() + (first + k) * TEAM_THREADS < ENTRIES;
}
__device__ __forceinline__ void read_part(int (&kept)[MINE], const Region& region, int first) {
#pragma unroll
  for (int k = 0; k < MINE; ++k)
    if (has_mine(first, k)) kept[k] = region.read(of_team() + (first + k) * TEAM_THREADS);
}
__device__ __forceinline__ void enter_part(u32 entries, const int (&kept)[MINE], const Region& region, int first) {
#pragma unroll
  for (int k = 0; k < MINE; ++k)
    if (has_mine(first, k)) region.enter(entries, of_team() + (first + k) * TEAM_THREADS, kept[k]);
}
__device__ __forceinline__ void begin_filling(int (&kept)[MINE], const Params& p, int n, const TileOrigin& s) {
  if (READS_AHEAD) read_part(kept, Region(p, n, s), 0);
}
// The part of the rows that is multiplied at once.
template <int PART>
__device__ __forceinline__ void neighbors(u32 to, const unsigned char* region) {
#pragma unroll 1
  for (int v = of_team(); v < HALO; v += TEAM_THREADS) {
    const Entry* from = (const Entry*)region + ((v / (H1 * H2) * S0 * R1 + v / H2 % H1 * S1) * R2 + v % H2 * S2);
    u32 row[WORDS];
#pragma unroll
    for (int word = 0; word < WORDS; ++word) {
      row[word] = 0;
#pragma unroll
      for (int item = 0; item < ITEMS; ++item) {
        const int slot = (PART * WORDS + word) * ITEMS + item, channel = slot % CHANNELS, place = slot / CHANNELS;
        const int x0 = place / (K1 * K2) * D0, x1 = place / K2 % K1 * D1, x2 = place % K2 * D2;
        if (place < K0 * K1 * K2)
          row[word] |= (u32)from[((channel * R0 + x0) * R1 + x1) * R2 + x2] << item * (32 / ITEMS);
      }
    }
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk)
      asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to + chunk_place(v * CHUNKS + chunk)),
                   "r"(row[chunk * 4]), "r"(row[chunk * 4 + 1]), "r"(row[chunk * 4 + 2]), "r"(row[chunk * 4 + 3])
                   : "memory");
  }
}
template <int PART>
__device__ __forceinline__ void neighbors_of(u32 to, const unsigned char* region, int k_block) {
  if constexpr (PART + 1 == K_BLOCKS)
    neighbors<PART>(to, region);
  else if (k_block == PART)
    neighbors<PART>(to, region);
  else
    neighbors_of<PART + 1>(to, region, k_block);
}
__device__ __forceinline__ void fill_halo(u32 to, const Params& p, int n, const TileOrigin& s, const TileOrigin& next,
                                          int k_block, int (&kept)[MINE]) {
  const u32 entries = to + HALO_BYTES - ENTRY_BYTES;
#if READS_AHEAD
  const Region region(p, n, next);
  enter_part(entries, kept, region, 0);
  read_part(kept, region, 0);
#else
  const Region region(p, n, s);
#pragma unroll 1
  for (int first = 0; first < ALL_MINE; first += MINE) {
    read_part(kept, region, first);
    enter_part(entries, kept, region, first);
  }
#endif
  meet();
  neighbors_of<0>(to, memory + (entries - shared_address(memory)), k_block);
}
