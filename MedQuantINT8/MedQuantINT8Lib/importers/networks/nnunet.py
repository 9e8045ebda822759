"""nnU-Net's plain convolutional network, as MONAI's DynUNet builds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: Channels of the six levels that nnU-Net plans for patches of 96 to 128 voxels.
FILTERS = (32, 64, 128, 256, 320, 320)


def plain_nnunet(
    classes: int,
    filters: Sequence[int] = FILTERS,
    *,
    activation: str = "leakyrelu",
    transposed_bias: bool = False,
) -> Any:
    """Return nnU-Net's plain network: two convolutions a level, InstanceNorm, levels halved by strides; random weights.

    Args:
        classes: output channels, background included.
        filters: channels of each level, full size first.
        activation: MONAI's name of the activation: "leakyrelu", or "relu" as in MLPerf's network.
        transposed_bias: whether transposed convolutions have a bias, as in TotalSegmentator's plans.
    """
    from monai.networks.nets import DynUNet

    below = len(filters) - 1
    return DynUNet(
        3,
        1,
        classes,
        kernel_size=[3] * (below + 1),
        strides=[1] + [2] * below,
        upsample_kernel_size=[2] * below,
        filters=list(filters),
        res_block=False,
        deep_supervision=False,
        act_name=(activation, {"inplace": True}),
        trans_bias=transposed_bias,
    )
