"""TensorRT for RTX, through its plug-in for ONNX Runtime: real INT8 on GeForce and RTX cards from one pip install.

The network is compiled once, in a process of its own (a build can then be stopped, and its log be read), into an ONNX file that
holds the compiled engine; kernels that the driver makes of it at the first run are kept beside it.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DependencyError, EngineError
from ...files import write_json
from ...progress import Task
from ..base import BuildOptions, EngineDescription, LayerRecord, Precision
from ..cuda.driver import has_driver
from ..error_causes import failure
from ..provenance import check_note, write_note
from .backend import prepared
from .layer_table import from_log, without_double_work
from .rtx_compile import compile_in_process
from .rtx_provider import MODULE, choose_device, last_words, modules, session_options, title_of

_FILE, _SOURCE, _LAYERS, _KERNELS = "network_ctx.onnx", "network.onnx", "layers.json", "kernels"


class TensorRTRTXBackend:
    name = "tensorrt_rtx"
    title = "TensorRT for RTX"
    real_int8 = True
    needs_gpu = True
    precisions: tuple[Precision, ...] = ("int8", "fp16", "fp32")

    def unavailable(self) -> str:
        try:
            # In this order: asking must load nothing where it cannot run anyway.
            if importlib.util.find_spec(MODULE) is not None and not has_driver():
                return "There is no NVIDIA GPU here, or its driver is missing."
            modules()
            choose_device("gpu")
        except (EngineError, DependencyError) as error:
            return str(error)
        return ""

    def version(self) -> str:
        ort, plugin = modules()
        return f"{plugin.__version__}, ONNX Runtime {ort.__version__}"

    def device_name(self, device: str) -> str:
        return title_of(choose_device(device)[1])

    def build(self, network: Path, folder: Path, options: BuildOptions) -> None:
        """Build as :meth:`build_with` does, without progress."""
        self.build_with(network, folder, options, Task())

    def build_with(self, network: Path, folder: Path, options: BuildOptions, task: Task) -> None:
        """Write the compiled network, the table of its layers and a note into ``folder``.

        Raises:
            EngineError: the network cannot be compiled; holds the compiler's last words.
            Cancelled: the task was cancelled; the compiler is stopped.
        """
        number, device = choose_device(options.device)
        model, macs = prepared(network, options)
        source = folder / _SOURCE
        source.write_bytes(model.SerializeToString())
        profile = profile_of(model, options)
        log = compile_in_process(source, folder / _FILE, number, {**profile, "nv_detailed_build_log": "1"}, task)
        source.unlink()
        layers = without_double_work(from_log(log, macs))
        write_json(folder / _LAYERS, [asdict(layer) for layer in layers])
        write_note(folder / _FILE, {**self._note(device, options), "profile": profile})

    def _note(self, device: Any, options: BuildOptions) -> dict[str, Any]:
        return {
            "version": self.version(),
            "gpu": title_of(device),
            "options": json.loads(json.dumps(options.to_json())),
        }

    def load(self, folder: Path, options: BuildOptions) -> TensorRTRTXEngine:
        ort, _ = modules()
        _, device = choose_device(options.device)
        note = check_note(folder / _FILE, self._note(device, options), "compiled network of TensorRT for RTX")
        settings = session_options(ort, device, {**note["profile"], "nv_runtime_cache_path": str(folder / _KERNELS)})
        try:
            session = ort.InferenceSession(str(folder / _FILE), settings)
        except Exception as error:
            raise failure(f"TensorRT for RTX cannot load its network: {last_words(error)}.", str(error)) from error
        rows = json.loads((folder / _LAYERS).read_text(encoding="utf-8"))
        layers = tuple(LayerRecord(**{**row, "sources": tuple(row["sources"])}) for row in rows)
        return TensorRTRTXEngine(
            session, EngineDescription(self.name, self.version(), title_of(device), layers or (_UNREPORTED,))
        )


#: Stands for the whole network where the compiler's log held no table: then nothing is claimed to be INT8.
_UNREPORTED = LayerRecord("network", "Graph", "not reported by the compiler", "", 1, int8=False)


def profile_of(model: Any, options: BuildOptions) -> dict[str, str]:
    """One to ``options.batch`` patches a call."""
    tensor = model.graph.input[0]
    sizes = [d.dim_value for d in tensor.type.tensor_type.shape.dim][1:]

    def shape(batch: int) -> str:
        return f"{tensor.name}:{'x'.join(map(str, (batch, *sizes)))}"

    return {
        "nv_profile_min_shapes": shape(1),
        "nv_profile_opt_shapes": shape(options.batch),
        "nv_profile_max_shapes": shape(options.batch),
    }


class TensorRTRTXEngine:
    """Satisfies :class:`..base.Engine`."""

    def __init__(self, session: Any, description: EngineDescription) -> None:
        self._session, self._description = session, description
        self._input, output = session.get_inputs()[0].name, session.get_outputs()[0]
        self._output, self._shape = output.name, output.shape[1:]
        self._outputs: dict[int, NDArray[np.float32]] = {}

    def infer(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run up to the batch that the engine was built for; the result is valid until the next call of that size.

        Raises:
            EngineError: the GPU failed.
        """
        import onnxruntime as ort

        count = batch.shape[0]
        if count not in self._outputs:
            self._outputs[count] = np.empty((count, *map(int, self._shape)), np.float32)
        outputs = self._outputs[count]
        binding = self._session.io_binding()
        binding.bind_cpu_input(self._input, np.ascontiguousarray(batch, np.float32))
        binding.bind_ortvalue_output(self._output, ort.OrtValue.ortvalue_from_numpy(outputs))
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise failure(f"TensorRT for RTX could not run the network: {last_words(error)}.", str(error)) from error
        return outputs

    def describe(self) -> EngineDescription:
        return self._description

    def close(self) -> None:
        self._session = None
        self._outputs = {}
