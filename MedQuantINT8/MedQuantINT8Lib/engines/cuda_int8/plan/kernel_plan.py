"""A plan: the short list of fused steps that a network becomes, over channels-last buffers of INT8 and FP16.

A step takes its values from one place (a convolution's accumulators, a pooled or resized tensor, a tensor as it is) and passes each,
as float32, through an epilogue of operations that ends in stores. Voxels are counted along the tensor's axes (A0, A1, A2), A2 fastest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int, int]
#: Slots of a voxel come in whole groups of so many: 16 bytes of INT8, one load.
SLOTS = 16


@dataclass(frozen=True)
class Layout:
    """Where channels lie among a voxel's slots: (first slot, channels) of each part in turn. Slots between parts hold nothing of use."""

    parts: tuple[tuple[int, int], ...]
    width: int

    @staticmethod
    def dense(channels: int) -> Layout:
        return Layout(((0, channels),), -(-channels // SLOTS) * SLOTS)

    @property
    def channels(self) -> int:
        return sum(count for _, count in self.parts)

    @property
    def slots(self) -> NDArray[np.int64]:
        """The slot of each channel."""
        return np.concatenate([np.arange(first, first + count) for first, count in self.parts])

    def merged(self) -> Layout:
        """The same layout with parts that follow one another as one, so that layouts can be compared."""
        parts = [self.parts[0]]
        for first, count in self.parts[1:]:
            begin, length = parts[-1]
            if begin + length == first:
                parts[-1] = begin, length + count
            else:
                parts.append((first, count))
        return Layout(tuple(parts), self.width)

    def placed(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Values by channel as values by slot; 0 where there is no channel."""
        by_slot = np.zeros(self.width, np.float32)
        by_slot[self.slots] = values
        return by_slot


@dataclass(frozen=True)
class Buffer:
    """(batch, *size, pitch) elements of "i8" or "f16"."""

    kind: str
    size: Size
    pitch: int

    @property
    def bytes(self) -> int:
        """The bytes of one patch."""
        return int(np.prod(self.size)) * self.pitch * (1 if self.kind == "i8" else 2)


@dataclass(frozen=True)
class View:
    """A tensor in a buffer, from slot ``start`` on. ``scale`` is what one step of INT8 is worth; 0 for FP16."""

    buffer: str
    start: int
    layout: Layout
    scale: float = 0.0


@dataclass(frozen=True)
class Op:
    """One link of an epilogue; v is the value.

    kind:
        "affine": v * arrays[0] + arrays[1], by slot. "offset": v + arrays[0], by voxel and slot. "norm": the same with what the statistics of ``norm`` gave, by patch and slot.
        "act": ``function`` with ``params``. "prelu": slope arrays[0] below 0.
        "add", "mul": with the value of ``view`` at the same place, normalized first if ``norm`` is given.
        "store": into ``view``, rounded to it. "output": to the network's output, planar float32. "statistics": gather for ``norm``.
    """

    kind: str
    function: str = ""
    params: tuple[float, ...] = ()
    arrays: tuple[str, ...] = ()
    view: View | None = None
    norm: str = ""


@dataclass(frozen=True)
class Geometry:
    kernel: Size = (1, 1, 1)
    stride: Size = (1, 1, 1)
    dilation: Size = (1, 1, 1)
    before: Size = (0, 0, 0)
    #: Average pooling divides by the whole kernel, not by what of it lies inside.
    whole: bool = False

    def region(self, outputs: Size) -> Size:
        """Inputs, along each axis, that so many neighboring outputs look at."""
        a, b, c = (
            (n - 1) * s + (k - 1) * d + 1
            for n, s, k, d in zip(outputs, self.stride, self.kernel, self.dilation, strict=True)
        )
        return a, b, c


@dataclass(frozen=True)
class Attention:
    """Attention of the tokens of each window to one another, head by head; tokens are voxels, those of a window side by side unless a table says
    where they lie. What it gives lies as what it takes; voxels that belong to no window are 0.

    Attributes:
        width: channels of a head.
        starts: channels where the first head of queries, keys and values begins.
        scale: of the products of queries and keys.
        apart: added to the score of two tokens of different regions.
    """

    windows: int
    tokens: int
    heads: int
    width: int
    starts: Size
    scale: float
    apart: float


@dataclass(frozen=True)
class Step:
    """A step of the plan: one kernel.

    Attributes:
        kind: "input", "conv", "deconv", "maxpool", "avgpool", "resize", "move", "elementwise", "softmax", "layernorm", "attention", or "normalize"
            (statistics of ``norm`` to a scale and a shift of each slot).
        size: of what it gives; ``source_size`` of what it takes.
        layout: of the values in the epilogue.
        weights: of a convolution, in the plan's arrays: (out, in, k0, k1, k2), int8, or whole numbers or float16 for one in FP16.
        tables: of a resize: for each axis the lower and upper source index of each output index and the upper's share. Of a move: the source's
            voxel for each voxel, int32, -1 for a value of 0. Of a layernorm: scale and shift by slot, and such a table if it moves as well.
            Of attention, each of them "" where there is none: the voxel of each token, int32 (windows, tokens); what is added to scores, float16
            (heads, tokens, tokens filled up to whole eights); and the region of each token, int32 (windows, tokens).
        epsilon: of a layernorm.
        neighbors: of a first convolution, done as a pointwise one: its slots are the network's input at all places of this kernel, 0 outside the
            volume, place by place and then by channel. Its source is in no buffer.
        sources: the ONNX nodes it does.
    """

    kind: str
    name: str
    size: Size
    source_size: Size
    layout: Layout
    source: View | None = None
    ops: tuple[Op, ...] = ()
    geometry: Geometry = Geometry()
    weights: str = ""
    int8: bool = False
    macs: int = 0
    tables: tuple[str, ...] = ()
    norm: str = ""
    sources: tuple[str, ...] = ()
    epsilon: float = 0.0
    attention: Attention | None = None
    neighbors: Geometry | None = None

    @property
    def takes_input(self) -> bool:
        """Whether it reads what the network is given."""
        return self.kind == "input" or self.neighbors is not None

    @property
    def voxels(self) -> int:
        """How many voxels it gives."""
        return math.prod(self.size)

    def reads(self) -> Iterator[View]:
        if self.source is not None and self.neighbors is None:
            yield self.source
        yield from (op.view for op in self.ops if op.kind in ("add", "mul") and op.view)

    def writes(self) -> Iterator[View]:
        yield from (op.view for op in self.ops if op.kind == "store" and op.view)


@dataclass(frozen=True)
class Norm:
    """Normalization by the mean and variance over all voxels of each group of slots.

    gamma, beta: by slot, names of arrays. groups: slots of each group.
    """

    groups: tuple[tuple[int, ...], ...]
    gamma: str
    beta: str
    epsilon: float


@dataclass
class KernelPlan:
    channels: int
    classes: int
    size: Size
    steps: list[Step] = field(default_factory=list)
    buffers: dict[str, Buffer] = field(default_factory=dict)
    norms: dict[str, Norm] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)

    def lifetimes(self) -> dict[str, tuple[int, int]]:
        """For each buffer the first and the last step that touches it."""
        steps: dict[str, tuple[int, int]] = {}
        for number, step in enumerate(self.steps):
            for view in (*step.reads(), *step.writes()):
                first = steps.get(view.buffer, (number, number))[0]
                steps[view.buffer] = first, number
        return steps

    def places(self, align: int = 256) -> tuple[dict[str, int], int]:
        """Where each buffer begins in one piece of memory, and its bytes, for one patch: buffers that never live together share it."""
        lives = self.lifetimes()
        placed: dict[str, int] = {}
        for name in sorted(lives, key=lambda n: -self.buffers[n].bytes):
            first, last = lives[name]
            occupied = sorted(
                (placed[other], placed[other] + self.buffers[other].bytes)
                for other in placed
                if lives[other][0] <= last and first <= lives[other][1]
            )
            begin = 0
            for low, high in occupied:
                if begin + self.buffers[name].bytes <= low:
                    break
                begin = max(begin, -(-high // align) * align)
            placed[name] = begin
        return placed, max((placed[n] + self.buffers[n].bytes for n in placed), default=0)

    def save(self, folder: Path) -> None:
        described = {
            "channels": self.channels,
            "classes": self.classes,
            "size": self.size,
            "steps": [asdict(step) for step in self.steps],
            "buffers": {name: asdict(buffer) for name, buffer in self.buffers.items()},
            "norms": {name: asdict(norm) for name, norm in self.norms.items()},
        }
        (folder / "plan.json").write_text(json.dumps(described))
        np.savez(folder / "plan.npz", **self.arrays)  # type: ignore[arg-type]

    @staticmethod
    def load(folder: Path) -> KernelPlan:
        described = json.loads((folder / "plan.json").read_text())
        with np.load(folder / "plan.npz", allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return KernelPlan(
            described["channels"],
            described["classes"],
            _size(described["size"]),
            [_step(value) for value in described["steps"]],
            {
                name: Buffer(value["kind"], _size(value["size"]), value["pitch"])
                for name, value in described["buffers"].items()
            },
            {
                n: Norm(tuple(map(tuple, v["groups"])), v["gamma"], v["beta"], v["epsilon"])
                for n, v in described["norms"].items()
            },
            arrays,
        )


def _size(value: list[int]) -> Size:
    return value[0], value[1], value[2]


def _layout(value: dict[str, Any]) -> Layout:
    return Layout(tuple((first, count) for first, count in value["parts"]), value["width"])


def _view(value: dict[str, Any] | None) -> View | None:
    return None if value is None else View(value["buffer"], value["start"], _layout(value["layout"]), value["scale"])


def _geometry(value: dict[str, Any]) -> Geometry:
    return Geometry(whole=value["whole"], **{key: _size(item) for key, item in value.items() if key != "whole"})


def _attention(value: dict[str, Any] | None) -> Attention | None:
    return None if value is None else Attention(**{**value, "starts": _size(value["starts"])})


def _op(value: dict[str, Any]) -> Op:
    fields = {**value, "params": tuple(value["params"]), "arrays": tuple(value["arrays"]), "view": _view(value["view"])}
    return Op(**fields)


def _step(value: dict[str, Any]) -> Step:
    fields = {
        **value,
        "size": _size(value["size"]),
        "source_size": _size(value["source_size"]),
        "layout": _layout(value["layout"]),
        "source": _view(value["source"]),
        "ops": tuple(map(_op, value["ops"])),
        "geometry": _geometry(value["geometry"]),
        "tables": tuple(value["tables"]),
        "sources": tuple(value["sources"]),
        "attention": _attention(value["attention"]),
        "neighbors": None if value["neighbors"] is None else _geometry(value["neighbors"]),
    }
    return Step(**fields)
