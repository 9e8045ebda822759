"""MONAI's transforms after the network as the fields of model.json. One that is not understood is an error that names it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import exp
from typing import Any

from ..errors import PackageError
from ..models.spec import Cleaning
from .expression_evaluator import Unresolved
from .label_functions import Activation, Argmax, LabelFunction, NotUnderstood
from .monai_arguments import ADVICE, Arguments, enabled, transform_name, true
from .monai_prediction import Postprocessing, Prediction, TrustedFunction

#: The entry of MONAI's dictionary that holds the network's output.
_KEY = "pred"
_MOVING = {
    "ToDeviced",
    "ToTensord",
    "ToNumpyd",
    "FromMetaTensord",
    "ToMetaTensord",
    "Identityd",
    "DataStatsd",
    "EnsureChannelFirstd",
}
_DROPPING = {"DeleteItemsd", "SelectItemsd", "FlattenSubKeysd"}
_WHOLE_NUMBERS = re.compile(r"u?int\d*|long|short|byte|bool_?")
#: What a file looks like, and where it goes; none of it changes labels.
_OF_FILES = (
    "meta_keys", "meta_key_postfix", "output_dir", "output_postfix", "output_ext", "resample", "mode", "padding_mode", "align_corners",
    "separate_folder", "print_log", "output_format", "writer", "output_name_formatter", "folder_layout", "savepath_in_metadict",
    "squeeze_end_dims", "data_root_dir", "dtype",
)  # fmt: skip


def translate_postprocessing(
    transforms: Sequence[Any],
    channels: int | None = None,
    *,
    vista: bool = False,
    run: Callable[[str], Callable[[Any], Any]] | None = None,
) -> Postprocessing:
    """Translate what follows the network.

    Args:
        transforms: resolved descriptions.
        channels: how many channels the network's output has, where that is known.
        vista: the network is VISTA3D's with its fixed classes and a background channel before them.
        run: returns a function of the bundle's code for its text, where the user trusts it.

    Raises:
        PackageError: A transform, an argument or an order, which the message names, has no form in model.json.
    """
    reader = _Reader(channels, vista, run)
    for transform in enabled(transforms):
        name = transform_name(transform)
        arguments = Arguments(transform, _KEY)
        if arguments.keys and _KEY not in arguments.keys:
            reader.elsewhere(arguments)
            continue
        if name in _MOVING | _DROPPING:
            continue
        handler = getattr(reader, f"read_{name.lower()}", None)
        if handler is None:
            raise PackageError(f"The bundle's postprocessing uses {name}, which is not understood.", ADVICE)
        handler(arguments)
        arguments.finish()
    return reader.result()


class _Reader(Prediction):
    """A reader of transforms in their order, which keeps what the prediction is after each."""

    def __init__(self, channels: int | None, vista: bool, run: Callable[[str], Callable[[Any], Any]] | None) -> None:
        super().__init__(channels)
        self._vista, self._run = vista, run
        self._copies: set[str] = set()

    # Transforms of other entries

    def elsewhere(self, arguments: Arguments) -> None:
        """A transform that does not touch the prediction; one of a copy of it would give another result than is saved here."""
        if self._copies.intersection(arguments.keys) and arguments.name not in {"SaveImaged", *_DROPPING, *_MOVING}:
            raise PackageError(
                f"The bundle's {arguments.name} works on a copy of the prediction, which is not understood.", ADVICE
            )

    def read_copyitemsd(self, arguments: Arguments) -> None:
        names = arguments.get("names")
        arguments.ignore("times")
        self._copies |= {str(name) for name in (names if isinstance(names, list | tuple) else [names])}

    def read_splitdimd(self, arguments: Arguments) -> None:
        arguments.ignore("output_postfixes", "dim", "keepdim", "update_meta", "list_output", "postfixes")
        self._notes.append("the bundle saves each channel by itself; here one label map holds them")

    # Activations

    def read_activationsd(self, arguments: Arguments) -> None:
        arguments.only("dim", 0)
        sigmoid, softmax, other = arguments.flag("sigmoid"), arguments.flag("softmax"), arguments.of_key("other")
        if sigmoid and softmax:
            raise arguments.refusal("softmax", True)
        if sigmoid or softmax:
            self._activate(arguments, "sigmoid" if sigmoid else "softmax")
        if other is not None:
            function = self._parse_function(other)
            if not isinstance(function, Activation):
                raise self._code_refusal(arguments, "other", other)
            self._activate(arguments, function.name)

    def _activate(self, arguments: Arguments, activation: str) -> None:
        if self.kind != "scores":
            raise PackageError(
                f"The bundle's {arguments.name} follows another activation or decision, which is not understood.",
                ADVICE,
            )
        self._activation, self.kind = activation, "probabilities"

    # Decisions

    def read_asdiscreted(self, arguments: Arguments) -> None:
        arguments.only("dim", 0)
        arguments.only("keepdim", True)
        arguments.ignore("dtype")
        if arguments.flag("argmax"):
            self._argmax(arguments)
        to_onehot = arguments.of_key("to_onehot")
        if to_onehot is not None:
            if isinstance(to_onehot, bool) or not isinstance(to_onehot, int) or self.kind != "classes":
                raise arguments.refusal("to_onehot", to_onehot)
            if self._channels is not None and to_onehot < self._channels:
                raise arguments.refusal("to_onehot", to_onehot)
            self.kind = "onehot"
        threshold = arguments.of_key("threshold")
        if threshold is not None:
            if isinstance(threshold, bool) or not isinstance(threshold, int | float):
                raise arguments.refusal("threshold", threshold)
            self._cut(arguments, float(threshold))
        rounding = arguments.of_key("rounding")
        if rounding is not None:
            if rounding != "torchrounding":
                raise arguments.refusal("rounding", rounding)
            if self.kind == "probabilities":
                # Half is rounded to the even number, which is 0.
                self._cut(arguments, 0.5)
                self._inclusive = False
            elif self.kind == "scores":
                raise arguments.refusal("rounding", rounding)

    def _argmax(self, arguments: Arguments) -> None:
        if self.kind not in ("scores", "probabilities", "onehot"):
            raise arguments.refusal("argmax", True)
        self.kind = "classes"

    def _cut(self, arguments: Arguments, threshold: float) -> None:
        if self.kind in ("scores", "probabilities"):
            probability = threshold if self._activation else 1 / (1 + exp(-max(-700.0, min(700.0, threshold))))
            if not 0 < probability < 1:
                raise arguments.refusal("threshold", threshold)
            self._threshold, self.kind = probability, "regions"
            return
        masks = self.kind in ("onehot", "regions") or (self.kind == "classes" and self._channels == 2)
        # Of masks all values are 0 or 1, except where they were interpolated: there half a mask is the border.
        if not masks or not 0 < threshold <= 1 or (self._resample == "masks" and threshold != 0.5):
            raise arguments.refusal("threshold", threshold)

    def read_vistaposttransformd(self, arguments: Arguments) -> None:
        if not self._vista or self.kind != "scores":
            raise PackageError(
                "The bundle's VistaPostTransformd follows another network than VISTA3D, which is not understood.",
                ADVICE,
            )
        self.kind = "classes"

    # Back to the scan

    def read_invertd(self, arguments: Arguments) -> None:
        arguments.ignore("orig_keys", "meta_keys", "orig_meta_keys", "meta_key_postfix", "to_tensor", "device")
        transform = arguments.get("transform")
        text = transform.text if isinstance(transform, Unresolved) else transform
        if isinstance(transform, dict):
            right = transform_name(transform) == "Compose"
        else:
            right = transform is None or (
                isinstance(text, str) and re.search(r"@preprocessing(?![\w#:])", text) is not None
            )
        if not right:
            raise arguments.refusal(
                "transform",
                text
                if isinstance(text, str)
                else transform.get("_target_")
                if isinstance(transform, dict)
                else transform,
            )
        if self._resample is not None:
            raise PackageError("The bundle inverts its preprocessing twice, which is not understood.", ADVICE)
        # What is decided voxel by voxel is the same before the nearest voxel is chosen as after it.
        if arguments.flag("nearest_interp", True):
            self._resample = "labels"
        elif self.kind in ("scores", "probabilities"):
            self._resample = "logits" if self.kind == "scores" else "probabilities"
        else:
            self._resample = "masks"
            if self.kind == "classes" and self._channels != 2:
                self._notes.append(
                    "the bundle interpolates label numbers; here each label's mask is, and the largest wins"
                )
        after = arguments.of_key("post_func")
        if after is not None:
            self._function(arguments, "post_func", after)

    # Cleaning

    def read_keeplargestconnectedcomponentd(self, arguments: Arguments) -> None:
        self._needs_labels(arguments)
        count, together = arguments.get("num_components", 1), not arguments.flag("independent", True)
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise arguments.refusal("num_components", count)
        labels = self._applied_labels(arguments)
        self._clean(
            Cleaning("largest", labels, count=count, connectivity=self._connectivity(arguments, 3), together=together)
        )

    def read_fillholesd(self, arguments: Arguments) -> None:
        self._needs_labels(arguments)
        if self.kind == "onehot":
            raise PackageError(
                "The bundle's FillHolesd works on masks of all classes, which is not understood.", ADVICE
            )
        self._clean(
            Cleaning("fill_holes", self._applied_labels(arguments), connectivity=self._connectivity(arguments, 3))
        )

    def read_removesmallobjectsd(self, arguments: Arguments) -> None:
        self._needs_labels(arguments)
        size, independent = arguments.get("min_size", 64), arguments.flag("independent_channels", True)
        by_measure = arguments.flag("by_measure", False)
        # The voxels of what a bundle loads are known to MONAI, which then does not look at this.
        arguments.ignore("pixdim")
        if isinstance(size, bool) or not isinstance(size, int | float) or not 0 <= size < 1 << 40:
            raise arguments.refusal("min_size", size)
        connectivity = self._connectivity(arguments, 1)
        if self.kind == "onehot" and connectivity > 1:
            # Channels are an axis like the others there, along which masks of different classes touch.
            raise arguments.refusal("connectivity", connectivity)
        step = Cleaning(
            "remove_small",
            size=0 if by_measure else int(-(-size // 1)),
            volume=float(size) if by_measure else None,
            connectivity=connectivity,
            together=self.kind == "classes" and not independent,
            # Of a map of several labels it compares each label as a whole.
            whole=self.kind == "classes" and self._channels != 2 and independent,
        )
        self._clean(step)

    def _needs_labels(self, arguments: Arguments) -> None:
        if self.kind in ("classes", "onehot") or (
            self.kind == "regions" and self._channels == 1 and self._activation != "softmax"
        ):
            onehot = arguments.get("is_onehot")
            if onehot is not None and true(onehot) != (self.kind == "onehot"):
                raise arguments.refusal("is_onehot", onehot)
            return
        what = (
            "regions that may overlap, each by itself, while a voxel of the label map here has one of them"
            if self.kind == "regions"
            else self.kind
        )
        raise PackageError(f"The bundle's {arguments.name} works on {what}, which is not understood.", ADVICE)

    def _applied_labels(self, arguments: Arguments) -> tuple[int, ...]:
        labels = arguments.get("applied_labels")
        values = [] if labels is None else list(labels) if isinstance(labels, list | tuple) else [labels]
        if not all(isinstance(value, int) and not isinstance(value, bool) and value > 0 for value in values):
            raise arguments.refusal("applied_labels", labels)
        most = self._channels if self.kind != "regions" else 2
        there = tuple(value for value in values if most is None or value < most)
        if values and not there:
            raise arguments.refusal("applied_labels", labels)
        return there

    def _connectivity(self, arguments: Arguments, default: int) -> int:
        value = arguments.get("connectivity", default)
        value = 3 if value is None else value
        if value not in (1, 2, 3) or isinstance(value, bool):
            raise arguments.refusal("connectivity", value)
        return int(value)

    def _clean(self, step: Cleaning) -> None:
        if self._values is not None:
            raise PackageError(
                "The bundle cleans labels after it has changed their values, which is not understood.", ADVICE
            )
        before = self._resample is None
        self._cleaning.append(Cleaning(**{**step.__dict__, "where": "network" if before else "scan"}))

    # Functions

    def read_lambdad(self, arguments: Arguments) -> None:
        arguments.ignore("inv_func", "track_meta")
        arguments.only("overwrite", True)
        self._function(arguments, "func", arguments.of_key("func"))

    def _parse_function(self, value: Any) -> Activation | Argmax | LabelFunction | None:
        try:
            function = LabelFunction(_text_of(value))
            return function.whole() or function
        except NotUnderstood:
            return None

    def _function(self, arguments: Arguments, name: str, value: Any) -> None:
        function = self._parse_function(value)
        if isinstance(function, Activation):
            self._activate(arguments, function.name)
            return
        if isinstance(function, Argmax):
            self._argmax(arguments)
            return
        if function is not None:
            try:
                self._apply(function, function)
                return
            except NotUnderstood:
                pass
        if self._run is None or not _text_of(value):
            raise self._code_refusal(arguments, name, value)
        try:
            self._apply(TrustedFunction(self._run(_text_of(value))), function)
        except NotUnderstood as error:
            raise PackageError(
                f"The bundle's {arguments.name} changes labels in a way that a model package cannot say: {error}.",
                "Export the network yourself and use: medquant import onnx",
            ) from error

    def _code_refusal(self, arguments: Arguments, name: str, value: Any) -> PackageError:
        text = _text_of(value)
        return PackageError(
            f"The bundle's {arguments.name} has {name} = {('$' + text)[:120] if text else 'no function'}, Python code that would have to be run.",
            "If you trust where it comes from, give --trust-code; else describe the network by hand: medquant import onnx.",
        )

    # Saving

    def read_saveimaged(self, arguments: Arguments) -> None:
        arguments.ignore(*_OF_FILES)
        arguments.only("scale")
        arguments.only("channel_dim", 0)
        dtype = arguments.get("output_dtype")
        if isinstance(dtype, str) and _WHOLE_NUMBERS.fullmatch(dtype) and self.kind in ("scores", "probabilities"):
            raise arguments.refusal("output_dtype", dtype)
        if dtype in ("bool", "bool_") and (self._channels or 3) > 2:
            raise arguments.refusal("output_dtype", dtype)

    def _read_dtype(self, arguments: Arguments) -> None:
        arguments.ignore("data_type", "device", "wrap_sequence", "track_meta")
        dtype = arguments.of_key("dtype")
        if isinstance(dtype, str) and _WHOLE_NUMBERS.fullmatch(dtype) and self.kind in ("scores", "probabilities"):
            raise arguments.refusal("dtype", dtype)

    read_ensuretyped = read_casttotyped = _read_dtype

    def read_squeezedimd(self, arguments: Arguments) -> None:
        arguments.ignore("dim", "update_meta")


def _text_of(value: Any) -> str:
    """Return a function's text without its $; empty for anything else."""
    text = value.text if isinstance(value, Unresolved) else value
    return text[1:].strip() if isinstance(text, str) and text.startswith("$") else ""
