"""nnU-Net itself beside an import: its reader, preprocessor, sliding window and export with the same weights.

It runs on the processor and without mirroring, which an import leaves out as well. Checkpoints are read as data here too: nnU-Net's own
loading would run what is pickled in them.
"""

from __future__ import annotations

import tempfile
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DependencyError
from ..imaging.volume import Volume, to_sitk
from .checkpoints import load_weights, read_checkpoint, state_dict_of
from .nnunet_network import Architecture, check_blocks
from .nnunet_postprocessing import read_steps
from .original_software import at_work


@dataclass(frozen=True)
class TrainedFold:
    """The files and settings that nnU-Net needs to segment with one fold.

    Attributes:
        plans, dataset: plans.json and dataset.json as they stand.
        architecture: the network, its blocks known.
        order: nnU-Net's axis n is axis order[n] of (K, J, I).
        channels: of the network's input.
        postprocessing: the file that states it; None where there is none.
        cascade: the last channel of a scan is the previous stage's label map.
    """

    plans: dict[str, Any]
    dataset: dict[str, Any]
    configuration: str
    architecture: Architecture
    order: list[int]
    channels: int
    outputs: int
    weights: Path
    postprocessing: Path | None = None
    cascade: bool = False


def nnunet_original(fold: TrainedFold) -> NnunetPipeline:
    """nnU-Net's own pipeline with one fold.

    Raises:
        DependencyError: nnunetv2 is not installed.
        PackageError, InputError: the network cannot be built of known blocks, or the weights do not fit it.
    """
    arguments = check_blocks(fold.architecture)
    with at_work("nnU-Net"):
        try:
            import torch
            from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
            from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
            from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
        except ImportError as error:
            raise DependencyError("nnunetv2 is not installed.", "Install it with: pip install nnunetv2") from error
        network = get_network_from_plans(
            f"dynamic_network_architectures.architectures.unet.{fold.architecture.name}",
            arguments,
            fold.architecture.class_arguments,
            fold.channels,
            fold.outputs,
            allow_init=False,
            deep_supervision=False,
        )
        load_weights(network, state_dict_of(read_checkpoint(fold.weights), fold.weights.name))
        plans = PlansManager(deepcopy(fold.plans))
        predictor = nnUNetPredictor(0.5, True, False, False, torch.device("cpu"), False, False, False)
        predictor.manual_initialization(
            network.eval(),
            plans,
            plans.get_configuration(fold.configuration),
            [network.state_dict()],
            fold.dataset,
            "nnUNetTrainer",
            None,
        )
    return NnunetPipeline(predictor, fold.order, fold.postprocessing, fold.cascade)


@dataclass
class _Case:
    """A scan on its way through nnU-Net; its arrays lie along nnU-Net's transposed axes."""

    volume: Volume
    data: NDArray[np.float32]
    properties: dict[str, Any]
    logits: Any = None


@dataclass
class NnunetPipeline:
    """nnU-Net as the original of an import; see :class:`.import_check.OriginalPipeline`."""

    predictor: Any
    order: list[int]
    postprocessing: Path | None = None
    cascade: bool = False
    _case: _Case | None = field(default=None, repr=False)

    @property
    def title(self) -> str:
        return f"nnU-Net {version('nnunetv2')}"

    def prepare(self, volume: Volume) -> NDArray[np.float32]:
        return self._restore_axes(self._prepare_case(volume).data)

    def scores(self, volume: Volume) -> NDArray[np.float32]:
        return self._restore_axes(self._predict_case(volume).logits.float().numpy())

    def labels(self, volume: Volume) -> NDArray[Any]:
        from nnunetv2.inference.export_prediction import (
            convert_predicted_logits_to_segmentation_with_correct_shape as to_labels,
        )

        case, predictor = self._predict_case(volume), self.predictor
        with at_work("nnU-Net"), tempfile.TemporaryDirectory(prefix="medquant-nnunet-") as scratch:
            label_map = to_labels(
                case.logits,
                predictor.plans_manager,
                predictor.configuration_manager,
                predictor.label_manager,
                case.properties,
            )
            label_map = self._postprocess(np.asarray(label_map))
            # Its reader may have turned the scan; its writer turns labels back.
            target = str(Path(scratch) / "labels.nii.gz")
            predictor.plans_manager.image_reader_writer_class().write_seg(label_map, target, case.properties)
            return _read_voxels(target)

    def _postprocess(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Return the label map after nnU-Net's own function with the arguments of the file, one step after the other."""
        from nnunetv2.postprocessing.remove_connected_components import (
            remove_all_but_largest_component_from_segmentation as keep_largest,
        )

        for arguments in [] if self.postprocessing is None else read_steps(self.postprocessing)[1]:
            labels = keep_largest(labels, **arguments)
        return labels

    def _prepare_case(self, volume: Volume) -> _Case:
        if self._case is None or self._case.volume is not volume:
            plans, configuration = self.predictor.plans_manager, self.predictor.configuration_manager
            with at_work("nnU-Net"), tempfile.TemporaryDirectory(prefix="medquant-nnunet-") as scratch:
                files = [str(Path(scratch) / f"scan_{n:04}.nii.gz") for n in range(volume.channels)]
                for channel, file in zip(volume.data, files, strict=True):
                    _write_channel(channel, volume, file)
                reader = plans.image_reader_writer_class()
                image, properties = reader.read_images(files[:-1] if self.cascade else files)
                previous = reader.read_seg(files[-1])[0] if self.cascade else None
                data, labels, properties = configuration.preprocessor_class(verbose=False).run_case_npy(
                    image, previous, properties, plans, configuration, self.predictor.dataset_json
                )
                if self.cascade:
                    data = self._with_labels(data, labels)
            self._case = _Case(volume, np.asarray(data, np.float32), properties)
        return self._case

    def _with_labels(self, data: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
        """Return the network's input with the previous stage's labels as further channels, as nnU-Net appends them."""
        from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

        values = self.predictor.label_manager.foreground_labels
        return np.vstack((data, convert_labelmap_to_one_hot(labels[0], values, data.dtype)))

    def _predict_case(self, volume: Volume) -> _Case:
        import torch

        case = self._prepare_case(volume)
        if case.logits is None:
            with at_work("nnU-Net"):
                case.logits = self.predictor.predict_logits_from_preprocessed_data(torch.from_numpy(case.data))
        return case

    def _restore_axes(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the array (C, *nnU-Net's axes) with its axes in the order (C, K, J, I)."""
        return np.ascontiguousarray(array.transpose(0, *(1 + self.order.index(axis) for axis in range(3))))


def _write_channel(channel: NDArray[Any], volume: Volume, file: str) -> None:
    import SimpleITK as sitk

    sitk.WriteImage(to_sitk(channel, volume.grid), file)


def _read_voxels(file: str) -> NDArray[Any]:
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(sitk.ReadImage(file))
