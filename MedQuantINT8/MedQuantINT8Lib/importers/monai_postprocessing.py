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
        channels: of the network's output, where they are known.
        vista: the network is VISTA3D's with its fixed classes and a background channel before them.
        run: makes a function of the bundle's code from its text, where the user trusts it.

    Raises:
        PackageError: a transform, an argument or an order that model.json cannot say; named.
    """
    reader = _Reader(channels, vista, run)
    for transform in enabled(transforms):
        name = transform_name(transform)
        given = Arguments(transform, _KEY)
        if given.keys and _KEY not in given.keys:
            reader.elsewhere(given)
            continue
        if name in _MOVING | _DROPPING:
            continue
        handler = getattr(reader, f"read_{name.lower()}", None)
        if handler is None:
            raise PackageError(f"The bundle's postprocessing uses {name}, which is not understood.", ADVICE)
        handler(given)
        given.finish()
    return reader.result()


class _Reader(Prediction):
    """Reads transforms in their order and keeps what the prediction is by then."""

    def __init__(self, channels: int | None, vista: bool, run: Callable[[str], Callable[[Any], Any]] | None) -> None:
        super().__init__(channels)
        self._vista, self._run = vista, run
        self._copies: set[str] = set()
        self._saves_resampled = True

    # Transforms of other entries

    def elsewhere(self, given: Arguments) -> None:
        """A transform that does not touch the prediction; one of a copy of it would give another result than is saved here."""
        if self._copies.intersection(given.keys) and given.name not in {"SaveImaged", *_DROPPING, *_MOVING}:
            raise PackageError(
                f"The bundle's {given.name} works on a copy of the prediction, which is not understood.", ADVICE
            )

    def read_copyitemsd(self, given: Arguments) -> None:
        names = given.get("names")
        given.ignore("times")
        self._copies |= {str(name) for name in (names if isinstance(names, list | tuple) else [names])}

    def read_splitdimd(self, given: Arguments) -> None:
        given.ignore("output_postfixes", "dim", "keepdim", "update_meta", "list_output", "postfixes")
        self._notes.append("the bundle saves each channel by itself; here one label map holds them")

    # Activations

    def read_activationsd(self, given: Arguments) -> None:
        given.only("dim", 0)
        sigmoid, softmax, other = given.flag("sigmoid"), given.flag("softmax"), given.of_key("other")
        if sigmoid and softmax:
            raise given.refusal("softmax", True)
        if sigmoid or softmax:
            self._activate(given, "sigmoid" if sigmoid else "softmax")
        if other is not None:
            found = self._known(other)
            if not isinstance(found, Activation):
                raise self._code(given, "other", other)
            self._activate(given, found.name)

    def _activate(self, given: Arguments, activation: str) -> None:
        if self.kind != "scores":
            raise PackageError(
                f"The bundle's {given.name} follows another activation or decision, which is not understood.", ADVICE
            )
        self._activation, self.kind = activation, "probabilities"

    # Decisions

    def read_asdiscreted(self, given: Arguments) -> None:
        given.only("dim", 0)
        given.only("keepdim", True)
        given.ignore("dtype")
        if given.flag("argmax"):
            self._argmax(given)
        to_onehot = given.of_key("to_onehot")
        if to_onehot is not None:
            if isinstance(to_onehot, bool) or not isinstance(to_onehot, int) or self.kind != "classes":
                raise given.refusal("to_onehot", to_onehot)
            if self._channels is not None and to_onehot < self._channels:
                raise given.refusal("to_onehot", to_onehot)
            self.kind = "onehot"
        threshold = given.of_key("threshold")
        if threshold is not None:
            if isinstance(threshold, bool) or not isinstance(threshold, int | float):
                raise given.refusal("threshold", threshold)
            self._cut(given, float(threshold))
        rounding = given.of_key("rounding")
        if rounding is not None:
            if rounding != "torchrounding":
                raise given.refusal("rounding", rounding)
            if self.kind == "probabilities":
                # Half is rounded to the even number, which is 0.
                self._cut(given, 0.5)
                self._inclusive = False
            elif self.kind == "scores":
                raise given.refusal("rounding", rounding)

    def _argmax(self, given: Arguments) -> None:
        if self.kind not in ("scores", "probabilities", "onehot"):
            raise given.refusal("argmax", True)
        self.kind = "classes"

    def _cut(self, given: Arguments, threshold: float) -> None:
        if self.kind in ("scores", "probabilities"):
            probability = threshold if self._activation else 1 / (1 + exp(-max(-700.0, min(700.0, threshold))))
            if not 0 < probability < 1:
                raise given.refusal("threshold", threshold)
            self._threshold, self.kind = probability, "regions"
            return
        masks = self.kind in ("onehot", "regions") or (self.kind == "classes" and self._channels == 2)
        # Of masks all values are 0 or 1, except where they were interpolated: there half a mask is the border.
        if not masks or not 0 < threshold <= 1 or (self._resample == "masks" and threshold != 0.5):
            raise given.refusal("threshold", threshold)

    def read_vistaposttransformd(self, given: Arguments) -> None:
        if not self._vista or self.kind != "scores":
            raise PackageError(
                "The bundle's VistaPostTransformd follows another network than VISTA3D, which is not understood.",
                ADVICE,
            )
        self.kind = "classes"

    # Back to the scan

    def read_invertd(self, given: Arguments) -> None:
        given.ignore("orig_keys", "meta_keys", "orig_meta_keys", "meta_key_postfix", "to_tensor", "device")
        whole = given.get("transform")
        text = whole.text if isinstance(whole, Unresolved) else whole
        if isinstance(whole, dict):
            right = transform_name(whole) == "Compose"
        else:
            right = whole is None or (
                isinstance(text, str) and re.search(r"@preprocessing(?![\w#:])", text) is not None
            )
        if not right:
            raise given.refusal(
                "transform",
                text if isinstance(text, str) else whole.get("_target_") if isinstance(whole, dict) else whole,
            )
        if self._resample is not None:
            raise PackageError("The bundle inverts its preprocessing twice, which is not understood.", ADVICE)
        # What is decided voxel by voxel comes to the same before the nearest voxel is taken as after it.
        if given.flag("nearest_interp", True):
            self._resample = "labels"
        elif self.kind in ("scores", "probabilities"):
            self._resample = "logits" if self.kind == "scores" else "probabilities"
        else:
            self._resample = "masks"
            if self.kind == "classes" and self._channels != 2:
                self._notes.append(
                    "the bundle interpolates label numbers; here each label's mask is, and the largest wins"
                )
        after = given.of_key("post_func")
        if after is not None:
            self._function(given, "post_func", after)

    # Cleaning

    def read_keeplargestconnectedcomponentd(self, given: Arguments) -> None:
        self._needs_labels(given)
        count, together = given.get("num_components", 1), not given.flag("independent", True)
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise given.refusal("num_components", count)
        labels = self._applied(given)
        self._clean(
            Cleaning("largest", labels, count=count, connectivity=self._connectivity(given, 3), together=together)
        )

    def read_fillholesd(self, given: Arguments) -> None:
        self._needs_labels(given)
        if self.kind == "onehot":
            raise PackageError(
                "The bundle's FillHolesd works on masks of all classes, which is not understood.", ADVICE
            )
        self._clean(Cleaning("fill_holes", self._applied(given), connectivity=self._connectivity(given, 3)))

    def read_removesmallobjectsd(self, given: Arguments) -> None:
        self._needs_labels(given)
        size, independent = given.get("min_size", 64), given.flag("independent_channels", True)
        given.only("by_measure", False)
        given.ignore("pixdim")
        if isinstance(size, bool) or not isinstance(size, int | float) or not 0 <= size < 1 << 40:
            raise given.refusal("min_size", size)
        if self.kind == "classes" and self._channels != 2 and independent:
            # There it removes labels that are small as a whole, not parts.
            raise given.refusal("independent_channels", True)
        connectivity = self._connectivity(given, 1)
        self._clean(
            Cleaning("remove_small", size=int(-(-size // 1)), connectivity=connectivity, together=not independent)
        )

    def _needs_labels(self, given: Arguments) -> None:
        if self.kind in ("classes", "onehot") or (
            self.kind == "regions" and self._channels == 1 and self._activation != "softmax"
        ):
            onehot = given.get("is_onehot")
            if onehot is not None and true(onehot) != (self.kind == "onehot"):
                raise given.refusal("is_onehot", onehot)
            return
        what = "regions that may overlap" if self.kind == "regions" else self.kind
        raise PackageError(f"The bundle's {given.name} works on {what}, which is not understood.", ADVICE)

    def _applied(self, given: Arguments) -> tuple[int, ...]:
        wanted = given.get("applied_labels")
        values = [] if wanted is None else list(wanted) if isinstance(wanted, list | tuple) else [wanted]
        if not all(isinstance(value, int) and not isinstance(value, bool) and value > 0 for value in values):
            raise given.refusal("applied_labels", wanted)
        most = self._channels if self.kind != "regions" else 2
        there = tuple(value for value in values if most is None or value < most)
        if values and not there:
            raise given.refusal("applied_labels", wanted)
        return there

    def _connectivity(self, given: Arguments, default: int) -> int:
        value = given.get("connectivity", default)
        value = 3 if value is None else value
        if value not in (1, 3) or isinstance(value, bool):
            raise given.refusal("connectivity", value)
        return int(value)

    def _clean(self, step: Cleaning) -> None:
        if self._values is not None:
            raise PackageError(
                "The bundle cleans labels after it has changed their values, which is not understood.", ADVICE
            )
        before = self._resample is None
        self._cleaning.append(Cleaning(**{**step.__dict__, "where": "network" if before else "scan"}))

    # Functions

    def read_lambdad(self, given: Arguments) -> None:
        given.ignore("inv_func", "track_meta")
        given.only("overwrite", True)
        self._function(given, "func", given.of_key("func"))

    def _known(self, value: Any) -> Activation | Argmax | LabelFunction | None:
        try:
            function = LabelFunction(_text_of(value))
            return function.whole() or function
        except NotUnderstood:
            return None

    def _function(self, given: Arguments, name: str, value: Any) -> None:
        found = self._known(value)
        if isinstance(found, Activation):
            self._activate(given, found.name)
            return
        if isinstance(found, Argmax):
            self._argmax(given)
            return
        if found is not None:
            try:
                self._apply(found, found)
                return
            except NotUnderstood:
                pass
        if self._run is None or not _text_of(value):
            raise self._code(given, name, value)
        try:
            self._apply(TrustedFunction(self._run(_text_of(value))), found)
        except NotUnderstood as error:
            raise PackageError(
                f"The bundle's {given.name} changes labels in a way that a model package cannot say: {error}.",
                "Export the network yourself and use: medquant import onnx",
            ) from error

    def _code(self, given: Arguments, name: str, value: Any) -> PackageError:
        text = _text_of(value)
        return PackageError(
            f"The bundle's {given.name} has {name} = {('$' + text)[:120] if text else 'no function'}, Python code that would have to be run.",
            "If you trust where it comes from, give --trust-code; else describe the network by hand: medquant import onnx.",
        )

    # Saving

    def read_saveimaged(self, given: Arguments) -> None:
        given.ignore(*_OF_FILES)
        given.only("scale")
        given.only("channel_dim", 0)
        kept = given.get("output_dtype")
        if isinstance(kept, str) and _WHOLE_NUMBERS.fullmatch(kept) and self.kind in ("scores", "probabilities"):
            raise given.refusal("output_dtype", kept)
        if kept in ("bool", "bool_") and (self._channels or 3) > 2:
            raise given.refusal("output_dtype", kept)

    def _typed(self, given: Arguments) -> None:
        given.ignore("data_type", "device", "wrap_sequence", "track_meta")
        kept = given.of_key("dtype")
        if isinstance(kept, str) and _WHOLE_NUMBERS.fullmatch(kept) and self.kind in ("scores", "probabilities"):
            raise given.refusal("dtype", kept)

    read_ensuretyped = read_casttotyped = _typed

    def read_squeezedimd(self, given: Arguments) -> None:
        given.ignore("dim", "update_meta")


def _text_of(value: Any) -> str:
    """A function's text without its $; empty for anything else."""
    text = value.text if isinstance(value, Unresolved) else value
    return text[1:].strip() if isinstance(text, str) and text.startswith("$") else ""
