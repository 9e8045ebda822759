"""CUDA C of a step's chain: what happens to a value between where it is made and where it is stored.

A struct ``Chain`` holds the constants of V neighbouring slots of one patch in registers; ``apply`` is called for each voxel, with where to
add it up if statistics are gathered.
Multiply-adds are fused only where it is said, so that the reference in NumPy comes to the same bits.
"""

from __future__ import annotations

import numpy as np

from ..plan.kernel_plan import Op, Plan, Step

#: Pointers that a kernel's parameters have room for.
POINTERS = 24

PRELUDE = r"""
typedef unsigned int u32; typedef unsigned long long u64; typedef long long i64;
struct __align__(16) Params {
  const unsigned char* source; const unsigned char* weights; void* output; float* partials; void* workspace; void* counters;
  void* ptr[24];
  float f[24];
  int source_half, unused[3];
};
struct __align__(16) vec16 { u32 x, y, z, w; };
struct __align__(8) vec8 { u32 x, y; };
__device__ __forceinline__ float low_half(u32 pair) { float f; asm("{ .reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l; }" : "=f"(f) : "r"(pair)); return f; }
__device__ __forceinline__ float high_half(u32 pair) { float f; asm("{ .reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h; }" : "=f"(f) : "r"(pair)); return f; }
// The largest FP16 in place of infinity, which would become "not a number" in the next product.
__device__ __forceinline__ u32 halves(float low, float high) { u32 r; asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r; }
__device__ __forceinline__ u32 rounded(float value) { int r; asm("cvt.rni.sat.s8.f32 %0, %1;" : "=r"(r) : "f"(value)); return (u32)r & 255u; }
__device__ __forceinline__ float signed_byte(u32 word, int n) { return (float)(signed char)(word >> (8 * n)); }
__device__ __forceinline__ vec16 read16(const void* p) { vec16 r; asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p)); return r; }
__device__ __forceinline__ vec8 read8(const void* p) { vec8 r; asm("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(r.x), "=r"(r.y) : "l"(p)); return r; }
__device__ __forceinline__ u32 read4(const void* p) { u32 r; asm("ld.global.nc.u32 %0, [%1];" : "=r"(r) : "l"(p)); return r; }
__device__ __forceinline__ void four_floats(float* v, vec16 r) { v[0] = __uint_as_float(r.x); v[1] = __uint_as_float(r.y); v[2] = __uint_as_float(r.z); v[3] = __uint_as_float(r.w); }
template <int V> __device__ __forceinline__ void read_floats(float (&v)[V], const float* p) {
#pragma unroll
  for (int i = 0; i < V; i += 4) four_floats(v + i, read16(p + i));
}
// Out of shared memory.
template <int V> __device__ __forceinline__ void kept_floats(float (&v)[V], const float* p) {
#pragma unroll
  for (int i = 0; i < V; i += 4) four_floats(v + i, *(const vec16*)(p + i));
}
// Neighbouring slots as they were read, FP16 or INT8.
template <int V> struct Halves;
template <> struct Halves<8> {
  vec16 r;
  __device__ __forceinline__ void read(const unsigned short* p) { r = read16(p); }
  __device__ __forceinline__ void opened(float (&v)[8]) const {
    v[0] = low_half(r.x); v[1] = high_half(r.x); v[2] = low_half(r.y); v[3] = high_half(r.y);
    v[4] = low_half(r.z); v[5] = high_half(r.z); v[6] = low_half(r.w); v[7] = high_half(r.w);
  }
};
template <> struct Halves<4> {
  vec8 r;
  __device__ __forceinline__ void read(const unsigned short* p) { r = read8(p); }
  __device__ __forceinline__ void opened(float (&v)[4]) const { v[0] = low_half(r.x); v[1] = high_half(r.x); v[2] = low_half(r.y); v[3] = high_half(r.y); }
};
template <int V> struct Bytes;
template <> struct Bytes<8> {
  vec8 r;
  __device__ __forceinline__ void read(const signed char* p) { r = read8(p); }
  __device__ __forceinline__ void opened(float (&v)[8], float scale) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) { v[i] = signed_byte(r.x, i) * scale; v[4 + i] = signed_byte(r.y, i) * scale; }
  }
};
template <> struct Bytes<4> {
  u32 r;
  __device__ __forceinline__ void read(const signed char* p) { r = read4(p); }
  __device__ __forceinline__ void opened(float (&v)[4], float scale) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = signed_byte(r, i) * scale;
  }
};
template <int V> __device__ __forceinline__ void read_halves(float (&v)[V], const unsigned short* p) { Halves<V> r; r.read(p); r.opened(v); }
template <int V> __device__ __forceinline__ void read_bytes(float (&v)[V], const signed char* p, float scale) { Bytes<V> r; r.read(p); r.opened(v, scale); }
__device__ __forceinline__ u32 four_bytes(const float* v, float inverse) {
  return rounded(v[0] * inverse) | rounded(v[1] * inverse) << 8 | rounded(v[2] * inverse) << 16 | rounded(v[3] * inverse) << 24;
}
// In one piece: left to the compiler, a structure goes out as single words, which costs four times as many transactions.
__device__ __forceinline__ void write16(void* p, u32 x, u32 y, u32 z, u32 w) { asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" :: "l"(p), "r"(x), "r"(y), "r"(z), "r"(w) : "memory"); }
__device__ __forceinline__ void write8(void* p, u32 x, u32 y) { asm volatile("st.global.v2.u32 [%0], {%1, %2};" :: "l"(p), "r"(x), "r"(y) : "memory"); }
__device__ __forceinline__ void write_bytes(const float (&v)[8], signed char* p, float inverse) { write8(p, four_bytes(v, inverse), four_bytes(v + 4, inverse)); }
__device__ __forceinline__ void write_bytes(const float (&v)[4], signed char* p, float inverse) { *(u32*)p = four_bytes(v, inverse); }
__device__ __forceinline__ void write_halves(const float (&v)[8], unsigned short* p) { write16(p, halves(v[0], v[1]), halves(v[2], v[3]), halves(v[4], v[5]), halves(v[6], v[7])); }
__device__ __forceinline__ void write_halves(const float (&v)[4], unsigned short* p) { write8(p, halves(v[0], v[1]), halves(v[2], v[3])); }
// Eight voxels of two channels a thread become two voxels of eight: scores lie by channel.
#define WRITES_MATRICES (__CUDA_ARCH__ >= 900)
#if WRITES_MATRICES
__device__ __forceinline__ void write_matrices(const u32 (&w)[4], unsigned short* to) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" :: "r"((u32)__cvta_generic_to_shared(to)), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]) : "memory");
}
__device__ __forceinline__ void write_matrices(const u32 (&w)[2], unsigned short* to) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" :: "r"((u32)__cvta_generic_to_shared(to)), "r"(w[0]), "r"(w[1]) : "memory");
}
#endif
__device__ __forceinline__ float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
"""

