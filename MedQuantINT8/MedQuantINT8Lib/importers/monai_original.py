"""MONAI itself as the original of an imported bundle: its transforms, inferer and postprocessing, as the bundle's configuration describes them.

Only classes that the import understands are built, with the arguments that were read as data; functions are those whose text is
understood (:mod:`.label_functions`, :mod:`.monai_intensity`), or, where the user trusts the bundle's code, its own.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DependencyError
from ..imaging.regions import Regions
from ..imaging.volume import Volume
from ..models.spec import ModelSpec
from .expression_evaluator import Unresolved
from .label_functions import Activation, Argmax, LabelFunction, NotUnderstood
from .monai_arguments import enabled, transform_name
from .monai_intensity import HANDLERS as INTENSITY
from .monai_intensity import is_plain_function
from .monai_preprocessing import UNDERSTOOD, image_keys
from .monai_spatial import HANDLERS as SPATIAL
from .monai_spatial import is_plain_comparison

#: What only concerns files, devices or training, and VISTA3D's prompts, which the exported graph holds.
_IRRELEVANT = {
    "SaveImaged",
    "ToDeviced",
    "VistaPreTransformd",
    "VistaPostTransformd",
    "DeleteItemsd",
    "SelectItemsd",
    "DataStatsd",
}
_AFTER = {
    "Activationsd", "AsDiscreted", "Invertd", "EnsureTyped", "CastToTyped", "ToTensord", "ToNumpyd", "SqueezeDimd", "CopyItemsd",
    "KeepLargestConnectedComponentd", "FillHolesd", "RemoveSmallObjectsd", "Lambdad", "FromMetaTensord", "ToMetaTensord", "Identityd",
    "EnsureChannelFirstd",
}  # fmt: skip
_INFERERS = {"SlidingWindowInferer", "SlidingWindowInfererAdapt", "SimpleInferer", "SliceInferer"}
#: Where and how much at once; none of it changes the result.
_RUNNING = {"device", "sw_device", "progress", "cache_roi_weight_map", "cpu_thresh", "sw_batch_size", "non_blocking"}
_FUNCTIONS = {"select_fn", "func", "post_func"}


@dataclass(frozen=True)
class BundleParts:
    """What MONAI needs to segment as a bundle does.

    Attributes:
        preprocessing, postprocessing: resolved descriptions of transforms.
        inferer: its resolved description.
        network: the function that builds the torch module with its weights, as the inferer takes it: of slices for one that goes slice by slice.
        spec: the import that is compared.
        final: whether the last transform gives label values, not numbers of classes or masks of regions.
        run: returns a function of the bundle's code for its text, where the user trusts it.
    """

    preprocessing: Sequence[Any]
    inferer: Any
    postprocessing: Sequence[Any]
    network: Callable[[], Any]
    spec: ModelSpec
    final: bool = False
    run: Callable[[str], Callable[[Any], Any]] | None = None


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def monai_original(parts: BundleParts) -> MonaiPipeline:
    """Return MONAI's pipeline for a bundle.

    Raises:
        DependencyError: MONAI is not installed, or it cannot build a transform that the bundle describes.
    """
    try:
        with _quietly():
            import monai.inferers
            import monai.transforms
    except ImportError as error:
        raise DependencyError(
            "MONAI is not installed.", "Install it with: pip install 'medquantint8[import]'"
        ) from error
    allowed = set(SPATIAL) | set(INTENSITY) | UNDERSTOOD
    maker = _Maker(parts.run)
    with _quietly():
        before = [
            transform for t in enabled(parts.preprocessing) if (transform := maker.transform(t, allowed)) is not None
        ]
        preprocessing = monai.transforms.Compose(before)
        after = [
            transform
            for t in enabled(parts.postprocessing)
            if (transform := maker.transform(t, _AFTER, preprocessing)) is not None
        ]
        name = str(parts.inferer.get("_target_", "")).rsplit(".", 1)[-1] if isinstance(parts.inferer, dict) else ""
        inferer = maker.make(getattr(monai.inferers, name), parts.inferer) if name in _INFERERS else None
        if inferer is not None and hasattr(inferer, "sw_batch_size"):
            inferer.sw_batch_size = 1
    image, members = image_keys(parts.preprocessing)
    return MonaiPipeline(parts, preprocessing, inferer, monai.transforms.Compose(after), image, members)


class _Maker:
    """A builder of MONAI's objects from resolved descriptions."""

    def __init__(self, run: Callable[[str], Callable[[Any], Any]] | None) -> None:
        self._run = run

    def transform(self, description: dict[str, Any], allowed: set[str], preprocessing: Any = None) -> Any:
        """Build a transform; None for one that does nothing here."""
        import monai.transforms

        name = transform_name(description)
        if name in _IRRELEVANT:
            return None
        if name not in allowed or not hasattr(monai.transforms, name):
            raise DependencyError(
                f"MONAI's {name} is not made for a comparison.", "Look at a segmentation before you trust it."
            )
        arguments = dict(description)
        if name == "Invertd":
            arguments.update(transform=preprocessing, to_tensor=True)
        reader = str(arguments.get("reader")).rsplit(".", 1)[-1] if name == "LoadImaged" else ""
        no_itk = reader == "ITKReader" and importlib.util.find_spec("itk") is None
        if no_itk or reader in ("PydicomReader", "NumpyReader", "NrrdReader"):
            # The synthetic scans are NIfTI files, which MONAI reads by itself.
            arguments.pop("reader")
        return self.make(getattr(monai.transforms, name), arguments)

    def make(self, cls: Any, description: dict[str, Any]) -> Any:
        arguments = {
            name: self._argument(name, value)
            for name, value in description.items()
            if not name.startswith("_") and name not in _RUNNING
        }
        try:
            return cls(**arguments)
        except Exception as error:
            # MONAI's transforms raise whatever they like for arguments that do not fit.
            line = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            raise DependencyError(
                f"the installed MONAI cannot make the bundle's {cls.__name__}: {line}.",
                "Install the MONAI that it was made for.",
            ) from error

    def _argument(self, name: str, value: Any) -> Any:
        if name in _FUNCTIONS and value is not None:
            return self._function(name, value)
        if "dtype" in name and value is not None:
            return _dtype(value)
        if isinstance(value, Unresolved):
            raise DependencyError(f"{str(value.text)[:80]!r} is code that a comparison does not run.")
        return value

    def _function(self, name: str, value: Any) -> Callable[[Any], Any]:
        text = value.text if isinstance(value, Unresolved) else value
        if not isinstance(text, str):
            raise DependencyError(f"the bundle's {name} is no function that a comparison knows.")
        plain = text.lstrip("$ ").strip()
        if plain.rsplit(".", 1)[-1] == "is_positive":
            return lambda x: x > 0
        if is_plain_comparison(plain) or is_plain_function(plain):
            return _compile(plain)
        try:
            return _wrap_for_tensors(LabelFunction(plain))
        except NotUnderstood:
            if self._run is None:
                raise DependencyError(f"{plain[:80]!r} is code that a comparison does not run.") from None
            return self._run(plain)


