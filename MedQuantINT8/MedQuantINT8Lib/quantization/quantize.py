"""FP32 ONNX to INT8 Q/DQ ONNX through NVIDIA ModelOpt, with our own calibration and a written policy.

ModelOpt (see :mod:`.qdq_placement`) places the Q/DQ pairs and quantizes the weights. The activations' scales are ours:
ModelOpt knows only two methods for INT8 and takes any other word for "max". What stays in high precision is decided by
:class:`QuantizationPolicy` and, where INT8 agrees too little with FP32, by the guard in :mod:`.accuracy_guard`.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

from ..errors import PackageError
from ..inference.windows import middle_of
from ..models import onnx_graph as graph
from ..models import qdq
from ..models.engine_form import SYMMETRIC
from ..models.layers import weighted_layers
from ..models.package import FP32, ModelPackage
from ..progress import Task
from .accuracy_guard import OTHER_FORM_STAGE, Stopwatch, guard, time_layers
from .calibration import Calibration, CalibrationOptions, PatchSampler
from .candidates import FEW_PATCHES, Candidates, Form, Forms
from .concat_split import split_unlike
from .effort import EFFORTS, Learning, check_effort
from .four_bit_weights import FourBitWeights
from .fp32_network import Fp32Network
from .guard_result import Budget, GuardResult
from .guard_search import AGREEMENT_STAGE, INPUT_STAGE
from .held_out import expected_runs, stage_name
from .held_out_comparison import HeldOutComparison
from .latency import EngineStopwatch
from .measurer import Measurer
from .qdq_placement import require_quantizer
from .quantized_package import QuantizationReport, versions, with_report, write_quantized
from .score_agreement import ScoreAgreement
from .search_time import SearchTime


@dataclass(frozen=True)
class QuantizationPolicy:
    """The policy of a quantization: which layers stay in high precision.

    Attributes:
        transposed: quantize the inputs of transposed convolutions too (default yes): OpenVINO and CUDA INT8 run them in INT8,
            TensorRT those whose kernel is their stride; the others it is given in float.
        attention: quantize products of two activations too: queries with keys, weights with values (OpenVINO runs them in
            float whatever the graph says, so that quantizing them would only add error and passes; default no).
            LayerNormalization, softmax and GELU are always in float: no engine has INT8 for them.
        few_channels: quantize convolutions of so few channels that ModelOpt leaves them out.
        first, head: keep the first or the last convolution in high precision.
        keep: layers (ONNX node names) to keep in high precision.
        budget: what INT8 may cost on the calibration patches. Where it costs more, layers go back to high precision,
            worst first.
        effort: how long may be tried: "fast" rounds weights to nearest, "normal" learns rounding where the budget does not
            hold, "best" learns it in any case.
        weight_bits: 8, or 4 for weights that are packed in the file and are INT8 in an engine; activations have 8.
    """

    transposed: bool = True
    attention: bool = False
    few_channels: bool = True
    first: bool = False
    head: bool = False
    keep: tuple[str, ...] = ()
    budget: Budget = Budget()
    effort: str = "normal"
    weight_bits: int = 8


def quantize_package(
    package: ModelPackage,
    sampler: PatchSampler,
    target: str | os.PathLike[str],
    calibration: CalibrationOptions,
    policy: QuantizationPolicy = QuantizationPolicy(),
    task: Task | None = None,
    stopwatch: Stopwatch | None = None,
) -> tuple[ModelPackage, QuantizationReport]:
    """Quantize a package's FP32 network and write the package, with both networks, to ``target``.

    Nothing is written before everything is done and proved; what the layers in halves and in float cost on the real engine is timed after
    that, and then added to the report.

    Args:
        stopwatch: times the real engine on a candidate network, to tell what each layer costs that goes back to float.
            What it times should be the windows that will run. Where it says in which form its engine computes
            (:class:`.latency.EngineStopwatch`), INT8 is measured and rounding learned in that form; else in the package's own.

    Raises:
        DependencyError: ModelOpt is not installed.
        InputError: calibration scans that cannot be used.
        PackageError: a network that cannot be quantized, or a result that breaks the rules of :mod:`..models.onnx_graph`.
    """
    task = task or Task()
    check_effort(policy.effort, policy.weight_bits)
    sampler.check_labels()
    quantizer = require_quantizer()
    with graph.damage(f"{package.spec.name}: {FP32}", "Import the network again.", "cannot be quantized"):
        return _quantized(package, sampler, target, _Ways(calibration, policy, stopwatch), quantizer, task)


@dataclass(frozen=True)
class _Ways:
    calibration: CalibrationOptions
    policy: QuantizationPolicy
    stopwatch: Stopwatch | None


def _quantized(
    package: ModelPackage,
    sampler: PatchSampler,
    target: str | os.PathLike[str],
    ways: _Ways,
    quantizer: Any,
    task: Task,
) -> tuple[ModelPackage, QuantizationReport]:
    calibration, policy, stopwatch = ways.calibration, ways.policy, ways.stopwatch
    effort = EFFORTS[policy.effort]
    time = SearchTime(effort.search_seconds)
    fp32 = graph.load_network(package.onnx_path("fp32"))
    if graph.opset_of(fp32) < OPSET:
        # ModelOpt raises it as well, and would name layers anew: the two networks are compared layer by layer.
        fp32 = graph.at_opset(fp32, OPSET, f"{package.spec.name}: {FP32}")
    graph.name_nodes(fp32)
    with task.stage("reading"):
        count = _compared_patches(sampler.patch)
        compared = sampler.first_samples(count)
        patches = [sample.patch for sample in compared]
        references = [sample.labels for sample in compared if sample.labels is not None]
    network = Fp32Network(fp32, sampler.patch)
    split = split_unlike(network, patches[:FEW_PATCHES], policy_reasons(fp32, policy))
    tensors = graph.Graph(fp32)
    if split is not None:
        fp32 = split.model
        network = Fp32Network(fp32, sampler.patch)
    network.keep_scores(patches, middle_of(sampler.patch, package.spec.window.overlap))
    task.plan(_plan(sampler, calibration, len(patches)))
    forms = Forms(
        package.spec.name,
        sampler,
        calibration,
        lambda network: policy_reasons(network, policy),
        policy.few_channels,
        quantizer,
        task,
    )
    plain = forms.make(network)
    plain.correct(patches)
    labels = ScoreAgreement(package.spec).labels
    form_of_engine = stopwatch.form if isinstance(stopwatch, EngineStopwatch) else SYMMETRIC

    def learning_of(weight_bits: int) -> Learning:
        apart = count == COMPARED_PATCHES
        return Learning(sampler, effort, weight_bits, count, labels, task, apart=apart, form=form_of_engine, time=time)

    learning = learning_of(8)
    if policy.weight_bits == 8:
        runs_after = min(expected_runs(sampler), _RUNS_OF_TWO_SCANS) + _RUNS_AT_THE_END * len(patches)
        time.limit(effort.seconds_after_calibration(time.spent, network.seconds_a_run, runs_after))
    candidates = Candidates(forms, plain, patches, learning)
    comparison = HeldOutComparison(network, calibration, sampler, package.spec, form_of_engine, task)
    verify = comparison.agreement if policy.budget.agreement > 0 else None

    def find() -> tuple[Any, GuardResult]:
        return guard(
            candidates.first(),
            patches,
            package.spec,
            policy.budget,
            task,
            references,
            candidates.alternatives(),
            learned=candidates.learned_alternatives(),
            thorough=effort.always,
            form=form_of_engine,
            verify=verify,
            time=time,
        )

    if policy.weight_bits == 4:
        measurer = Measurer(network, patches, package.spec, references, form=form_of_engine)
        four_bits = FourBitWeights(learning_of(4), measurer, package.spec, policy.budget, task, verify, time)
        int8, guarded = four_bits.search(plain, find)
    else:
        int8, guarded = find()
    # What there was nothing to measure of.
    task.skip(AGREEMENT_STAGE, INPUT_STAGE, OTHER_FORM_STAGE)
    if not guarded.kept and learning.lacks_patches:
        guarded.notes.append(
            f"rounding was not learned, as all patches were needed to compare networks on; draw more than {count} (--patches)"
        )
    form, rounding = guarded.source
    reasons = form.reasons | {name: f"the guard: {why}" for name, why in guarded.returned.items()}
    held_out = comparison.of(int8, form)
    # A tensor that a layer takes in halves has a range of its own.
    own_names = _names_before_scaling(form, plain)
    wider = {
        own_names[name]: scale / form.scales[name]
        for name, scale in qdq.activation_scales(int8).items()
        if name in form.scales
    }
    int8 = qdq.compacted(int8)
    if problems := qdq.check_int8(int8):
        raise PackageError(
            f"The quantized network breaks the rules: {problems[0]}.", "Please report this with the network."
        )
    measured = Calibration(
        calibration,
        # What a split convolution reads may be no tensor of the package's FP32, in which a run looks.
        {
            name: scale * wider.get(name, 1.0)
            for name, scale in ((own_names[tensor], scale) for tensor, scale in form.scales.items())
            if name in tensors.producer or name in tensors.readers
        },
        # A run looks at the tensors of FP32, whose channels are not equalized.
        {name: plain.histograms[name].maximum for name in own_names.values()},
        sampler.drawn,
        sampler.volume_hashes,
        sampler.warnings,
        versions(),
        graph.network_shape(fp32).input_name,
        {} if form is plain else {name: 127 * scale * wider.get(name, 1.0) for name, scale in plain.scales.items()},
    )
    report = QuantizationReport(
        [],
        0,
        0,
        0,
        guarded,
        held_out,
        split=[] if split is None else split.layers,
        effort=policy.effort,
        weight_bits=policy.weight_bits,
        rounding=rounding,
    )
    package = write_quantized(package, int8, measured, report, reasons, target)
    # An engine that ends the process by a fault of its own finds the network written.
    if stopwatch is not None and time_layers(guarded, stopwatch, task):
        with package:
            return with_report(package, measured, report, target), report
    return package, report


def _names_before_scaling(form: Form, plain: Form) -> dict[str, str]:
    """The form's quantized tensors, each with the name of that of the plain form that it is, or whose channels it has scaled."""
    network = graph.Graph(form.fp32)
    return {name: name if name in plain.histograms else str(network.producer[name].input[0]) for name in form.scales}


