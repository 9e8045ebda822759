"""Networks that work slice by slice (2D), as networks of three axes whose window is one voxel long across the slices."""

from __future__ import annotations

from typing import Any

from ..errors import PackageError
from .class_scores import select_scores


def sliced(network: Any, axis: int, name: str = "The network") -> Any:
    """Return a module (N, C, A0, A1, A2), one voxel long along ``axis``, around a network of slices (N, C, B0, B1).

    Args:
        network: a torch module, not TorchScript.
        axis: 0, 1 or 2, the spatial axis across the slices.
        name: what messages call the network.

    Raises:
        PackageError: the network is TorchScript, which torch's exporters do not take inside another module.
    """
    import torch
    from torch import Tensor, nn

    if isinstance(network, torch.jit.ScriptModule):
        raise PackageError(
            f"{name} is TorchScript and works slice by slice, which together is not understood.",
            "Import the weights with the network's description (network_def), without TorchScript.",
        )

    class Sliced(nn.Module):
        """A network of slices that removes the axis across the slices, and restores it."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = select_scores(self.network(x.squeeze(axis + 2)), name)
            return y.unsqueeze(axis + 2)

    return Sliced()


def with_slice_axis(values: list[Any], axis: int, across: Any) -> tuple[Any, Any, Any]:
    """Two values of a slice's axes as three, with ``across`` at the axis across the slices."""
    triple = [*values[:axis], across, *values[axis:]]
    return triple[0], triple[1], triple[2]
