"""Makes Resources/demo.zip: the demo network with its INT8 form, calibrated on synthetic abdomens.

python tools/make_demo_model.py
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "MedQuantINT8"))


def main() -> None:
    from MedQuantINT8Lib.imaging.phantom import make_phantom, phantom_spec
    from MedQuantINT8Lib.importers.onnx import import_onnx
    from MedQuantINT8Lib.quantization.calibration import CalibrationOptions, PatchSampler
    from MedQuantINT8Lib.quantization.quantize import quantize_package
    from MedQuantINT8Lib.resources import resource

    options = CalibrationOptions(patches=20)
    with tempfile.TemporaryDirectory() as scratch:
        spec = replace(phantom_spec(), name="demo")
        package = import_onnx(resource("phantom_unet.onnx"), spec, Path(scratch) / "fp32")
        sampler = PatchSampler(
            [lambda s=s: make_phantom(s)[0] for s in (11, 12, 13)], spec, spec.window.patch_size, options
        )
        made, report = quantize_package(package, sampler, Path(scratch) / "int8", options)
        made.save(ROOT / "MedQuantINT8" / "Resources" / "demo.zip")
    print(f"{100 * report.int8_mac_share:.1f} % of the work quantized, agreement {report.guard.agreement:.4f}")


if __name__ == "__main__":
    main()
