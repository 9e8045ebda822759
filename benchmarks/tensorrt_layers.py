"""What the TensorRT-RTX 1.7 compiler makes of the seven networks at the study's size: writes docs/results/tensorrt.json and .md.

    python benchmarks/tensorrt_layers.py [NAME ...]

No GPU is needed and nothing runs: the builder's own table of layers says which compute in INT8, and how many bytes they read and
write. Networks have random weights and are quantized on two patches; see Testing/support/tensorrt_at_hand.py for the mix of libraries.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "Testing" / "support"), str(ROOT / "MedQuantINT8")]
TARGET = ROOT / "docs" / "results" / "tensorrt.json"
#: Less INT8 work than this in any of the seven is a fault of the lowering, and makes this script fail.
EXPECTED_SHARE = 0.96
#: INT8 networks in other forms, to choose the lowering by: name, and what replaces `backend.lowered`.
FORMS = {
    "FP16 around, instance norms written out (as built)": "",
    "FP16 around, instance norms as one operator": "from MedQuantINT8Lib.engines.tensorrt import lowering\nlowering.with_norms_written_out = lambda model: model\n",
    "FP32 around": "from MedQuantINT8Lib.models import rewrites\nbackend.lowered = lambda model, precision: rewrites.with_pointwise_deconvolutions(model)\n",
}


def row(name: str) -> dict[str, Any]:
    import tensorrt_at_hand as at_hand
    from MedQuantINT8Lib.evaluation.study_tables import study_package
    from MedQuantINT8Lib.importers.networks import PATCH, study_network
    from MedQuantINT8Lib.progress import Task

    network = study_network(name)
    with tempfile.TemporaryDirectory() as scratch:
        libraries = at_hand.rtx_libraries(Path(scratch) / "libraries")
        package, quantized = study_package(network, Path(scratch), Task())
        size = [str(n) for n in PATCH]
        found = {
            p: at_hand.run("11.4", libraries, at_hand.COMPILE, str(package.onnx_path(p)), p, *size)
            for p in ("int8", "fp16", "fp32")
        }
        forms = {}
        for form, change in FORMS.items():
            code = at_hand.COMPILE.replace("network, precision, *patch", f"{change}network, precision, *patch", 1)
            forms[form] = (
                at_hand.run("11.4", libraries, code, str(package.onnx_path("int8")), "int8", *size)
                if change
                else found["int8"]
            )
    kept = ("seconds", "bytes", "kinds", "layers", "share", "verdict", "traffic", "int8_layers", "not_int8")
    return {
        "network": name,
        "title": network.title,
        "int8_share_of_graph": quantized["int8_share_of_graph"],
        **{precision: {k: value[k] for k in kept} for precision, value in found.items()},
        "forms": {
            form: {k: value[k] for k in ("layers", "share", "traffic", "kinds")} for form, value in forms.items()
        },
    }


def page(value: dict[str, Any]) -> str:
    rows = value["rows"]
    lines = [
        "# The seven networks as a TensorRT compiler places them",
        "",
        "Made by `benchmarks/tensorrt_layers.py`; do not edit. Parsed and built by the TensorRT-RTX 1.7 library through `engines/tensorrt/` under the",
        f"bindings of TensorRT 11.4, without a GPU: nothing ran, and no time is told. 96 x 96 x 96, batch open; {value['date']}.",
        "",
        "| network | INT8 share of multiply-accumulates | verdict | plan MB INT8 / FP16 / FP32 | layers INT8 / FP16 / FP32 | MB read and written a patch, INT8 / FP16 / FP32 |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for r in rows:
        three = [r[p] for p in ("int8", "fp16", "fp32")]
        lines.append(_line(r, three))
    lines += [
        "",
        "## What the form of the graph costs, INT8",
        "",
        "| network | form | layers | INT8 share | MB read and written a patch |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for r in rows:
        lines += [
            f"| {r['title']} | {form} | {x['layers']} | {100 * x['share']:.1f} % | {x['traffic'] / 1e6:.0f} |"
            for form, x in r["forms"].items()
        ]
    return "\n".join(lines + _blocks(value.get("blocks", []))) + "\n"


def _blocks(rows: list[dict[str, Any]]) -> list[str]:
    """What tensorrt_forms.py found."""
    if not rows:
        return []
    plain = rows[0]
    lines = [
        "",
        "## What one operator costs between INT8 convolutions, by its form",
        "",
        "Made by `benchmarks/tensorrt_forms.py`: two 3x3x3 convolutions of 32 channels, 48 x 48 x 48, one patch; more: against no operator.",
        "",
        "| operator | layers | more | MB read and written | more | multiply-accumulates in INT8 |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in rows:
        layers, traffic = r["layers"] - plain["layers"], (r["traffic"] - plain["traffic"]) / 1e6
        lines.append(
            f"| {r['form']} | {r['layers']} | {layers:+d} | {r['traffic'] / 1e6:.1f} | {traffic:+.1f} | {100 * r['share']:.0f} % |"
        )
    return lines


def _line(r: dict[str, Any], three: list[dict[str, Any]]) -> str:
    plans = " / ".join(f"{x['bytes'] / 1e6:.1f}" for x in three)
    layers = " / ".join(str(x["layers"]) for x in three)
    traffic = " / ".join(f"{x['traffic'] / 1e6:.0f}" for x in three)
    return (
        f"| {r['title']} | {100 * r['int8']['share']:.1f} % | {r['int8']['verdict']} | {plans} | {layers} | {traffic} |"
    )


def main() -> None:
    from MedQuantINT8Lib.importers.networks import STUDY

    rows = {r["network"]: r for r in json.loads(TARGET.read_text())["rows"]} if TARGET.exists() else {}
    for name in sys.argv[1:] or STUDY:
        try:
            rows[name] = row(name)
        except AssertionError as error:
            print(name, str(error)[-600:], flush=True)
            continue
        held = json.loads(TARGET.read_text()) if TARGET.exists() else {}
        value = {**held, "date": time.strftime("%Y-%m-%d"), "rows": [rows[n] for n in STUDY if n in rows]}
        TARGET.write_text(json.dumps(value, indent=1) + "\n")
        TARGET.with_suffix(".md").write_text(page(value))
        print(name, rows[name]["int8"]["share"], flush=True)
    poor = [name for name, r in rows.items() if r["int8"]["share"] < EXPECTED_SHARE]
    sys.exit(f"less than {100 * EXPECTED_SHARE:.0f} % of the work in INT8: {', '.join(poor)}" if poor else 0)


if __name__ == "__main__":
    main()
