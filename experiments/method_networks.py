"""INT8 networks made by one method of quantization each, and by several together, for methods.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from high_biases import absorbed

#: Parts of a tensor's largest magnitude that are tried as its range.
_FRACTIONS = (1.0, 0.7, 0.5, 0.3)
#: Patches that weights are learned on, that ranges are searched on, and that biases and channels are measured on.
_LEARNED_ON, _SEARCHED_ON, _FEW = 2, 1, 2
#: Seconds that learned rounding may take.
_SECONDS = 60.0


class Networks:
    """The INT8 networks of one setting of methods.py.

    Attributes:
        about: counts that the methods leave behind.
    """

    def __init__(self, setting: Any) -> None:
        from MedQuantINT8Lib.models import onnx_graph as graph
        from MedQuantINT8Lib.quantization.quantize import OPSET

        network = setting.network
        self.fp32 = graph.at_opset(network, OPSET, setting.name) if graph.opset_of(network) < OPSET else network
        graph.name_nodes(self.fp32)
        self.setting = setting
        self.patches = [sample.patch for sample in setting.sampler.first_samples(len(setting.sampler))]
        self.about: dict[str, Any] = {"patches": len(self.patches), "windows": len(setting.windows)}

    def form(self, network: Any) -> Any:
        """A network with Q/DQ pairs and ranges that are the largest magnitudes."""
        from MedQuantINT8Lib.models import qdq
        from MedQuantINT8Lib.progress import Task
        from MedQuantINT8Lib.quantization.activation_ranges import histograms_for, scales_from
        from MedQuantINT8Lib.quantization.calibration import CalibrationOptions
        from MedQuantINT8Lib.quantization.candidates import Form, Forms
        from MedQuantINT8Lib.quantization.qdq_placement import require_quantizer
        from MedQuantINT8Lib.quantization.quantize import QuantizationPolicy, policy_reasons

        setting, policy, options = self.setting, QuantizationPolicy(), CalibrationOptions(patches=len(self.patches))
        if (int8 := with_pairs(network.model, setting.patch)) is not None:
            histograms = histograms_for(network, list(qdq.activation_tensors(int8)), setting.sampler, options, Task())
            scales = scales_from(histograms, options)
            qdq.set_activation_scales(int8, scales)
            return Form(network, int8, {}, histograms, scales)
        forms = Forms(
            setting.name,
            setting.sampler,
            options,
            lambda model: policy_reasons(model, policy),
            True,
            require_quantizer(),
            Task(),
        )
        return forms.make(network)

    @cached_property
    def plain(self) -> Any:
        from MedQuantINT8Lib.quantization.fp32_network import Fp32Network

        return self.form(Fp32Network(self.fp32, self.setting.patch))

    @cached_property
    def equalized(self) -> Any:
        from MedQuantINT8Lib.quantization.equalization import equalized_network

        network = equalized_network(self.plain.network, self.patches)
        return None if network is None else self.form(network)

    @cached_property
    def scaled(self) -> Any:
        """Channels with scales of their own: those that equalization reaches, then the others."""
        from MedQuantINT8Lib.quantization.channel_scales import scaled_network

        through = self.plain if self.equalized is None else self.equalized
        network = scaled_network(through.network, self.patches[:_FEW])
        return self.equalized if network is None else self.form(network)

    @cached_property
    def best_scaled(self) -> Any:
        """The network with channels scaled and concatenations split, as far as it has such."""
        from MedQuantINT8Lib.quantization.channel_scales import scaled_network
        from MedQuantINT8Lib.quantization.equalization import equalized_network

        if self.split is None:
            return self.scaled or self.plain
        equal = equalized_network(self.split.network, self.patches)
        network = scaled_network(equal or self.split.network, self.patches[:_FEW]) or equal
        return self.split if network is None else self.form(network)

    @cached_property
    def split(self) -> Any:
        from MedQuantINT8Lib.quantization.concat_split import split_unlike
        from MedQuantINT8Lib.quantization.fp32_network import Fp32Network

        split = split_unlike(self.plain.network, self.patches[:_FEW])
        return None if split is None else self.form(Fp32Network(split.model, self.setting.patch))

    def corrected(self, form: Any) -> Any:
        form.correct(self.patches)
        return form.corrected

    def learned(self, fp32: Any, int8: Any) -> Any:
        from MedQuantINT8Lib.engines.fidelity import labels_of
        from MedQuantINT8Lib.quantization.rounding import RoundingOptions, with_learned_rounding

        labels, options = labels_of(self.setting.spec.output), RoundingOptions(seconds=_SECONDS)
        return with_learned_rounding(fp32, int8, self.patches[-_LEARNED_ON:], options, labels=labels)[0]

    def with_ranges(self, ranges: Mapping[str, float]) -> Any:
        from MedQuantINT8Lib.models import qdq
        from MedQuantINT8Lib.models.rewrites import copied

        network = copied(self.plain.int8)
        qdq.set_activation_scales(network, {name: value / 127 for name, value in ranges.items()})
        return network

    def halves(self, form: Any, int8: Any) -> Any:
        """Every layer's input in two halves."""
        from MedQuantINT8Lib.models.halves import quantized_inputs, with_halves
        from MedQuantINT8Lib.quantization.ladder import HALVES_MARGIN

        layers = quantized_inputs(int8).items()
        return with_halves(int8, {layer: HALVES_MARGIN * form.histograms[t].maximum / 127 for layer, t in layers})

    def weight_halves(self, form: Any, int8: Any) -> Any:
        from MedQuantINT8Lib.models import qdq
        from MedQuantINT8Lib.models.weight_halves import with_weight_halves

        return with_weight_halves(int8, form.fp32, qdq.layers_with_int8_weights(int8))