#: Activations in CUDA C of x and the parameters a, b.
_ACTIVATIONS = {
    "relu": "fmaxf(x, 0.0f)",
    "leakyrelu": "x < 0.0f ? x * a : x",
    # Of a slope from 0 to 1: the same in one instruction less.
    "leakyrelu by its larger side": "fmaxf(x, x * a)",
    "elu": "x < 0.0f ? a * expm1f(x) : x",
    "sigmoid": "sigmoid(x)",
    "tanh": "tanhf(x)",
    "softplus": "softplus(x)",
    "hardsigmoid": "fminf(fmaxf(a * x + b, 0.0f), 1.0f)",
    "hardswish": "x * fminf(fmaxf(x / 6.0f + 0.5f, 0.0f), 1.0f)",
    "mish": "x * tanhf(softplus(x))",
    "gelu": "0.5f * x * (1.0f + erff(x * 0.70710678118654752f))",
    "silu": "x * sigmoid(x)",
    "clip": "fminf(fmaxf(x, a), b)",
}


class ChainSource:
    """The source, and in ``pointers`` and ``numbers`` what its parameters are to be filled with, in order.

    pointers: ("array", name), ("scale" or "shift", norm), or ("view", number of the operation).
    """

    def __init__(self, plan: Plan, step: Step) -> None:
        self.pointers: list[tuple[str, str | int]] = []
        self.numbers: list[float] = []
        self.norm = ""
        #: Whether it gives the network's output; then ``apply`` takes where to leave scores in shared memory.
        self.gives_output = False
        #: Tensors that the value meets on its way; they are fetched beforehand.
        self._held: list[str] = []
        self._fetches: list[str] = []
        self._members: list[str] = []
        #: Of each constant where it is, and its member.
        self._constants: list[tuple[str, str]] = []
        #: Members that point to where the first voxel is stored.
        self._begins: list[str] = []
        self._body: list[str] = []
        self._width, self._voxels = step.layout.width, step.voxels
        self._parts, self._classes = step.layout.parts, plan.classes
        for number, op in enumerate(step.ops):
            getattr(self, f"_{op.kind}")(plan, number, op)
        assert len(self.pointers) <= POINTERS and len(self.numbers) <= POINTERS

    @property
    def constants(self) -> int:
        """Of each slot."""
        return len(self._constants)

    @property
    def text(self) -> str:
        gathering = ", float (&sum)[V], float (&square)[V]" if self.norm else ""
        if self.gives_output:
            gathering += ", unsigned short* staged"
        extra = f"#define EXTRA(sum, square, staged) {', sum, square' if self.norm else ''}{', staged' if self.gives_output else ''}\n"
        setup = "".join(f"read_floats<V>({name}, {source}); " for source, name in self._constants)
        setup_kept = "".join(
            f"kept_floats<V>({name}, kept + {number} * apart); " for number, (_, name) in enumerate(self._constants)
        )
        constant = "".join(
            f"if (which == {number}) return {source}; " for number, (source, _) in enumerate(self._constants)
        )
        members, begins, body, held, fetches = (
            "\n  ".join(lines) for lines in (self._members, self._begins, self._body, self._held, self._fetches)
        )
        return (
            f"{extra}#define WIDTH {self._width}\n#define VOXELS {self._voxels}ll\n#define STATISTICS {int(bool(self.norm))}\n#define FETCHES {int(bool(self._held))}\n"
            f"#define OUTPUT {int(self.gives_output)}\n#define CLASSES {self._classes}\n#ifndef STAGES_OUTPUT\n#define STAGES_OUTPUT 0\n#endif\n{self._channel_of}"
            "template <int V> struct Chain {\n"
            f"  const Params& p; const int n, c, base;\n  {members}\n"
            "  // Voxels are counted from ``base`` on, so that addresses are worked out once and not for each of them.\n"
            f"  __device__ __forceinline__ Chain(const Params& p, int n, int c, int base = 0) : p(p), n(n), c(c), base(base) {{\n  {setup}{begins}\n  }}\n"
            "  // Of constants that are kept in shared memory, each ``apart`` from the one before.\n"
            "  __device__ __forceinline__ Chain(const Params& p, int n, int c, int base, const float* kept, int apart) : p(p), n(n), c(c), base(base) {\n"
            f"  {setup_kept}{begins}\n  }}\n"
            f"  static __device__ __forceinline__ const float* constant(const Params& p, int n, int c, int which) {{ {constant}return nullptr; }}\n"
            f"  struct Held {{\n  {held}\n  }};\n"
            "  // What is read beside the value, to be called as early as may be.\n"
            f"  static __device__ __forceinline__ void fetch(Held& held, const Params& p, int n, int c, int base, int voxel) {{\n  {fetches}\n  }}\n"
            f"  __device__ __forceinline__ void apply(float (&v)[V], int voxel{gathering}) {{\n"
            "  Held held; fetch(held, p, n, c, base, voxel); apply(v, voxel, held EXTRA(sum, square, staged));\n  }\n"
            f"  __device__ __forceinline__ void apply(float (&v)[V], int voxel, const Held& held{gathering}) {{\n  {body}\n  }}\n"
            "};\n"
        )

    def _pointer(self, kind: str, what: str | int) -> str:
        self.pointers.append((kind, what))
        return f"p.ptr[{len(self.pointers) - 1}]"

    def _number(self, value: float) -> str:
        self.numbers.append(value)
        return f"p.f[{len(self.numbers) - 1}]"

    def _constant(self, source: str) -> str:
        name = f"k{len(self._members)}"
        self._members.append(f"float {name}[V];")
        self._constants.append((f"(const float*){source}", name))
        return name

    def _factor(self, kind: str, norm: str) -> str:
        """What the statistics of a norm gave, by patch and slot."""
        return self._constant(f"{self._pointer(kind, norm)} + n * WIDTH + c")

    def _each(self, what: str) -> None:
        self._body.append('_Pragma("unroll") for (int i = 0; i < V; ++i) { float x = v[i]; v[i] = ' + what + "; }")

    def _affine(self, plan: Plan, number: int, op: Op) -> None:
        scale, shift = (self._constant(f"{self._pointer('array', name)} + c") for name in op.arrays)
        self._each(f"__fmaf_rn(x, {scale}[i], {shift}[i])")

    def _offset(self, plan: Plan, number: int, op: Op) -> None:
        table = self._pointer("array", op.arrays[0])
        self._body.append(
            f"{{ float o[V]; read_floats<V>(o, (const float*){table} + (i64)base * WIDTH + c + (i64)voxel * WIDTH);"
        )
        self._each("x + o[i]")
        self._body.append("}")

    def _norm(self, plan: Plan, number: int, op: Op) -> None:
        scale, shift = (self._factor(kind, op.norm) for kind in ("scale", "shift"))
        self._each(f"__fmaf_rn(x, {scale}[i], {shift}[i])")

    def _act(self, plan: Plan, number: int, op: Op) -> None:
        function = op.function
        if function == "leakyrelu" and 0 <= op.params[0] <= 1:
            function = "leakyrelu by its larger side"
        given = "".join(
            f" const float {name} = {self._number(value)};" for name, value in zip("ab", op.params, strict=False)
        )
        self._body.append("{" + given)
        self._each(_ACTIVATIONS[function])
        self._body.append("}")

    def _prelu(self, plan: Plan, number: int, op: Op) -> None:
        slope = self._constant(f"{self._pointer('array', op.arrays[0])} + c")
        self._each(f"x < 0.0f ? x * {slope}[i] : x")

    def _add(self, plan: Plan, number: int, op: Op) -> None:
        self._other(plan, number, op, "+")

    def _mul(self, plan: Plan, number: int, op: Op) -> None:
        self._other(plan, number, op, "*")

    def _other(self, plan: Plan, number: int, op: Op, sign: str) -> None:
        assert op.view is not None
        pointer, pitch = self._pointer("view", number), plan.buffers[op.view.buffer].pitch
        name, kind = f"o{len(self._held)}", "signed char" if op.view.scale else "unsigned short"
        self._held.append(f"{'Bytes' if op.view.scale else 'Halves'}<V> {name};")
        self._fetches.append(
            f"held.{name}.read((const {kind}*){pointer} + ((i64)n * VOXELS + base) * {pitch} + c + (i64)voxel * {pitch});"
        )
        opened = f"held.{name}.opened(o{f', {self._number(op.view.scale)}' if op.view.scale else ''});"
        other = "o[i]"
        if op.norm:
            other = f"__fmaf_rn(o[i], {self._factor('scale', op.norm)}[i], {self._factor('shift', op.norm)}[i])"
        self._body.append("{ float o[V]; " + opened)
        self._each(f"x {sign} {other}")
        self._body.append("}")

    def _store(self, plan: Plan, number: int, op: Op) -> None:
        assert op.view is not None
        pointer, pitch = self._pointer("view", number), plan.buffers[op.view.buffer].pitch
        kind = "signed char" if op.view.scale else "unsigned short"
        to = self._beginning(kind, pointer, pitch)
        if op.view.scale:
            self._body.append(
                f"write_bytes(v, {to} + (i64)voxel * {pitch}, {self._number(inverse_of(op.view.scale))});"
            )
        else:
            self._body.append(f"write_halves(v, {to} + (i64)voxel * {pitch});")

    def _beginning(self, kind: str, pointer: str, pitch: int) -> str:
        """A member that points to where the first voxel's slots are."""
        name = f"to{len(self._members)}"
        self._members.append(f"{kind}* {name};")
        self._begins.append(f"{name} = ({kind}*){pointer} + ((i64)n * VOXELS + base) * {pitch} + c;")
        return name

    def _output(self, plan: Plan, number: int, op: Op) -> None:
        """Planar scores in FP16: straight to where they belong, or to shared memory, STAGED_ROW apart, from where rows go out in one piece."""
        self.gives_output = True
        self._body.append(
            "#if STAGES_OUTPUT && WRITES_MATRICES\n"
            '{ u32 w[V / 2]; _Pragma("unroll") for (int i = 0; i < V; i += 2) w[i / 2] = halves(v[i], v[i + 1]); write_matrices(w, staged); }\n'
            "#elif STAGES_OUTPUT\n"
            '_Pragma("unroll") for (int i = 0; i < V; ++i) staged[i * STAGED_ROW] = (unsigned short)halves(v[i], v[i]);\n'
            "#else\n"
            '_Pragma("unroll") for (int i = 0; i < V; ++i) { const int k = channel_of(c + i); '
            f"if (k >= 0) ((unsigned short*)p.output)[((i64)n * {self._classes} + k) * VOXELS + base + voxel] = (unsigned short)halves(v[i], v[i]); }}\n"
            "#endif"
        )

    @property
    def _channel_of(self) -> str:
        """The channel of a slot, or -1."""
        lines, begin = [], 0
        for first, count in self._parts:
            lines.append(f"if (s >= {first} && s < {first + count}) return s - {first} + {begin};")
            begin += count
        return f"__device__ __forceinline__ int channel_of(int s) {{ {' '.join(lines)} return -1; }}\n"

    def _statistics(self, plan: Plan, number: int, op: Op) -> None:
        assert not self.norm
        self.norm = op.norm
        self._body.append(
            '_Pragma("unroll") for (int i = 0; i < V; ++i) { sum[i] += v[i]; square[i] = __fmaf_rn(v[i], v[i], square[i]); }'
        )


def inverse_of(scale: float) -> float:
    """As the reference divides: the reciprocal in single precision."""
    return float(np.float32(1) / np.float32(scale))
