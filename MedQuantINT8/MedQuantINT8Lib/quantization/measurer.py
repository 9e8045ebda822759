"""The measurer: how much simulated INT8 loses on patches of calibration scans, against FP32 and against labels."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.float_session import float_session, with_full_vectors
from ..inference.structure_dice import PooledDice, StructureDice, WorstStructures, network_voxel_ml
from ..inference.windows import middle_of
from ..models import onnx_graph as graph
from ..models.engine_form import SYMMETRIC, EngineForm
from ..models.single_products import with_single_products
from ..models.spec import ModelSpec
from ..progress import Task
from .bias_correction import output_shift
from .fp32_network import Fp32Network
from .score_agreement import ScoreAgreement

Patch = NDArray[np.float32]

#: Of the outputs that are remembered, of the networks that were measured last.
_MOST_BYTES = 1 << 29


@dataclass(frozen=True)
class Measurement:
    """The measurement of a simulated INT8 network on the compared patches.

    Attributes:
        agreement: mean Dice with FP32 over structures (:class:`.score_agreement.ScoreAgreement`); None where FP32 finds nothing in the patches.
        relative_error: the relative error of the output.
        dice: mean Dice with the labels; None without labels, or where they show no structure.
        dice_fp32: FP32's mean Dice with the labels on the same patches.
        structures: the agreement structure by structure.
    """

    agreement: float | None
    relative_error: float
    dice: float | None = None
    dice_fp32: float | None = None
    structures: tuple[StructureDice, ...] = ()

    @property
    def worst(self) -> WorstStructures:
        """The structures that agree least with FP32."""
        return WorstStructures.of((item.name, item.dice, item.ml) for item in self.structures)

    @property
    def worst_dice(self) -> float | None:
        """The least agreement of a structure of any size that counts in the mean; None where there is none."""
        return min((item.dice for item in self.structures), default=None)

    @property
    def dice_lost(self) -> float:
        """The part of FP32's Dice to the labels that INT8 loses; 0 where there is nothing to compare."""
        return 0.0 if self.dice is None or self.dice_fp32 is None else self.dice_fp32 - self.dice


def _sum_of_squares(scores: NDArray[np.float32], other: NDArray[np.float32] | None = None) -> float:
    """The sum of the squares of scores (1, classes, ...), or of their differences, added up in double precision class by class."""
    total = 0.0
    for channel in range(scores.shape[1]):
        values = scores[:, channel] if other is None else scores[:, channel] - other[:, channel]
        flat = values.astype(np.float64).ravel()
        total += float(flat @ flat)
    return total


@dataclass(frozen=True)
class _Reference:
    """What FP32 gives in the middle of a patch, once for all candidates.

    Attributes:
        scores: (1, classes, ...).
        labels: of them, as :class:`.score_agreement.ScoreAgreement` takes them.
    """

    scores: NDArray[np.float32]
    labels: NDArray[Any]

    @cached_property
    def power(self) -> float:
        """The sum of the scores' squares."""
        return _sum_of_squares(self.scores)