def _plan(sampler: PatchSampler, calibration: CalibrationOptions, compared: int) -> dict[str, float]:
    """The stages of quantizing and the runs of a network that each of them takes, where the budget holds at once.

    What the guard does where it does not hold depends on the network; its stages then add their own time.
    """
    # Methods other than "max" count the values of every tensor, which takes about as long again.
    calibrating = len(sampler) * (1.0 if calibration.method == "max" else 2.0)
    return {
        "calibrating": calibrating,
        # Where biases are corrected, as they are in most networks.
        AGREEMENT_STAGE: 2.0 * compared,
        INPUT_STAGE: float(compared),
        OTHER_FORM_STAGE: float(compared),
        stage_name(several=sampler.volumes > 1): float(expected_runs(sampler)),
    }


def _compared_patches(patch: tuple[int, int, int]) -> int:
    return COMPARED_PATCHES if math.prod(patch) <= _LARGE_PATCH else FEW_PATCHES


#: What ModelOpt raises older networks to.
OPSET = 19
#: Patches on which INT8 is compared with FP32, of as many volumes as there are. Two let a network pass that lost a structure on the next
#: scan (docs/results/labelled.md); of patches that are whole volumes two have to do.
COMPARED_PATCHES, _LARGE_PATCH = 6, 1 << 21
#: Runs of the network for each compared patch that come after the search: with the input in halves, in the form of other engines, on the
#: patches that a few had stood for, and on the real engine.
_RUNS_AT_THE_END = 4
#: Runs of a comparison on two held-out scans; that more scans take longer is not taken off the search.
_RUNS_OF_TWO_SCANS = 24
#: Longest side of a calibration patch where the network is free in size: larger ones cost time and teach little.
CALIBRATION_SIDE = 96


