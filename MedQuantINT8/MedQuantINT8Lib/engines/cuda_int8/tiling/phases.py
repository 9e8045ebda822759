"""One axis of a convolution as phases (a polyphase decomposition): ordinary convolutions, dilation and transposition taken out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class AxisPhases:
    """The phases of one axis.

    Attributes:
        phases: how many; output ``phase + i * out_step``.
        out_step: between neighboring outputs of a phase.
        in_step: between neighboring inputs of a phase.
        stride: inputs of the phase between neighboring outputs.
        starts: for each phase the input of its first output and first tap.
        taps: for each phase (place in the kernel, inputs of the phase from the first).
    """

    phases: int
    out_step: int
    in_step: int
    stride: int
    starts: tuple[int, ...]
    taps: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def reach(self) -> int:
        """The farthest tap of any phase."""
        return max((offset for taps in self.taps for _, offset in taps), default=0)

    def count(self, size: int) -> int:
        """The number of outputs of the longest phase."""
        return -(-size // self.out_step)


@lru_cache(maxsize=256)
def phases_of(
    kernel: int, stride: int, dilation: int, before: int, transposed: bool, spread: bool = False
) -> AxisPhases:
    """The phases of an axis.

    Args:
        before: padding before the first input; of a transposed convolution what is cut off its output.
        spread: of a transposed convolution that is not cut and whose kernel is its stride, take all phases together.
    """
    if spread:
        return AxisPhases(1, stride, 1, 1, (0,), (((0, 0),),))
    if transposed:
        phase_taps: list[tuple[int, tuple[tuple[int, int], ...]]] = []
        for phase in range(stride):
            # Output o = i * stride + k * dilation - before: each phase takes the places k that leave no remainder.
            fitting = [
                (k, (phase + before - k * dilation) // stride)
                for k in range(kernel)
                if (phase + before - k * dilation) % stride == 0
            ]
            start = min((offset for _, offset in fitting), default=0)
            phase_taps.append((start, tuple((k, offset - start) for k, offset in fitting)))
        return AxisPhases(
            stride, stride, 1, 1, tuple(start for start, _ in phase_taps), tuple(taps for _, taps in phase_taps)
        )
    if stride == 1 and dilation > 1:
        taps = tuple((k, k) for k in range(kernel))
        return AxisPhases(
            dilation, dilation, dilation, 1, tuple(phase - before for phase in range(dilation)), (taps,) * dilation
        )
    return AxisPhases(1, 1, 1, stride, (-before,), (tuple((k, k * dilation) for k in range(kernel)),))
