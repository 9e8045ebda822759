"""A fit of the last layer, which gives a network of random weights meaningful class scores.

A network with random weights gives nearly the same score to every class, so that rounding decides most labels and the cost
of quantization cannot be measured. Random features still differ between structures; ridge regression from them to the
labels of a synthetic scan gives class scores with margins, in seconds and without training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn

_RIDGE = 1e-3
#: Score of a class that the labels do not hold: below every other.
_ABSENT = -1.0


def last_layer(module: nn.Module, classes: int) -> nn.Conv3d:
    """Return the last 1x1x1 convolution that gives the class scores.

    Raises:
        ValueError: the network has none.
    """
    from torch import nn

    layers = [
        layer
        for layer in module.modules()
        if isinstance(layer, nn.Conv3d) and layer.kernel_size == (1, 1, 1) and layer.out_channels == classes
    ]
    if not layers:
        raise ValueError(f"the network does not end in a 1x1x1 convolution to {classes} classes")
    return layers[-1]


def fit_last_layer(module: nn.Module, image: NDArray[np.float32], labels: NDArray[np.integer], classes: int) -> None:
    """Set the last layer by least squares, in place.

    Args:
        image: an array (C, A0, A1, A2), as the network takes it.
        labels: an array (A0, A1, A2) of values below ``classes``.
    """
    import torch
    from torch import nn

    layer = last_layer(module, classes)
    layer_inputs: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: layer_inputs.append(inputs[0]))
    try:
        with torch.no_grad():
            module(torch.from_numpy(image)[None])
    finally:
        hook.remove()
    features = layer_inputs[0][0].flatten(1).double()
    features = torch.cat([features, torch.ones(1, features.shape[1], dtype=torch.float64)])
    target = torch.from_numpy(labels.reshape(-1).astype(np.int64))
    present = torch.unique(target)
    one_hot = torch.stack([(target == value).double() for value in present])
    # Rare structures weigh as much as common ones.
    weight = (1.0 / torch.bincount(target, minlength=classes).clamp(min=1).double())[target]
    gram = (features * weight) @ features.T
    scale = gram.diagonal().mean()
    solution = torch.linalg.solve(
        gram + _RIDGE * scale * torch.eye(gram.shape[0], dtype=torch.float64), (features * weight) @ one_hot.T
    )
    solution_of_all = torch.zeros(classes, gram.shape[0], dtype=torch.float64)
    solution_of_all[:, -1] = _ABSENT
    solution_of_all[present] = solution.T
    with torch.no_grad():
        layer.weight.copy_(solution_of_all[:, :-1, None, None, None].float())
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros(classes))
        layer.bias.copy_(solution_of_all[:, -1].float())
