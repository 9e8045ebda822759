// What every kernel begins with: the parameters of a launch, and reads, conversions and writes of neighboring slots.
//
// The struct Params is filled in by runtime/program.py (PARAMS), byte by byte. Eight slots of FP16 are 16 bytes, of
// INT8 8. Multiply-adds are fused only where it is said (__fmaf_rn), so that the reference in NumPy comes to the same
// bits.

// On compute capability 9.0 and later a kernel may begin before the one before it ends (programmatic dependent launch), if
// it is started so (runtime/batch_part.py). Before a kernel looks at what others write, or writes itself, it waits until
// the one before it is over: AWAIT_LAST. BEGIN_NEXT says that the next one may begin, as soon as all blocks have said so.
#if __CUDA_ARCH__ >= 900
#define AWAIT_LAST() asm volatile("griddepcontrol.wait;" ::: "memory")
#define BEGIN_NEXT() asm volatile("griddepcontrol.launch_dependents;" ::: "memory")
#else
#define AWAIT_LAST()
#define BEGIN_NEXT()
#endif
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
struct __align__(16) Params {
  const unsigned char* source;
  const unsigned char* weights;
  void* output;
  float* partials;
  void* workspace;
  void* counters;
  void* ptr[24];
  float f[24];
  int source_half, unused[3];
};
struct __align__(16) vec16 {
  u32 x, y, z, w;
};
struct __align__(8) vec8 {
  u32 x, y;
};
__device__ __forceinline__ float low_half(u32 pair) {
  float f;
  asm("{ .reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l; }" : "=f"(f) : "r"(pair));
  return f;
}
__device__ __forceinline__ float high_half(u32 pair) {
  float f;
  asm("{ .reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h; }" : "=f"(f) : "r"(pair));
  return f;
}
// The largest FP16 in place of infinity, which would become "not a number" in the next product.
__device__ __forceinline__ u32 halves(float low, float high) {
  u32 r;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
__device__ __forceinline__ u32 rounded(float value) {
  int r;
  asm("cvt.rni.sat.s8.f32 %0, %1;" : "=r"(r) : "f"(value));
  return (u32)r & 255u;
}
__device__ __forceinline__ float signed_byte(u32 word, int n) { return (float)(signed char)(word >> (8 * n)); }
// Volatile, so that no read is moved to before AWAIT_LAST.
__device__ __forceinline__ vec16 read16(const void* p) {
  vec16 r;
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p));
  return r;
}
__device__ __forceinline__ vec8 read8(const void* p) {
  vec8 r;
  asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(r.x), "=r"(r.y) : "l"(p));
  return r;
}
__device__ __forceinline__ u32 read4(const void* p) {
  u32 r;
  asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(r) : "l"(p));
  return r;
}
__device__ __forceinline__ void four_floats(float* v, vec16 r) {
  v[0] = __uint_as_float(r.x);
  v[1] = __uint_as_float(r.y);
  v[2] = __uint_as_float(r.z);
  v[3] = __uint_as_float(r.w);
}
template <int V>
__device__ __forceinline__ void read_floats(float (&v)[V], const float* p) {
#pragma unroll
  for (int i = 0; i < V; i += 4) four_floats(v + i, read16(p + i));
}
// Out of shared memory.
template <int V>
__device__ __forceinline__ void kept_floats(float (&v)[V], const float* p) {
#pragma unroll
  for (int i = 0; i < V; i += 4) four_floats(v + i, *(const vec16*)(p + i));
}
// Neighboring slots as they were read, FP16 or INT8.
template <int V>
struct Halves;
template <>
struct Halves<8> {
  vec16 r;
  __device__ __forceinline__ void read(const unsigned short* p) { r = read16(p); }
  __device__ __forceinline__ void opened(float (&v)[8]) const {
    v[0] = low_half(r.x);
    v[1] = high_half(r.x);
    v[2] = low_half(r.y);
    v[3] = high_half(r.y);
    v[4] = low_half(r.z);
    v[5] = high_half(r.z);
    v[6] = low_half(r.w);
    v[7] = high_half(r.w);
  }
};
template <>
struct Halves<4> {
  vec8 r;
  __device__ __forceinline__ void read(const unsigned short* p) { r = read8(p); }
  __device__ __forceinline__ void opened(float (&v)[4]) const {
    v[0] = low_half(r.x);
    v[1] = high_half(r.x);
    v[2] = low_half(r.y);
    v[3] = high_half(r.y);
  }
};
template <int V>
struct Bytes;
template <>
struct Bytes<8> {
  vec8 r;
  __device__ __forceinline__ void read(const signed char* p) { r = read8(p); }
  __device__ __forceinline__ void opened(float (&v)[8], float scale) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[i] = signed_byte(r.x, i) * scale;
      v[4 + i] = signed_byte(r.y, i) * scale;
    }
  }
};
template <>
struct Bytes<4> {
  u32 r;
  __device__ __forceinline__ void read(const signed char* p) { r = read4(p); }
  __device__ __forceinline__ void opened(float (&v)[4], float scale) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = signed_byte(r, i) * scale;
  }
};
template <int V>
__device__ __forceinline__ void read_halves(float (&v)[V], const unsigned short* p) {
  Halves<V> r;
  r.read(p);
  r.opened(v);
}
template <int V>
__device__ __forceinline__ void read_bytes(float (&v)[V], const signed char* p, float scale) {
  Bytes<V> r;
  r.read(p);
  r.opened(v, scale);
}
__device__ __forceinline__ u32 four_bytes(const float* v, float inverse) {
  return rounded(v[0] * inverse) | rounded(v[1] * inverse) << 8 | rounded(v[2] * inverse) << 16 |
         rounded(v[3] * inverse) << 24;
}
// In one piece: left to the compiler, a structure goes out as single words, which costs four times as many
// transactions.
__device__ __forceinline__ void write16(void* p, u32 x, u32 y, u32 z, u32 w) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
}
__device__ __forceinline__ void write8(void* p, u32 x, u32 y) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(p), "r"(x), "r"(y) : "memory");
}
__device__ __forceinline__ void write_bytes(const float (&v)[8], signed char* p, float inverse) {
  write8(p, four_bytes(v, inverse), four_bytes(v + 4, inverse));
}
__device__ __forceinline__ void write_bytes(const float (&v)[4], signed char* p, float inverse) {
  *(u32*)p = four_bytes(v, inverse);
}
__device__ __forceinline__ void write_halves(const float (&v)[8], unsigned short* p) {
  write16(p, halves(v[0], v[1]), halves(v[2], v[3]), halves(v[4], v[5]), halves(v[6], v[7]));
}
__device__ __forceinline__ void write_halves(const float (&v)[4], unsigned short* p) {
  write8(p, halves(v[0], v[1]), halves(v[2], v[3]));
}
// Eight voxels of two channels a thread become two voxels of eight: scores lie by channel.
#define WRITES_MATRICES (__CUDA_ARCH__ >= 900)
#if WRITES_MATRICES
__device__ __forceinline__ void write_matrices(const u32 (&w)[4], unsigned short* to) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"((u32)__cvta_generic_to_shared(to)),
      "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3])
      : "memory");
}
__device__ __forceinline__ void write_matrices(const u32 (&w)[2], unsigned short* to) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"((u32)__cvta_generic_to_shared(to)),
      "r"(w[0]), "r"(w[1])
      : "memory");
}
#endif
__device__ __forceinline__ float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }
// x / 2 (1 + erf(x / sqrt 2)): what the error function lacks of 1 is a polynomial of 1 / (1 + 0.3275911 |u|) times
// exp(-u u), at most 1.5e-7 away (Abramowitz and Stegun, 7.1.26). Half the instructions of erff, and no branch.
__device__ __forceinline__ float gelu(float x) {
  const float u = x * 0.70710678f, size = fabsf(u);
  float t, e;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(t) : "f"(__fmaf_rn(0.3275911f, size, 1.0f)));
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(u * u * -1.44269504f));
  float y = __fmaf_rn(1.061405429f, t, -1.453152027f);
  y = __fmaf_rn(y, t, 1.421413741f);
  y = __fmaf_rn(y, t, -0.284496736f);
  y = __fmaf_rn(y, t, 0.254829592f);
  // Where e is 0, as from 64 on, the product stays 0 for an infinite x.
  return __fmaf_rn(-0.70710678f * fminf(size, 64.0f), y * t * e, fmaxf(x, 0.0f));
}
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
