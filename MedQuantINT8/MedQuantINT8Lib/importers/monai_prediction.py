"""The meaning of a bundle's postprocessing in model.json's terms; functions are understood by their values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..models.spec import Cleaning, Output
from .label_functions import LabelFunction, NotUnderstood, combinations, paint_order


@dataclass
class Postprocessing:
    """What the postprocessing says, in model.json's terms.

    Attributes:
        output: activation, decision, thresholds, and what is resampled.
        cleaning: labels are numbers of classes (of regions: channel + 1), before ``values`` change them.
        values: the label value of each class (of regions: of each channel); None: their numbers as they are.
        order: for regions, the channels in the order in which they are painted; None: in their own order.
        notes: what is not the same as in MONAI, in words.
    """

    output: Output
    cleaning: tuple[Cleaning, ...] = ()
    values: dict[int, int] | None = None
    order: list[int] | None = None
    notes: list[str] = field(default_factory=list)


class Prediction:
    """The state of the network's output after each transform, which becomes fields of model.json after the last.

    ``kind`` is "scores" (of the network), "probabilities", "classes" (their numbers), "onehot" (a mask for each class) or "regions"
    (a mask for each channel, which may overlap).
    """

    def __init__(self, channels: int | None) -> None:
        self._channels = channels
        self.kind = "scores"
        self._activation: str | None = None
        self._thresholds: dict[int, float] = {}
        self._threshold, self._inclusive = 0.5, True
        self._resample: str | None = None
        self._cleaning: list[Cleaning] = []
        self._values: dict[int, int] | None = None
        self._order: list[int] | None = None
        self._notes: list[str] = []

    def result(self) -> Postprocessing:
        """Return what the transforms that were read mean together."""
        if self.kind in ("scores", "probabilities"):
            regions = self._activation == "sigmoid"
            kind = "regions" if regions else "classes"
            self._notes.append(
                f"the bundle saves {self.kind}; here they become labels: "
                + ("each channel from a probability of 0.5 on" if regions else "the largest wins")
            )
        else:
            kind = "regions" if self.kind == "regions" else "classes"
        if self._resample is None:
            # Without Invertd MONAI brings what it saves to the scan's grid by the nearest voxel, or leaves it where it is.
            self._resample = "probabilities" if self.kind in ("scores", "probabilities") else "labels"
            self._notes.append(
                "the bundle does not invert its preprocessing; here labels are brought to the scan's grid"
            )
        activation = self._activation or "softmax"
        if kind == "regions" and self._activation is None:
            activation = "sigmoid"
            if self._resample == "probabilities":
                self._resample = "logits"
        decision = "threshold" if kind == "regions" else "largest"
        plain = decision == ("threshold" if activation == "sigmoid" else "largest")
        several = kind == "regions" and activation == "sigmoid" and (self._channels or 2) > 1 and self._order is None
        if several:
            self._notes.append(
                "its regions may overlap: one that lies inside another is painted over it, others in their order"
            )
        output = Output(
            activation,  # type: ignore[arg-type]
            threshold=self._threshold,
            resample=self._resample,  # type: ignore[arg-type]
            decision=None if plain else decision,  # type: ignore[arg-type]
            thresholds=self._by_channel(),
            inclusive=self._inclusive and kind == "regions",
            paint="nested" if several else "order",
        )
        return Postprocessing(output, tuple(self._cleaning), self._values, self._order, self._notes)

    def _by_channel(self) -> tuple[float, ...]:
        if len(set(self._thresholds.values())) <= 1:
            return ()
        count = self._channels or 1 + max(self._thresholds)
        return tuple(self._thresholds.get(channel, self._threshold) for channel in range(count))

    def _apply(self, function: Callable[[Any], Any], text: LabelFunction | None) -> None:
        """Take over what a function of single voxels does, worked out from its values."""
        if self.kind in ("scores", "probabilities"):
            self._of_scores(function, text)
        elif self.kind == "regions":
            self._of_masks(function, combinations(self._count()))
        elif self.kind == "classes":
            self._of_classes(function)
        else:
            masks = np.eye(self._count(), dtype=np.float32)
            if not np.array_equal(function(masks), masks):
                raise NotUnderstood("it changes masks of classes")

    def _of_scores(self, function: Callable[[Any], Any], text: LabelFunction | None) -> None:
        count = self._count()
        some: Any = np.random.default_rng(0).normal(size=(count, 64)).astype(np.float32)
        if self.kind == "probabilities":
            some = 1 / (1 + np.exp(-some))
        if _same(function(some), some):
            return
        if text is None:
            raise NotUnderstood("it decides by scores")
        cuts = text.cuts(count)
        if (
            set(cuts) != set(range(count))
            or len({inclusive for _, inclusive in cuts.values()}) != 1
            or self._activation is None
        ):
            raise NotUnderstood("it compares some of the channels only")
        if not all(0 < cut < 1 for cut, _ in cuts.values()):
            raise NotUnderstood("it compares probabilities with what is none")
        bits = combinations(count)
        line = np.array([[cuts[channel][0]] for channel in range(count)], np.float64)
        step = np.where(bits > 0, 1e-4, -1e-4) * np.minimum(line, 1 - line)
        # Near the thresholds and far from them the answer must be the same: nothing else is compared.
        far = np.where(bits > 0, 1.0, 0.0)
        if not np.array_equal(function(line + step), function(far)):
            raise NotUnderstood("it compares channels more than once")
        before = self.kind
        self.kind = "regions"
        try:
            self._of_masks(lambda masks: function(np.where(masks > 0, 1.0, 0.0)), bits)
        except NotUnderstood:
            self.kind = before
            raise
        self._thresholds = {channel: cut for channel, (cut, _) in cuts.items()}
        self._threshold = self._thresholds[0]
        self._inclusive = cuts[0][1]

    def _of_masks(self, function: Callable[[Any], Any], bits: Any) -> None:
        labels = np.asarray(function(bits), dtype=np.float64)
        if labels.shape == bits.shape and np.array_equal(labels, bits):
            return
        labels = labels[0] if labels.ndim == 2 and labels.shape[0] == 1 else labels
        if labels.ndim != 1 or not np.array_equal(labels, np.round(labels)) or labels.min() < 0 or labels.max() > 65535:
            raise NotUnderstood("it gives no label for each voxel")
        order = paint_order([int(value) for value in labels], bits.shape[0])
        if len(order) != bits.shape[0]:
            raise NotUnderstood("it leaves a channel out")
        if len({value for _, value in order}) != len(order):
            raise NotUnderstood("it gives two regions one label")
        self._values, self._order = dict(order), [channel for channel, _ in order]
        if len(order) > 1:
            self._notes.append(
                "its regions are painted one over another, as the bundle does: a label is what later ones leave of its region"
            )

    def _of_classes(self, function: Callable[[Any], Any]) -> None:
        numbers = np.arange(self._count(), dtype=np.float32)[None]
        labels = np.asarray(function(numbers), dtype=np.float64)
        labels = labels[None] if labels.ndim == 1 else labels
        if labels.shape != numbers.shape or not np.array_equal(labels, np.round(labels)):
            raise NotUnderstood("it gives no label for each voxel")
        values = [int(value) for value in labels[0]]
        if values == list(range(len(values))):
            return
        if (
            self._values is not None
            or values[0] != 0
            or len(set(values)) != len(values)
            or min(values) < 0
            or max(values) > 65535
        ):
            raise NotUnderstood("it gives several labels one value")
        self._values = dict(enumerate(values))

    def _count(self) -> int:
        if self._channels is None:
            raise NotUnderstood("how many channels the network has is not known")
        return self._channels


class TrustedFunction:
    """A function of the bundle's own, on NumPy arrays (channels, voxels)."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __call__(self, values: Any) -> Any:
        import torch

        count = values.shape[1]
        tensor = torch.as_tensor(np.ascontiguousarray(values, np.float32))
        places = torch.randperm(count * 3, generator=torch.Generator().manual_seed(0)) % count
        try:
            # Once as they stand, and once in another order among others: a function of single voxels gives the same.
            once = torch.as_tensor(self._function(tensor.reshape(-1, count, 1, 1).clone())).reshape(-1, count)
            again = torch.as_tensor(self._function(tensor[:, places].reshape(-1, 3, count, 1).clone())).reshape(
                -1, 3 * count
            )
        except Exception as error:
            # The code is the bundle's own, and may raise anything.
            raise NotUnderstood(
                f"it fails: {str(error).splitlines()[0][:120] if str(error) else type(error).__name__}"
            ) from error
        if not torch.equal(once[:, places].float(), again.float()):
            raise NotUnderstood("it looks at more than a voxel")
        return once.numpy()


def _same(values: Any, others: Any) -> bool:
    return np.shape(values) == np.shape(others) and np.array_equal(values, others)