def with_pairs(fp32: Any, patch: tuple[int, int, int]) -> Any:
    """The network with Q/DQ pairs at every convolution, where the product has them as well; None of a network with matrix products.

    It needs no ModelOpt, which a machine with a GPU may lack.
    """
    from MedQuantINT8Lib.models import onnx_graph as graph
    from MedQuantINT8Lib.models.layers import weighted_layers
    from MedQuantINT8Lib.quantization import qdq_placement

    fixed = graph.fixed_shape(fp32, patch)
    layers = weighted_layers(fixed)
    if any(layer.op not in ("Conv", "ConvTranspose") for layer in layers):
        return None
    qdq_placement._quantize_convolutions(fixed, {layer.name for layer in layers if layer.op == "Conv"})
    qdq_placement._store_transposed_weights(fixed)
    qdq_placement._quantize_transposed_inputs(fixed, {layer.name for layer in layers if layer.op != "Conv"})
    return fixed


def _by_histogram(networks: Networks, method: str) -> Any:
    from MedQuantINT8Lib.progress import Task
    from MedQuantINT8Lib.quantization.activation_ranges import collect_histograms
    from MedQuantINT8Lib.quantization.histogram import activation_range

    if not hasattr(networks, "histograms"):
        networks.histograms = collect_histograms(
            networks.fp32,
            list(networks.plain.histograms),
            networks.patches,
            len(networks.patches),
            networks.setting.patch,
            Task(),
        )
    return networks.with_ranges({n: activation_range(h, method) for n, h in networks.histograms.items()})


def _all_windows(networks: Networks) -> Any:
    if networks.setting.all_windows is None:
        return None
    maxima: dict[str, float] = {}
    # The widest range is that of all windows: none of them has to be kept.
    windows = networks.setting.all_windows()
    for window in windows:
        statistics = networks.plain.network.statistics(window, list(networks.plain.histograms))
        maxima = {n: max(maxima.get(n, 0.0), statistics[n].maximum) for n in networks.plain.histograms}
    networks.about["all_windows"] = len(windows)
    return networks.with_ranges({name: value or 1.0 for name, value in maxima.items()})


