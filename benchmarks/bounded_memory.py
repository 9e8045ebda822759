"""Peak memory of blending 105 classes, beside MONAI's sliding_window_inference where that fits; each in its own process.

The network is a cheap ONNX graph, the image times one number a class, so that memory is that of blending.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "Testing" / "support"), str(HERE.parent / "MedQuantINT8")]

CLASSES, PATCH, OVERLAP = 105, (96, 96, 96), 0.5


def weights() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, CLASSES, 1, 1, 1)).astype(np.float32)


def image(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(1, *shape)).astype(np.float32)


def stub():
    from onnx import TensorProto, helper, numpy_helper

    from MedQuantINT8Lib.engines.onnxruntime import session

    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, *PATCH]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES, *PATCH]),
    ]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [numpy_helper.from_array(weights(), "w")]
    )
    run = session(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9).SerializeToString(), "fp32"
    )
    # One output array for all windows, for both sides: ONNX Runtime would make two of 371 MB at each call.
    scores = np.empty((1, CLASSES, *PATCH), np.float32)

    def infer(batch: np.ndarray) -> np.ndarray:
        binding = run.io_binding()
        binding.bind_cpu_input("x", batch)
        binding.bind_output("y", "cpu", 0, np.float32, scores.shape, scores.ctypes.data)
        run.run_with_iobinding(binding)
        return scores

    return infer


def ours(shape: tuple[int, int, int], output: str) -> None:
    from MedQuantINT8Lib.inference.blending import LabelSink
    from MedQuantINT8Lib.inference.sliding_window import SlidingWindow, slide
    from MedQuantINT8Lib.inference.windows import plan_windows
    from MedQuantINT8Lib.models.spec import Window

    run = stub()
    empty = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data, window = image(shape), Window(PATCH, overlap=OVERLAP)
    plan = plan_windows(shape, window, PATCH)
    labels = LabelSink(shape, np.arange(CLASSES, dtype=np.uint8))
    budget = 3 << 30  # the segmenter's own
    dtype = np.float32 if plan.carried_bytes(CLASSES, 4) <= budget else np.float16
    began = time.perf_counter()
    result = slide(data, run, labels, SlidingWindow(plan, window, CLASSES, carried_dtype=dtype, carried_bytes=budget))
    _report(output, labels.labels, empty, time.perf_counter() - began, np.dtype(dtype).name, result.columns)


def monai(shape: tuple[int, int, int], output: str) -> None:
    import torch
    from monai.inferers import sliding_window_inference

    run = stub()
    empty = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = torch.from_numpy(image(shape))[None]
    began = time.perf_counter()
    scores = sliding_window_inference(
        data, PATCH, 1, lambda x: torch.from_numpy(run(x.numpy())), overlap=OVERLAP, mode="gaussian"
    )
    _report(output, scores[0].argmax(0).numpy().astype(np.uint8), empty, time.perf_counter() - began, "float32")


def _report(output: str, labels: np.ndarray, empty_kb: int, seconds: float, dtype: str, columns: int = 1) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    np.save(output, labels)
    print(
        json.dumps(
            {"peak_gb": (peak - empty_kb) * 1024 / 1e9, "seconds": seconds, "carried": dtype, "columns": columns}
        )
    )


def main() -> None:
    rows = []
    for shape, sides in (((128, 160, 160), ("ours", "monai")), ((400, 512, 512), ("ours",))):
        found = {}
        with tempfile.TemporaryDirectory() as scratch:
            for side in sides:
                path = f"{scratch}/{side}.npy"
                done = subprocess.run(
                    [sys.executable, __file__, side, *map(str, shape), path], capture_output=True, text=True, check=True
                )
                found[side] = json.loads(done.stdout.splitlines()[-1])
                found[side]["labels"] = np.load(path)
        labels = [f.pop("labels") for f in found.values()]
        rows.append(
            {
                "shape": list(shape),
                "whole_scores_gb": 4 * CLASSES * int(np.prod(shape)) / 1e9,
                **found,
                "other_labels": float((labels[0] != labels[1]).mean()) if len(labels) > 1 else None,
            }
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        side, a, b, c, path = sys.argv[1:]
        (ours if side == "ours" else monai)((int(a), int(b), int(c)), path)
    else:
        main()
