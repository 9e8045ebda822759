"""CUDA C of a step's epilogue: what happens to a value between where it is made and where it is stored.

A struct ``Epilogue`` holds the constants of V neighboring slots of one patch in registers; ``apply`` is called for each voxel, with where to
add it up if statistics are gathered.
Multiply-adds are fused only where it is said, so that the reference in NumPy comes to the same bits.
"""

from __future__ import annotations

import numpy as np

from ..plan.kernel_plan import KernelPlan, Op, Step

#: Pointers that a kernel's parameters have room for.
POINTERS = 24


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
    "gelu": "gelu(x)",
    "silu": "x * sigmoid(x)",
    # What rounding to INT8 leaves.
    "rest": "x - a * fminf(fmaxf(rintf(x * b), -128.0f), 127.0f)",
    "clip": "fminf(fmaxf(x, a), b)",
}


class EpilogueSource:
    """The source, and in ``pointers`` and ``numbers`` what its parameters are to be filled with, in order.

    pointers: ("array", name), ("scale" or "shift", norm), or ("view", number of the operation).
    """

    def __init__(self, plan: KernelPlan, step: Step) -> None:
        self.pointers: list[tuple[str, str | int]] = []
        self.numbers: list[float] = []
        self.norm = ""
        #: Whether it gives the network's output; then ``apply`` takes where to leave scores in shared memory.
        self.gives_output = False
        #: Tensors that the value meets on its way; they are fetched beforehand.
        self._loads: list[str] = []
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
        """How many constants each slot has."""
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
        members, begins, body, loads, fetches = (
            "\n  ".join(lines) for lines in (self._members, self._begins, self._body, self._loads, self._fetches)
        )
        return (
            f"{extra}#define WIDTH {self._width}\n#define VOXELS {self._voxels}ll\n#define STATISTICS {int(bool(self.norm))}\n#define FETCHES {int(bool(self._loads))}\n"
            f"#define OUTPUT {int(self.gives_output)}\n#define CLASSES {self._classes}\n#ifndef STAGES_OUTPUT\n#define STAGES_OUTPUT 0\n#endif\n{self._channel_of}"
            "template <int V> struct Epilogue {\n"
            f"  const Params& p; const int n, c, base;\n  {members}\n"
            "  // Voxels are counted from ``base`` on, so that addresses are worked out once and not for each of them.\n"
            f"  __device__ __forceinline__ Epilogue(const Params& p, int n, int c, int base = 0) : p(p), n(n), c(c), base(base) {{\n  {setup}{begins}\n  }}\n"
            "  // Of constants that are kept in shared memory, each ``apart`` from the one before.\n"
            "  __device__ __forceinline__ Epilogue(const Params& p, int n, int c, int base, const float* kept, int apart) : p(p), n(n), c(c), base(base) {\n"
            f"  {setup_kept}{begins}\n  }}\n"
            f"  static __device__ __forceinline__ const float* constant(const Params& p, int n, int c, int which) {{ {constant}return nullptr; }}\n"
            f"  struct Held {{\n  {loads}\n  }};\n"
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

    def _affine(self, plan: KernelPlan, number: int, op: Op) -> None:
        scale, shift = (self._constant(f"{self._pointer('array', name)} + c") for name in op.arrays)
        self._each(f"__fmaf_rn(x, {scale}[i], {shift}[i])")

    def _offset(self, plan: KernelPlan, number: int, op: Op) -> None:
        table = self._pointer("array", op.arrays[0])
        self._body.append(
            f"{{ float o[V]; read_floats<V>(o, (const float*){table} + (i64)base * WIDTH + c + (i64)voxel * WIDTH);"
        )
        self._each("x + o[i]")
        self._body.append("}")

    def _norm(self, plan: KernelPlan, number: int, op: Op) -> None:
        scale, shift = (self._factor(kind, op.norm) for kind in ("scale", "shift"))
        self._each(f"__fmaf_rn(x, {scale}[i], {shift}[i])")

    def _act(self, plan: KernelPlan, number: int, op: Op) -> None:
        function = op.function
        if function == "leakyrelu" and 0 <= op.params[0] <= 1:
            function = "leakyrelu by its larger side"
        given = "".join(
            f" const float {name} = {self._number(value)};" for name, value in zip("ab", op.params, strict=False)
        )
        self._body.append("{" + given)
        self._each(_ACTIVATIONS[function])
        self._body.append("}")

    def _prelu(self, plan: KernelPlan, number: int, op: Op) -> None:
        slope = self._constant(f"{self._pointer('array', op.arrays[0])} + c")
        self._each(f"x < 0.0f ? x * {slope}[i] : x")

    def _add(self, plan: KernelPlan, number: int, op: Op) -> None:
        self._other(plan, number, op, "+")

    def _mul(self, plan: KernelPlan, number: int, op: Op) -> None:
        self._other(plan, number, op, "*")

    def _other(self, plan: KernelPlan, number: int, op: Op, sign: str) -> None:
        assert op.view is not None
        pointer, pitch = self._pointer("view", number), plan.buffers[op.view.buffer].pitch
        name, kind = f"o{len(self._loads)}", "signed char" if op.view.scale else "unsigned short"
        self._loads.append(f"{'Bytes' if op.view.scale else 'Halves'}<V> {name};")
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

    def _store(self, plan: KernelPlan, number: int, op: Op) -> None:
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

    def _output(self, plan: KernelPlan, number: int, op: Op) -> None:
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

    def _statistics(self, plan: KernelPlan, number: int, op: Op) -> None:
        assert not self.norm
        self.norm = op.norm
        self._body.append(
            '_Pragma("unroll") for (int i = 0; i < V; ++i) { sum[i] += v[i]; square[i] = __fmaf_rn(v[i], v[i], square[i]); }'
        )


def inverse_of(scale: float) -> float:
    """The reciprocal of a scale in single precision, as the reference multiplies by it."""
    return float(np.float32(1) / np.float32(scale))
