"""The INT8 networks that the accuracy guard chooses from: as ModelOpt places its pairs, with equalized channels, with learned rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import PackageError
from ..imaging.patches import Patch
from ..models import onnx_graph as graph
from ..models import qdq
from ..progress import Task
from .activation_ranges import histograms_for, scales_from
from .bias_correction import with_corrected_biases
from .calibration import CalibrationOptions, PatchSampler
from .channel_scales import scaled_network
from .effort import Learning
from .equalization import equalized_network
from .fp32_network import Fp32Network
from .guard_search import Alternative, Candidate
from .histogram import ActivationHistogram
from .qdq_placement import place

#: Patches that biases are corrected by.
FEW_PATCHES = 2


@dataclass
class Form:
    """A network with Q/DQ pairs and calibrated scales.

    Attributes:
        network: the FP32 network, with what is known of it on patches.
        reasons: why layers stayed in high precision.
        histograms: of the quantized tensors, in the network's own units.
    """

    network: Fp32Network
    int8: Any
    reasons: dict[str, str]
    histograms: dict[str, ActivationHistogram]
    scales: dict[str, float]
    corrected: Any = None

    @property
    def fp32(self) -> Any:
        """The FP32 network itself."""
        return self.network.model

    def correct(self, patches: Sequence[Patch]) -> None:
        """Make the form with corrected biases as well, by the first few patches."""
        means = self.network.input_means(patches[:FEW_PATCHES])
        self.corrected = with_corrected_biases(self.fp32, self.int8, means)


@dataclass
class Forms:
    """Makes INT8 forms of a network: as it is, and with equalized channels.

    Attributes:
        name: of the package, for messages.
        reasons_for: gives the layers of a network that stay in high precision, and why.
        few_channels: whether convolutions of few channels are quantized.
        quantizer: ModelOpt's.
    """

    name: str
    sampler: PatchSampler
    calibration: CalibrationOptions
    reasons_for: Callable[[Any], dict[str, str]]
    few_channels: bool
    quantizer: Any
    task: Task

    def make(self, network: Fp32Network) -> Form:
        """Place Q/DQ pairs and calibrate them."""
        fp32, patch = network.model, network.shape
        reasons = self.reasons_for(fp32)
        with self.task.stage("placing Q/DQ nodes"):
            first = next(iter(self.sampler))
            fixed = graph.fixed_shape(fp32, patch)
            with_pairs = place(self.quantizer, fixed, first, reasons, few_channels=self.few_channels)
        tensors = list(qdq.activation_tensors(with_pairs))
        if not tensors:
            raise PackageError(
                f"No layer of {self.name} can be quantized.", "See 'medquant quantize --verbose' for the reasons."
            )
        histograms = histograms_for(network, tensors, self.sampler, self.calibration, self.task)
        scales = scales_from(histograms, self.calibration)
        qdq.set_activation_scales(with_pairs, scales)
        return Form(network, with_pairs, reasons, histograms, scales)


@dataclass
class Candidates:
    """The networks that the guard chooses from; the source of each is its form, and the report of its rounding or None."""

    forms: Forms
    plain: Form
    patches: Sequence[Patch]
    learning: Learning
    _equalized: Form | None = None
    _learned: dict[int, Candidate] = field(default_factory=dict)
    _exact: dict[int, Candidate] = field(default_factory=dict)
    _asked_for_equalized: bool = False

    def first(self) -> Candidate:
        """The network as it is."""
        return self._of(self.plain, learned=False)

    def alternatives(self) -> list[Alternative]:
        """The other ways that take no minutes."""
        return [self.with_equalized_channels]

    def learned_alternatives(self) -> list[Alternative]:
        """The ways with learned rounding; none where the effort leaves them out."""
        return [self.learned, self.learned_of_equalized] if self.learning.possible else []

    def with_equalized_channels(self) -> Candidate | None:
        """The network with equalized channels; None where there is nothing to equalize."""
        form = self._equalized_form()
        return None if form is None else self._of(form, learned=False)

    def learned(self) -> Candidate:
        """The network with learned rounding."""
        return self._learned_once(self.plain)

    def learned_of_equalized(self) -> Candidate | None:
        """The network with equalized channels and learned rounding; None where there is nothing to equalize, or no time left."""
        form = self._equalized_form()
        if form is None or (id(form) not in self._learned and self.learning.out_of_time):
            return None
        return self._learned_once(form)

    def _learned_once(self, form: Form) -> Candidate:
        """The form with learned rounding; it takes minutes, and the guard may ask for it again."""
        if id(form) not in self._learned:
            self._learned[id(form)] = self._of(form, learned=True)
        return self._learned[id(form)]

    def _equalized_form(self) -> Form | None:
        """The form with equalized channels; None where there is nothing to equalize."""
        if not self._asked_for_equalized:
            self._asked_for_equalized = True
            plain = self.plain.network
            equal = equalized_network(plain, self.patches)
            # What lets no factor through, and what the square root left uneven.
            network = scaled_network(equal or plain, self.patches[:FEW_PATCHES]) or equal
            if network is not None:
                self._equalized = self.forms.make(network)
                self._equalized.correct(self.patches)
        return self._equalized

    def _of(self, form: Form, *, learned: bool) -> Candidate:
        is_equalized = form is not self.plain
        ranges = {name: histogram.maximum for name, histogram in form.histograms.items()}
        exact = (lambda: self._exact_once(form)) if self.learning.possible else None
        if not learned:
            plain, known = (form, None), form.network
            return Candidate(form.fp32, form.int8, form.corrected, ranges, is_equalized, plain, exact, network=known)
        network = self.learning.learned(form.network, form.int8)
        source, known = (form, network.report), form.network
        return Candidate(form.fp32, network.model, None, ranges, is_equalized, source, exact, True, known)

    def _exact_once(self, form: Form) -> Candidate:
        if id(form) not in self._exact:
            self._exact[id(form)] = self._for_exact_inputs(form)
        return self._exact[id(form)]

    def _for_exact_inputs(self, form: Form) -> Candidate:
        """The form with rounding that is learned where every input is exact, which inputs in two INT8 halves all but are."""
        float_inputs = qdq.without_quantization(form.int8, set(qdq.layers_with_int8_weights(form.int8)))
        network = self.learning.learned(form.network, float_inputs)
        int8 = qdq.with_weights_of(form.int8, network.model)
        return Candidate(form.fp32, int8, source=(form, network.report))