def _by_output_error(networks: Networks) -> Any:
    """Each tensor's range is that with the least square error of the scores where FP32's labels meet, when it alone is quantized."""
    from MedQuantINT8Lib.engines.fidelity import labels_of
    from MedQuantINT8Lib.engines.float_session import float_session
    from MedQuantINT8Lib.models import onnx_graph as graph
    from MedQuantINT8Lib.models.halves import quantized_inputs

    maxima = {name: h.maximum for name, h in networks.plain.histograms.items()}
    sources = quantized_inputs(networks.plain.int8)
    fixed = graph.fixed_shape(networks.fp32, networks.setting.patch)
    switched, names = _with_switches(fixed, sources)
    run = float_session(switched.SerializeToString(), "fp32")
    input_name = graph.network_shape(fixed).input_name
    labels = labels_of(networks.setting.spec.output)

    def scores(patch: np.ndarray, steps: Mapping[str, float]) -> np.ndarray:
        inputs = {input_name: patch[None]}
        for tensor, (scale, on) in names.items():
            inputs[scale] = np.array([steps.get(tensor, 1.0)], np.float32)
            inputs[on] = np.array([float(tensor in steps)], np.float32)
        return np.asarray(run.run(None, inputs)[0])

    patches = networks.patches[:_SEARCHED_ON]
    exact = [scores(patch, {}) for patch in patches]
    where = [_border(labels(values)) for values in exact]

    def error(tensor: str, fraction: float) -> float:
        total = 0.0
        for patch, values, mask in zip(patches, exact, where, strict=True):
            difference = scores(patch, {tensor: fraction * maxima[tensor] / 127}) - values
            total += float((difference[..., mask] ** 2).mean())
        return total

    chosen = {t: min(_FRACTIONS, key=lambda f, t=t: error(t, f)) if maxima[t] > 0 else 1.0 for t in names}
    networks.about["narrowed"] = [sum(f < 1 for f in chosen.values()), len(chosen)]
    return networks.with_ranges({n: chosen.get(n, 1.0) * m or 1.0 for n, m in maxima.items()})


def _with_switches(model: Any, sources: Mapping[str, str]) -> tuple[Any, dict[str, tuple[str, str]]]:
    """The network with further inputs, for each tensor that is quantized: the scale, and 1 where it is to be rounded by it, else 0."""
    from MedQuantINT8Lib.models import onnx_graph as graph
    from MedQuantINT8Lib.models import rewrites
    from MedQuantINT8Lib.models.tensor_names import FreshNames

    onnx = graph.require_onnx()
    copy = rewrites.copied(model)
    fresh = FreshNames(copy)
    limits = [fresh("least"), fresh("largest")]
    for name, value in zip(limits, (-127, 127), strict=True):
        copy.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.float32), name))
    names: dict[str, tuple[str, str]] = {}
    rounded: dict[str, str] = {}
    nodes: list[Any] = []
    for node in copy.graph.node:
        tensor = sources.get(node.name)
        if tensor is not None and tensor in node.input:
            if tensor not in names:
                names[tensor] = scale, on = fresh(f"{tensor}_scale"), fresh(f"{tensor}_on")
                for name in names[tensor]:
                    copy.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]))
                steps = [
                    fresh(f"{tensor}_{part}")
                    for part in ("steps", "whole", "clipped", "back", "off", "part", "rounded")
                ]
                for kind, inputs, output in (
                    ("Div", [tensor, scale], steps[0]),
                    ("Round", [steps[0]], steps[1]),
                    ("Clip", [steps[1], *limits], steps[2]),
                    ("Mul", [steps[2], scale], steps[3]),
                    ("Sub", [steps[3], tensor], steps[4]),
                    ("Mul", [steps[4], on], steps[5]),
                    ("Add", [tensor, steps[5]], steps[6]),
                ):
                    nodes.append(onnx.helper.make_node(kind, inputs, [output], name=output))
                rounded[tensor] = steps[6]
            node.input[list(node.input).index(tensor)] = rounded[tensor]
        nodes.append(node)
    return graph.with_nodes(copy, nodes), names


