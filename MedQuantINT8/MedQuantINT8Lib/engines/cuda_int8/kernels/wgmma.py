"""CUDA C of Hopper's matrix products, with the instruction's long list of operands written out (PTX ISA 8.0, section "Asynchronous warpgroup level
matrix instructions"): 64 rows by a tile's columns, 32 bytes deep."""

from __future__ import annotations

from ..tiling.tile import DEPTH
from ..tiling.tiling import CHUNK, TILE2, Tiling

#: MMA steps that the tensor cores are given before a team does something else meanwhile.
_MMA_STEPS_BEFORE = 2
#: Rows of one instruction.
_ROWS = 64


def multiply_group(tiling: Tiling) -> str:
    """multiply_group(sums, a, b, add): one product; its rows described, or by lines in registers a0 to a3."""
    count = _count(tiling)
    if tiling.by_lines:
        rows, given, where, last = (
            "{" + _list(count, 4) + "}",
            "u32 a0, u32 a1, u32 a2, u32 a3",
            '"r"(a0), "r"(a1), "r"(a2), "r"(a3)',
            count + 4,
        )
    else:
        rows, given, where, last = f"%{count}", "u64 a", '"l"(a)', count + 1
    operands = ", ".join(f"{_operand(tiling)}(sums[{n // 4}][{n % 4}])" for n in range(count))
    return (
        f"#define HOLD(sum) {_operand(tiling)}(sum)\n"
        f"__device__ __forceinline__ void multiply_group(Sum (&sums)[{count // 4}][4], {given}, u64 b, int add) {{\n"
        f'  asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{last + 1}, 0; {_product(tiling, _list(0, count), rows, f"%{last}", "p")} }}"'
        f' : {operands} : {where}, "l"(b), "r"(add));\n}}\n'
    )


def multiply_mma_steps(tiling: Tiling) -> str:
    """multiply_first(sums, a, b, add) and multiply_rest(sums, a, b): all MMA steps of a tile, where a team has them in shared memory at once.

    Where things lie is part of the instructions then. One statement has all of them: the compiler takes half as long as for as many statements.
    """
    written_out = tiling.same_taps and tiling.mma_step_groups == 1
    text = f"#define WRITTEN_OUT {int(written_out)}\n#define MMA_STEPS_BEFORE {_MMA_STEPS_BEFORE}\n"
    if not written_out:
        return text
    places = tiling.places[0]
    mma_steps = list(enumerate(zip(places[::2], places[1::2], strict=True)))
    slabs, count = _slabs(tiling), _count(tiling)
    operands = ", ".join(
        f"{_operand(tiling)}(sums[{i}][{n // 4}][{n % 4}])" for i in range(slabs) for n in range(count)
    )
    a, b, add = (f"%{slabs * count + n}" for n in range(3))
    for name, some in (("first", mma_steps[:_MMA_STEPS_BEFORE]), ("rest", mma_steps[_MMA_STEPS_BEFORE:])):
        lines = [".reg .pred p, all; .reg .b64 a, b;", f"setp.ne.b32 p, {add}, 0; setp.eq.b32 all, {add}, {add};"]
        for mma_step, (place, other) in some:
            for slab in range(slabs):
                lines.append(
                    f"add.s64 a, {a}, {_slab_begin(tiling, slab) + place + (other - place << 16)}; add.s64 b, {b}, {mma_step * tiling.tile.channels * DEPTH // CHUNK};"
                )
                lines.append(_product(tiling, _list(slab * count, count), "a", "b", "all" if mma_step else "p"))
        body = "\n".join(f'    "{line}\\n"' for line in lines)
        text += (
            f"__device__ __forceinline__ void multiply_{name}(Sum (&sums)[MI][NJ][4], u64 a, u64 b, int add = 1) {{\n"
            + (f'  asm volatile("{{\\n"\n{body}\n    "}}" : {operands} : "l"(a), "l"(b), "r"(add));\n' if some else "")
            + "}\n"
        )
    return text


def _slab_begin(tiling: Tiling, slab: int) -> int:
    """Where in the halo a team's 64 rows of a number begin, as ROW_D and ROW_H of the kernel have it."""
    per_plane = tiling.tile.voxels[1] // TILE2
    plane, row = divmod(slab, per_plane) if _slabs(tiling) >= per_plane else (0, slab)
    _, height, width = tiling.halo
    return (plane * tiling.axis_phases[0].stride * height + row * TILE2 * tiling.axis_phases[1].stride) * width


def _slabs(tiling: Tiling) -> int:
    """Instructions that a team's rows take; four warps are one."""
    return tiling.tile.count * 4 // (_ROWS * tiling.tile.warps)


def _count(tiling: Tiling) -> int:
    """Return how many sums a thread holds in one product."""
    return tiling.tile.channels // 2


def _operand(tiling: Tiling) -> str:
    return f'"+{"f" if tiling.half else "r"}"'


def _list(first: int, count: int) -> str:
    return ", ".join(f"%{n}" for n in range(first, first + count))


def _product(tiling: Tiling, sums: str, rows: str, columns: str, add: str) -> str:
    kind, shape = ("f32.f16.f16", "k16") if tiling.half else ("s32.s8.s8", "k32")
    # Signs, and of rows in shared memory and columns whether they are transposed.
    tail = "" if not tiling.half else ", 1, 1, 0" if tiling.by_lines else ", 1, 1, 0, 0"
    return f"wgmma.mma_async.sync.aligned.m64n{tiling.tile.channels}{shape}.{kind} {{{sums}}}, {rows}, {columns}, {add}{tail};"
