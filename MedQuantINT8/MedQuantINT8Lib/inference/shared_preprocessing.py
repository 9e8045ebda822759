"""Preprocessing that the parts of a task share, where they ask for the same."""

from __future__ import annotations

from typing import Any

from ..imaging.preprocessing import NetworkInput, preprocess
from ..imaging.volume import Volume
from ..models.spec import ModelSpec


def preprocessing_key(spec: ModelSpec) -> tuple[Any, ...]:
    """Return what decides how a scan is brought into network space: two models with the same key see the same array."""
    return (
        spec.channels if spec.input_channels > spec.scans else spec.scans,
        spec.steps,
        spec.geometry,
        spec.crop,
        spec.normalization,
        spec.fits,
    )


class SharedPreprocessing:
    """Brings volumes into network space, and keeps the last result for a model that asks for the same.

    Attributes:
        count: how many volumes were preprocessed.
        keep: whether the result is kept for the next model; set by whoever knows which one comes next.
    """

    def __init__(self) -> None:
        self.count = 0
        self.keep = False
        self._volume: Volume | None = None
        self._key: tuple[Any, ...] = ()
        self._network_input: NetworkInput | None = None

    def __call__(self, volume: Volume, spec: ModelSpec) -> NetworkInput:
        """Return the volume in network space; errors as :func:`..imaging.preprocessing.preprocess`."""
        key = preprocessing_key(spec)
        network_input = self._network_input
        if network_input is None or volume is not self._volume or key != self._key:
            # The one that is kept goes first: two at once may be one too many for the memory.
            self._network_input = None
            network_input = preprocess(volume, spec)
            self.count += 1
        self._volume, self._key = (volume, key) if self.keep else (None, ())
        self._network_input = network_input if self.keep else None
        return network_input
