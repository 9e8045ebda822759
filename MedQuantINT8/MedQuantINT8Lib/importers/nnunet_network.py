"""nnU-Net's networks: the architecture that plans state, and the module built by nnU-Net's own ``dynamic-network-architectures``."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import DependencyError, PackageError
from .checkpoints import load_weights, read_checkpoint, state_dict_of
from .class_scores import single_output
from .fields import Fields, Parse, choice, count, each, known, mapping, text
from .slices import sliced, with_slice_axis

_NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet")
#: Where nnU-Net's versions have kept these classes.
_MODULES = tuple(f"dynamic_network_architectures.architectures.{name}" for name in ("unet", "residual_unet"))
#: What plans may name as a building block; anything else would be code from elsewhere.
_BLOCKS = {
    "Conv3d", "InstanceNorm3d", "BatchNorm3d", "Dropout3d", "Conv2d", "InstanceNorm2d", "BatchNorm2d", "Dropout2d", "GroupNorm", "LeakyReLU", "ReLU", "PReLU", "ELU", "GELU", "SiLU",
}  # fmt: skip
#: Fields that say the same in plans older than 2.4.
_OLDER_FIELDS = (
    "UNet_class_name", "UNet_base_num_features", "unet_max_num_features", "n_conv_per_stage_encoder", "n_conv_per_stage_decoder",
    "pool_op_kernel_sizes", "conv_kernel_sizes",
)  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A network of plans.json: its class, its arguments, which of those name classes, and how many axes it has (2: slices)."""

    name: str
    arguments: dict[str, Any]
    class_arguments: list[str]
    axes: int = 3

    @property
    def total_strides(self) -> list[int]:
        """The factor by which the network's deepest level is smaller, along nnU-Net's three axes; 1 across slices."""
        total = [1] * self.axes
        for stride in self.arguments["strides"]:
            total = [
                t * s for t, s in zip(total, [stride] * self.axes if isinstance(stride, int) else stride, strict=True)
            ]
        return total if self.axes == 3 else list(with_slice_axis(total, 0, 1))

    def with_batch_norm(self) -> Architecture:
        """Return the same network as nnU-Net's trainer for batch normalization builds it."""
        changes = {
            "norm_op": f"torch.nn.modules.batchnorm.BatchNorm{self.axes}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        }
        return replace(self, arguments={**self.arguments, **changes})


def architecture_of(fields: Fields, axes: int = 3) -> Architecture:
    """Return the network of a configuration; plans older than 2.4 state it in other fields.

    Args:
        axes: the number of axes of the configuration's patch, 2 for one that works on slices.

    Raises:
        PackageError: names what is not understood, such as a network of another number of axes.
    """
    if "architecture" not in fields:
        return _read_before_2_4(fields, axes)
    fields.ignore(*_OLDER_FIELDS)  # nnU-Net does not look at them either
    architecture = Fields(fields.get("architecture", mapping), f"{fields.where}: architecture", fields.advice)
    module, _, name = architecture.get("network_class_name", text).rpartition(".")
    if name not in _NETWORKS or module not in _MODULES:
        raise PackageError(
            f"{architecture.where}: the network {module}.{name} is not understood.",
            f"Understood are: {known(_NETWORKS)}.",
        )
    arguments = architecture.get("arch_kwargs", mapping)
    class_arguments = architecture.get("_kw_requires_import", each(text))
    architecture.finish()
    where = f"{architecture.where}: arch_kwargs"
    argument_fields = Fields(arguments, where, fields.advice)
    stages = argument_fields.get("n_stages", count)
    strides = argument_fields.get("strides", each(_stride_parser(axes)))
    convolution = argument_fields.get("conv_op", text)
    if convolution.endswith(("Conv2d", "Conv3d")) and not convolution.endswith(f"Conv{axes}d"):
        raise PackageError(f"{where}: 'conv_op' is {convolution}, and the patch has {axes} sides.", fields.advice)
    if len(strides) != stages:
        raise PackageError(f"{where}: 'strides' has {len(strides)} entries for {stages} stages.", fields.advice)
    return Architecture(name, {**arguments, "strides": strides}, class_arguments, axes)


def _stride_parser(axes: int) -> Parse[int | list[int]]:
    def read(value: Any, where: str) -> int | list[int]:
        return count(value, where) if isinstance(value, int) else each(count, axes)(value, where)

    return read


def _read_before_2_4(fields: Fields, axes: int) -> Architecture:
    name = fields.get("UNet_class_name", choice(*_NETWORKS))
    kernels = fields.get("conv_kernel_sizes", each(each(count, axes)))
    base, maximum = fields.get("UNet_base_num_features", count), fields.get("unet_max_num_features", count)
    blocks = "n_blocks_per_stage" if name == "ResidualEncoderUNet" else "n_conv_per_stage"
    strides = fields.get("pool_op_kernel_sizes", each(_stride_parser(axes)))
    if len(strides) != len(kernels):
        raise PackageError(
            f"{fields.where}: 'pool_op_kernel_sizes' and 'conv_kernel_sizes' differ in length.", fields.advice
        )
    arguments = {
        "n_stages": len(kernels),
        "features_per_stage": [min(base * 2**n, maximum) for n in range(len(kernels))],
        "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
        "kernel_sizes": kernels,
        "strides": strides,
        blocks: fields.get("n_conv_per_stage_encoder", each(count)),
        "n_conv_per_stage_decoder": fields.get("n_conv_per_stage_decoder", each(count)),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return Architecture(name, arguments, ["conv_op", "norm_op", "dropout_op", "nonlin"], axes)


def check_blocks(architecture: Architecture) -> dict[str, Any]:
    """Check that the building blocks of a network are all PyTorch's own; returns its arguments.

    Raises:
        PackageError: one of them is not, and would be code from elsewhere.
    """
    arguments = {name: value for name, value in architecture.arguments.items() if name != "deep_supervision"}
    for name in architecture.class_arguments:
        block = arguments.get(name)
        if block is not None and not (
            isinstance(block, str) and block.startswith("torch.nn.") and block.rsplit(".", 1)[-1] in _BLOCKS
        ):
            raise PackageError(f"plans.json builds the network of {block}, which is not known.", "Check the plans.")
    return arguments


def build(architecture: Architecture, channels: int, classes: int, order: list[int], weights: Path) -> Any:
    """Return the module with its weights, which takes and gives (N, C, K, J, I); a network of slices one slice, across nnU-Net's axis 0.

    Args:
        order: nnU-Net's axis n is axis order[n] of (K, J, I).

    Raises:
        DependencyError: nnU-Net's networks are not installed.
        PackageError: the plans build no network, or the checkpoint holds no weights.
        InputError: the weights do not fit the network.
    """
    module = _build_module(architecture, channels, classes)
    load_weights(module, state_dict_of(read_checkpoint(weights), f"{weights.parent.name}/{weights.name}"))
    network = (
        single_output(module, architecture.name) if architecture.axes == 3 else sliced(module, 0, architecture.name)
    )
    return network if order == [0, 1, 2] else _transpose(network, order)


def _build_module(architecture: Architecture, channels: int, classes: int) -> Any:
    try:
        from dynamic_network_architectures.architectures import unet
        from torch import nn
    except ImportError as error:
        raise DependencyError(
            f"nnU-Net's networks cannot be made: {error}.", "Install them with: pip install 'medquantint8[import]'"
        ) from error
    network_class = getattr(unet, architecture.name)
    arguments = check_blocks(architecture)
    accepted = set(inspect.signature(network_class.__init__).parameters) - {"self", "input_channels", "num_classes"}
    if unknown := sorted(set(arguments) - accepted):
        raise PackageError(
            f"plans.json: {architecture.name} has no argument {unknown[0]!r} in the installed version.",
            "Install a newer dynamic-network-architectures, or check the plans.",
        )
    for name in architecture.class_arguments:
        if arguments.get(name) is not None:
            arguments[name] = getattr(nn, arguments[name].rsplit(".", 1)[-1])
    try:
        return network_class(input_channels=channels, num_classes=classes, deep_supervision=False, **arguments)
    except Exception as error:
        # A foreign constructor answers wrong arguments with whatever it runs into.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise PackageError(
            f"plans.json: the network {architecture.name} cannot be built: {reason}.", "Check arch_kwargs."
        ) from error


def _transpose(network: Any, order: list[int]) -> Any:
    from torch import Tensor, nn

    inverse = [order.index(axis) for axis in range(3)]

    class Transposed(nn.Module):
        """Takes the file's axes and gives nnU-Net its transposed ones."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            y = self.network(x.permute(0, 1, *(2 + axis for axis in order)))
            return y.permute(0, 1, *(2 + axis for axis in inverse))

    return Transposed()