def calibration_patch(package: ModelPackage) -> tuple[int, int, int]:
    """The size of the patches that a network is calibrated on: the model's, or less where its graph is dynamic."""
    spec = package.spec
    size = spec.window.patch_size
    shape = graph.network_shape(graph.load_network(package.onnx_path("fp32")))
    if all(shape.spatial) or spec.geometry.size:
        return size
    a, b, c = (min(n, max(m, CALIBRATION_SIDE // m * m)) for n, m in zip(size, spec.window.multiples, strict=True))
    return a, b, c


def policy_reasons(model: Any, policy: QuantizationPolicy) -> dict[str, str]:
    """Layers (node names) that the policy keeps in high precision, and why.

    Raises:
        PackageError: ``policy.keep`` names a layer that does not exist.
    """
    layers = weighted_layers(model)
    names = {layer.name for layer in layers}
    unknown = [name for name in policy.keep if name not in names]
    if unknown:
        raise PackageError(f"The network has no layer {unknown[0]!r}.", f"Its layers are: {', '.join(sorted(names))}.")
    reasons = dict.fromkeys(policy.keep, "kept by request")
    convolutions = [layer.name for layer in layers if layer.op == "Conv"]
    if policy.first and convolutions:
        reasons.setdefault(convolutions[0], "the first convolution, kept by request")
    if policy.head and convolutions:
        reasons.setdefault(convolutions[-1], "the head, kept by request")
    network = graph.Graph(model)
    for node in network.nodes:
        if node.op_type == "MatMul" and not policy.attention and not any(map(network.is_constant, node.input)):
            reasons.setdefault(node.name, "a product of two activations (attention): INT8 brings nothing")
    for layer in layers:
        if layer.op == "ConvTranspose" and not policy.transposed:
            reasons.setdefault(layer.name, "a transposed convolution, kept by request (its weights are stored as INT8)")
    return reasons