def _compile(text: str) -> Callable[[Any], Any]:
    """Compile a function whose text holds nothing but its variable, numbers, arithmetic, a comparison and clamp (it was looked through)."""
    import torch

    names = {"__builtins__": {}, "torch": torch, "np": np, "numpy": np}
    return eval(compile(ast.parse(text, mode="eval"), "<bundle>", "eval"), names)  # type: ignore[no-any-return]


def _wrap_for_tensors(function: LabelFunction) -> Callable[[Any], Any]:
    """Return a function of single voxels as one that takes a tensor (C, n0, n1, n2)."""
    import torch

    def apply(x: Any) -> Any:
        whole = function.whole()
        if isinstance(whole, Activation):
            return torch.sigmoid(x) if whole.name == "sigmoid" else torch.softmax(x, 0)
        if isinstance(whole, Argmax):
            return torch.argmax(x, 0, keepdim=True)
        labels = function(np.asarray(x).reshape(x.shape[0], -1))
        result = torch.as_tensor(np.ascontiguousarray(labels, np.float32)).reshape(-1, *x.shape[1:])
        return (
            x.new_tensor(result)
            if not hasattr(x, "meta")
            else type(x)(result, meta=x.meta, applied_operations=x.applied_operations)
        )

    return apply


def _find_constant_neighborhoods(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return a mask of the voxels whose neighbors along each axis have the same value."""
    mask = np.ones(values.shape, bool)
    for axis in range(values.ndim):
        same = np.moveaxis(np.diff(values, axis=axis) == 0, axis, 0)
        along = np.moveaxis(mask, axis, 0)
        along[1:] &= same
        along[:-1] &= same
    return mask


def _dtype(value: Any) -> Any:
    text = value.text if isinstance(value, Unresolved) else value
    if not isinstance(text, str):
        return value
    name = text.strip("$ ").rsplit(".", 1)[-1]
    name = {
        "float": "float32",
        "double": "float64",
        "half": "float16",
        "int": "int32",
        "long": "int64",
        "short": "int16",
    }.get(name, name)
    return getattr(np, name)


@dataclass
class MonaiPipeline:
    """MONAI as the original of an import; see :class:`.import_check.OriginalPipeline`.

    Attributes:
        image: the key that the network reads.
        members: the keys of its channels, where each has one; else the image's alone.
    """

    parts: BundleParts
    preprocessing: Any
    inferer: Any
    postprocessing: Any
    image: str
    members: list[str]
    _network: Any = field(default=None, repr=False)
    _case: tuple[Volume, dict[str, Any]] | None = field(default=None, repr=False)
    _prediction: tuple[Volume, Any] | None = field(default=None, repr=False)

    @property
    def title(self) -> str:
        import monai

        return f"MONAI {monai.__version__}"

    def prepare(self, volume: Volume) -> NDArray[np.float32]:
        return np.asarray(self._prepare_entry(volume)[self.image], np.float32)

    def scores(self, volume: Volume) -> NDArray[np.float32] | None:
        scores = self._predict(volume)
        return None if scores is None else np.asarray(scores, np.float32)

    def labels(self, volume: Volume) -> NDArray[Any] | None:
        import torch
        from monai.data import MetaTensor

        scores = self._predict(volume)
        if scores is None:
            return None
        entry = dict(self._prepare_entry(volume))
        image = entry[self.image]
        entry["pred"] = MetaTensor(scores.clone(), meta=image.meta, applied_operations=image.applied_operations)
        with _quietly(), torch.no_grad():
            prediction = np.asarray(self.postprocessing(entry)["pred"])
        if prediction.shape[1:] != tuple(volume.grid.size):
            # Without Invertd the bundle leaves it to saving to come back to the scan's grid.
            return None
        return self._values(prediction).transpose(2, 1, 0)

    def _values(self, prediction: NDArray[Any]) -> NDArray[Any]:
        """Return MONAI's result (C, I, J, K) as label values, (I, J, K); -1 where it is no whole number."""
        spec = self.parts.spec
        if prediction.shape[0] == spec.output_channels and not (self.parts.final and prediction.shape[0] == 1):
            whole = np.isin(prediction, (0, 1))
            if spec.output.regions:
                labels = Regions.of(spec, np.int64).paint(lambda channel: np.round(prediction[channel]))
            else:
                by_channel = {label.channel: label.value for label in spec.labels}
                labels = np.vectorize(lambda n: by_channel.get(n, 0), otypes=[np.int64])(np.argmax(prediction, axis=0))
            return np.where(whole.all(axis=0), labels, -1)
        rounded = np.round(prediction[0]).astype(np.int64)
        values = rounded
        if not self.parts.final:
            values = np.zeros_like(rounded)
            for label in spec.labels:
                values[rounded == label.channel] = label.value
        whole = np.abs(prediction[0] - rounded) < 1e-4
        # Numbers of labels that were interpolated say nothing near a border: between 1 and 3 lies 2.
        return np.where(whole if whole.all() else whole & _find_constant_neighborhoods(prediction[0]), values, -1)

    def _prepare_entry(self, volume: Volume) -> dict[str, Any]:
        if self._case is None or self._case[0] is not volume:
            import nibabel

            with _quietly(), tempfile.TemporaryDirectory(prefix="medquant-monai-") as scratch:
                files = []
                for number, channel in enumerate(volume.data):
                    files.append(str(Path(scratch) / f"scan_{number}.nii.gz"))
                    nibabel.save(
                        nibabel.Nifti1Image(np.ascontiguousarray(channel.transpose(2, 1, 0)), volume.ijk_to_ras),
                        files[-1],
                    )
                if len(self.members) > 1:
                    entry: dict[str, Any] = dict(zip(self.members, files, strict=True))
                else:
                    entry = {self.members[0]: files if len(files) > 1 else files[0]}
                self._case = (volume, self.preprocessing(entry))
        return self._case[1]

    def _predict(self, volume: Volume) -> Any:
        """Return the network's blended scores, a tensor (classes, I, J, K); None for an inferer of the bundle's own."""
        if self.inferer is None:
            return None
        if self._prediction is None or self._prediction[0] is not volume:
            import torch

            image = torch.as_tensor(np.asarray(self._prepare_entry(volume)[self.image], np.float32))
            if self._network is None:
                self._network = self.parts.network().eval()
            with _quietly(), torch.no_grad():
                self._prediction = (volume, self.inferer(image[None], self._network)[0])
        return self._prediction[1]