class Measurer:
    """Measures candidate networks against FP32, and labels, on fixed patches.

    Only the middle of each patch counts: near its border a network sees half of what is there, and the sliding window
    gives those voxels to the neighboring windows.

    Args:
        fp32: the network to compare with, or what is known of it on patches.
        patches: (C, A0, A1, A2) each, all of one size.
        references: the patches' labels, (A0, A1, A2) each, with the model's label values; or none.
        voxel_ml: of the patches; by default what the model resamples to, if that is known.
        form: that candidates are simulated in: that of the engine that will run them.

    Attributes:
        patches: how many there are.
        form: as given.
    """

    def __init__(
        self,
        fp32: Any,
        patches: Sequence[Patch],
        spec: ModelSpec,
        references: Sequence[NDArray[Any]] = (),
        voxel_ml: float | None = None,
        form: EngineForm = SYMMETRIC,
    ) -> None:
        self._middle = middle_of(patches[0].shape[1:], spec.window.overlap)
        self._patches, self._spec, self.form = patches, spec, form
        self.patches = len(patches)
        self._last: tuple[Any, list[NDArray[Any]]] | None = None
        self._known: OrderedDict[bytes, list[NDArray[Any]]] = OrderedDict()
        self._voxel_ml = network_voxel_ml(spec) if voxel_ml is None else voxel_ml
        self._references = [reference[self._middle] for reference in references]
        self._labels = ScoreAgreement(spec).labels
        known = fp32 if isinstance(fp32, Fp32Network) else None
        self._input = graph.network_shape(fp32 if known is None else known.model).input_name
        expected = (
            self._outputs(fp32, "fp32", len(patches))
            if known is None
            else [known.scores(patch, self._middle) for patch in patches]
        )
        self._expected = [_Reference(scores, self._labels(scores)) for scores in expected]

    def _outputs(self, model: Any, precision: str, count: int, task: Task | None = None) -> list[NDArray[Any]]:
        """The outputs in the middle of the first patches; a network that was run on some of them is run on the others alone."""
        data = with_full_vectors(graph.fixed_shape(model, self._patches[0].shape[1:])).SerializeToString()
        outputs = self._remembered(hashlib.sha256(data).digest())
        done = len(outputs)
        if done < count and len(shifted := self._shifted(model, count)) == count:
            outputs[:] = shifted
        run = float_session(data, precision) if len(outputs) < count else None
        for patch in self._patches[len(outputs) : count]:
            assert run is not None
            scores = run.run(None, {self._input: patch[None]})[0]
            # A view would keep the scores of the whole patch alive.
            outputs.append(np.array(scores[(slice(None), slice(None), *self._middle)]))
            if task is not None:
                task.step()
        if task is not None and run is None:
            task.step(max(0, count - done))
        self._last = model, outputs
        return outputs[:count]

    def _remembered(self, key: bytes) -> list[NDArray[Any]]:
        """The list of the outputs of a network, to be added to; those of the networks before the last few are forgotten."""
        outputs = self._known.setdefault(key, [])
        self._known.move_to_end(key)
        while len(self._known) > 1 and sum(a.nbytes for known in self._known.values() for a in known) > _MOST_BYTES:
            self._known.popitem(last=False)
        return outputs

    def _shifted(self, model: Any, count: int) -> list[NDArray[Any]]:
        """The outputs of a network that differs from the last one in the last bias alone; none where it differs otherwise."""
        if self._last is None or len(self._last[1]) < count:
            return []
        shift = output_shift(self._last[0], model)
        if shift is None:
            return []
        added = shift.astype(np.float32).reshape(1, -1, 1, 1, 1)
        return [output + added for output in self._last[1][:count]]

    def measure(
        self,
        candidate: Any,
        patches: int | None = None,
        task: Task | None = None,
        form: EngineForm | None = None,
    ) -> Measurement:
        """Measure a network on all patches, or on the first ``patches`` of them.

        Args:
            task: is told of each patch.
            form: another one than the measurer's.
        """
        model = with_single_products((self.form if form is None else form).of(candidate))
        count = patches or len(self._patches)
        outputs = self._outputs(model, "int8", count, task)
        agreement = ScoreAgreement(self._spec, self._voxel_ml)
        squares = power = 0.0
        labels = [self._labels(output) for output in outputs]
        for output, ours, expected in zip(outputs, labels, self._expected, strict=False):
            squares += _sum_of_squares(output, expected.scores)
            power += expected.power
            agreement.add_labels(ours, expected.labels)
        return Measurement(
            agreement.value,
            float(np.sqrt(squares / max(power, 1e-30))),
            self._dice(labels),
            self._dice([expected.labels for expected in self._expected[: len(outputs)]]),
            tuple(agreement.structures),
        )

    def _pooled(self) -> PooledDice:
        names = {label.channel: label.name for label in self._spec.labels}
        return PooledDice(self._spec.output.activation == "softmax", names, self._voxel_ml)

    def _dice(self, labels: Sequence[NDArray[Any]]) -> float | None:
        """Return the mean Dice of networks' labels with the reference labels (A0, A1, A2), whose values are the model's label values."""
        if not self._references:
            return None
        exclusive = self._spec.output.activation == "softmax"
        channels = {label.value: label.channel for label in self._spec.labels}
        pooled = self._pooled()
        for ours, reference in zip(labels, self._references, strict=False):
            masks = {channel: reference == value for value, channel in channels.items()}
            if exclusive:
                theirs = np.zeros(reference.shape, np.int64)
                for channel, mask in masks.items():
                    theirs[mask] = channel
                pooled.add(ours, theirs[None])
            else:
                pooled.add(ours, np.stack([masks[c] for c in sorted(masks)])[None])
        return pooled.value
