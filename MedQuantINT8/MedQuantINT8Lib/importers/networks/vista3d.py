"""VISTA3D's automatic mode as one static graph.

VISTA3D (He et al., arXiv 2406.05285; MONAI's ``vista3d132``) takes an image and class prompts. For a fixed list of
classes the prompts' embeddings are constants, and the comparison of each with every voxel is a 1x1x1 convolution. A
background channel of zeros is added, so that "no class is above 0" is what an argmax over all channels gives.

Left out: the interactive mode (point prompts, their decoder and its patch-wise corrections) and zero-shot classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .lazy_classes import make_lazy_getattr


def _classes() -> tuple[type, ...]:
    import torch
    from torch import Tensor, nn

    class AutomaticVista3D(nn.Module):
        """A module from (N, C, *patch) to logits (N, 1 + len(classes), *patch), background first.

        Args:
            vista: MONAI's VISTA3D with its weights.
            classes: class indices of VISTA3D, such as 1 for liver, in the order of the output's channels.
        """

        def __init__(self, vista: Any, classes: Sequence[int]) -> None:
            super().__init__()
            self.encoder = vista.image_encoder
            self.mapping = vista.class_head.image_post_mapping
            with torch.no_grad():
                embeddings = vista.class_head.class_embeddings(torch.as_tensor(list(classes)))
                if vista.class_head.use_mlp:
                    # The MLP's normalization runs over each embedding by itself: (classes, 1, features).
                    embeddings = vista.class_head.mlp(embeddings[:, None])[:, 0]
                weight = torch.cat([torch.zeros_like(embeddings[:1]), embeddings])
            self.head = nn.Conv3d(weight.shape[1], weight.shape[0], 1, bias=False)
            self.head.weight = nn.Parameter(weight[:, :, None, None, None].clone())

        def forward(self, x: Tensor) -> Tensor:
            _, features = self.encoder(x, with_point=False, with_label=True)
            return self.head(self.mapping(features))

    return (AutomaticVista3D,)


__getattr__ = make_lazy_getattr(__name__, _classes)
