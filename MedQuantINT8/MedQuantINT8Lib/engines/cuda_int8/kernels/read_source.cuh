// Eight neighboring slots of a step's source, FP16 or INT8.

#if SOURCE_BYTES
typedef signed char Source;
typedef Bytes<8> Slots;
__device__ __forceinline__ void open_source(float (&v)[8], const Slots& slots) { slots.opened(v, SOURCE_SCALE); }
#else
typedef unsigned short Source;
typedef Halves<8> Slots;
__device__ __forceinline__ void open_source(float (&v)[8], const Slots& slots) { slots.opened(v); }
#endif
__device__ __forceinline__ const Source* source_at(const Params& p, i64 at, int c) {
  return (const Source*)p.source + at * PITCH + c;
}
__device__ __forceinline__ void read_source(float (&v)[8], const Params& p, i64 at, int c) {
  Slots slots;
  slots.read(source_at(p, at, c));
  open_source(v, slots);
}
