"""Which engine a network runs on: what the user chose, and the next engine where that choice was left to the program and fails."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from ..devices import names_several
from ..engines.base import Precision, UnsupportedNetwork, device_of, needs_gpu, precisions_of, runs_on
from ..engines.cuda.device import GpuError, choose_gpu
from ..engines.cuda.several import gpus_of
from ..engines.registry import backend, backend_names, choose_backend, choose_instead, unavailable_reason
from ..errors import DependencyError, EngineError

T = TypeVar("T")


@dataclass(frozen=True)
class EngineChoice:
    """Which engine to run on.

    Attributes:
        name: a backend's, or "auto".
        precision: "auto" is INT8 unless FP32 is faster here.
        threads: of the processor; 0 for all.
        device: "auto" for any, "cpu" for the processor alone, "gpu" for the NVIDIA GPU with most free memory, "gpu:1" for the second,
            "gpu:0,1" or "gpu:all" for several together.
    """

    name: str = "auto"
    precision: Precision | Literal["auto"] = "int8"
    threads: int = 0
    device: str = "auto"

    def checked(self) -> EngineChoice:
        """Return the choice with the GPUs that "gpu:all" stands for by their numbers; a choice of one GPU, or of none, is itself.

        Raises:
            EngineError: a GPU that is not there, or is too old; an engine that does not run on that device.
            DependencyError: several GPUs, and cuda-python or the driver is missing.
        """
        if self.name != "auto":
            device_of(backend(self.name), self.device)
        if not names_several(self.device):
            if ":" in self.device:
                # Engines that do without cuda-python say themselves which GPUs there are.
                with contextlib.suppress(DependencyError):
                    choose_gpu(self.device)
            return self
        numbers = ",".join(name.partition(":")[2] for name in gpus_of(self.device))
        return replace(self, device=f"gpu:{numbers}")

    def on_each_gpu(self) -> list[EngineChoice]:
        """Return the choice for each of its GPUs alone; itself where it is of one device. Raises as :meth:`checked`."""
        return [replace(self, device=name) for name in gpus_of(self.device)]

    def beside(self, precision: str) -> EngineChoice:
        """For a run that another is held against. FP32 that the engine (or no engine of that device) computes is left to what "auto" takes for it."""
        name, device = self.name, self.device
        if name != "auto":
            able = precision in precisions_of(backend(name))
        else:
            able = device == "auto" or any(
                precision in precisions_of(candidate) and not unavailable_reason(candidate)
                for candidate in map(backend, backend_names())
                if runs_on(candidate, device)
            )
        if not able:
            name, device = "auto", "auto"
        return replace(self, name=name, precision=precision, device=device)  # type: ignore[arg-type]


def with_fallback(choice: EngineChoice, attempt: Callable[[EngineChoice], T]) -> tuple[T, list[str]]:
    """What ``attempt`` gives for the choice, or for the next engine that can where the choice was left to the program; and what to tell the user.

    Raises:
        EngineError: the engine was asked for by name, or none is left: what went wrong with the first.
    """
    notes: list[str] = []
    tried: list[str] = []
    first: EngineError | None = None
    wanted = choice
    while True:
        try:
            return attempt(wanted), notes
        except (GpuError, UnsupportedNetwork) as error:
            first = first or error
            if choice.name != "auto":
                raise
            try:
                tried.append(
                    choose_backend(wanted.name, wanted.precision, wanted.device).name
                    if wanted.name == "auto"
                    else wanted.name
                )
                other = choose_instead(choice.precision, error, tried, choice.device)
            except EngineError:
                raise first from error
            wanted = replace(choice, name=other.name, device=choice.device if needs_gpu(other) else "cpu")
            notes.append(f"run on {'the processor' if isinstance(error, GpuError) else other.title}: {error}")
