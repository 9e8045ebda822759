"""Preprocessing that the parts of a task share, where they ask for the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..imaging.preprocessing import NetworkInput, preprocess
from ..imaging.volume import Volume
from ..models.spec import ModelSpec
from .gpu_preparation import DeferredInput, deferred


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
        return self._by(preprocess, volume, spec)

    def deferred(self, volume: Volume, spec: ModelSpec) -> NetworkInput:
        """As :func:`.gpu_preparation.deferred`; what a GPU has brought to network space stays there for the next model."""
        return self._by(partial(deferred, prepare=preprocess), volume, spec)

    def close(self) -> None:
        """Let go of what was kept."""
        self._drop()

    def _by(self, how: Callable[[Volume, ModelSpec], NetworkInput], volume: Volume, spec: ModelSpec) -> NetworkInput:
        key = preprocessing_key(spec)
        network_input = self._network_input
        if network_input is None or volume is not self._volume or key != self._key:
            # The one that is kept goes first: two at once may be one too many for the memory.
            network_input = None
            self._drop()
            network_input = how(volume, spec)
            self.count += 1
        resides = False
        if isinstance(network_input, DeferredInput):
            network_input.share(self.keep)
            resides = network_input.resides
        self._volume, self._key = (volume, key) if self.keep else (None, ())
        # The last model releases what a GPU holds, unless its run ends before it asks for that.
        self._network_input = network_input if self.keep or resides else None
        return network_input

    def _drop(self) -> None:
        if isinstance(self._network_input, DeferredInput):
            self._network_input.let_go()
        self._volume, self._key, self._network_input = None, (), None
