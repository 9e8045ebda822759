"""The class scores among what a torch module gives."""

from __future__ import annotations

from typing import Any

from ..errors import PackageError

#: Names of class scores in dictionaries, clearest name first.
_SCORE_KEYS = ("logits", "out", "output", "pred", "seg", "segmentation")


def single_output(module: Any, name: str) -> Any:
    """Return the module with only its class scores as output.

    These are the first of a list or tuple (deep supervision gives several), or the known name of a dictionary.

    Raises:
        PackageError: when it runs, its output holds no tensor, or a dictionary of several without a known name.
    """
    from torch import Tensor, nn

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, x: Tensor) -> Tensor:
            return select_scores(self.network(x), name)

    return First()


def select_scores(y: Any, name: str) -> Any:
    """Select the tensor of class scores from the output of a torch module; see :func:`single_output`."""
    from torch import Tensor

    while isinstance(y, list | tuple | dict):
        if not y:
            raise PackageError(f"{name} gives nothing.", "Wrap it in a module that gives its class scores.")
        if not isinstance(y, dict):
            y = y[0]
            continue
        key = next(iter(y)) if len(y) == 1 else next((k for k in _SCORE_KEYS if k in y), None)
        if key is None:
            raise PackageError(
                f"{name} gives {len(y)} results ({', '.join(map(str, y))}).",
                "Wrap it in a module that gives its class scores.",
            )
        y = y[key]
    if not isinstance(y, Tensor):
        raise PackageError(
            f"{name} gives {type(y).__name__}, not a tensor of class scores.", "Wrap it in a module that does."
        )
    return y