def _border(label_map: np.ndarray) -> np.ndarray:
    """Where labels meet (A0, A1, A2); everywhere if they do not."""
    maps = label_map.reshape(-1, *label_map.shape[-3:])
    border = np.zeros(maps.shape[1:], bool)
    for axis in range(3):
        differs = (np.diff(maps.astype(np.int16), axis=axis + 1) != 0).any(0)
        for begin in (0, 1):
            index = [slice(None)] * 3
            index[axis] = slice(begin, maps.shape[axis + 1] - 1 + begin)
            border[tuple(index)] |= differs
    return border if border.any() else np.ones_like(border)


def _one_sided(int8: Any) -> Any:
    from MedQuantINT8Lib.models.one_sided import with_one_sided_ranges

    return with_one_sided_ranges(int8)


def _alone_one_sided(n: Networks) -> Any:
    network = _one_sided(n.plain.int8)
    return None if _same(network, n.plain.int8) else network


def _same(first: Any, second: Any) -> bool:
    return len(first.graph.initializer) == len(second.graph.initializer)


def _exact_for_halves(n: Networks) -> Any:
    """Weights that are learned where every input is exact, and inputs in halves, which all but are."""
    from MedQuantINT8Lib.models import qdq

    plain = n.plain
    layers = set(qdq.layers_with_int8_weights(plain.int8))
    learned = n.learned(plain.fp32, qdq.without_quantization(plain.int8, layers))
    return n.halves(plain, qdq.with_weights_of(plain.int8, learned))


def _input_halves(n: Networks) -> Any:
    from MedQuantINT8Lib.quantization.input_halves import with_input_halves

    ranges = {name: h.maximum for name, h in n.plain.histograms.items()}
    network, layers = with_input_halves(n.plain.int8, ranges, n.setting.patch)
    return network if layers else None


def _together(n: Networks) -> Any:
    """Channels scaled, concatenations split, one-sided ranges, and weights learned for what these leave."""
    form = n.best_scaled
    return n.learned(form.fp32, _one_sided(form.int8))


def _all_together(n: Networks) -> Any:
    form = n.best_scaled
    return n.weight_halves(form, n.halves(form, form.int8))


#: Each makes an INT8 network, or None where the method finds nothing to change; the cheap ones first.
METHODS: dict[str, Callable[[Networks], Any]] = {
    "plain": lambda n: n.plain.int8,
    "bias correction": lambda n: n.corrected(n.plain),
    "cross-layer equalization": lambda n: None if n.equalized is None else n.equalized.int8,
    "equalization and scales for each channel": lambda n: None if n.scaled is None else n.scaled.int8,
    "high biases absorbed, where never clipped": lambda n: absorbed(n, None),
    "high biases absorbed, three deviations": lambda n: absorbed(n, 3.0),
    "concatenations split": lambda n: None if n.split is None else n.split.int8,
    "one-sided zero points": _alone_one_sided,
    "learned rounding": lambda n: n.learned(n.plain.fp32, n.plain.int8),
    "the network's input in halves": _input_halves,
    "weights in halves": lambda n: n.weight_halves(n.plain, n.plain.int8),
    "inputs in halves": lambda n: n.halves(n.plain, n.plain.int8),
    "ranges by percentile (99.99)": lambda n: _by_histogram(n, "percentile"),
    "ranges by entropy": lambda n: _by_histogram(n, "entropy"),
    "ranges by mse of the tensor": lambda n: _by_histogram(n, "mse"),
    "ranges from all windows of the scans": _all_windows,
    "ranges by error of the scores": _by_output_error,
    "together: split, channels scaled, one-sided, learned rounding": _together,
    "together: inputs in halves, rounding learned for them": _exact_for_halves,
    "together: inputs and weights in halves": lambda n: n.weight_halves(n.plain, n.halves(n.plain, n.plain.int8)),
    "together: split, channels scaled, inputs and weights in halves": _all_together,
}
#: Methods that run the network some hundred times.
SLOW = ("ranges by error of the scores",)
