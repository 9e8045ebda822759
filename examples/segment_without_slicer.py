"""Segment a scan with an INT8 engine from Python, without 3D Slicer.

    python examples/segment_without_slicer.py [--scan FILE] [--model MODEL] [--output FILE]

Without a scan a small synthetic abdomen is segmented with the demo network. Needs: pip install '.[openvino,onnxruntime]'
"""

from __future__ import annotations

import argparse
import sys

from MedQuantINT8Lib.errors import MedQuantError
from MedQuantINT8Lib.imaging.phantom import make_phantom
from MedQuantINT8Lib.imaging.segmentation_files import write_segmentation
from MedQuantINT8Lib.imaging.volume_files import read_volume
from MedQuantINT8Lib.inference.pipeline import EngineChoice, segment
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
from MedQuantINT8Lib.models.package import ModelPackage
from MedQuantINT8Lib.progress import Task
from MedQuantINT8Lib.resources import resource


def main() -> int:
    parser = argparse.ArgumentParser(description="Segment a scan with an INT8 engine, without 3D Slicer.")
    parser.add_argument("--scan", help="NIfTI, NRRD, MetaImage or a DICOM folder (default: a synthetic abdomen)")
    parser.add_argument("--model", default=str(resource("demo.zip")), help="model package (default: the demo network)")
    parser.add_argument("--output", default="segmentation.seg.nrrd", help="default: %(default)s")
    args = parser.parse_args()
    try:
        # volume.data has the shape (channels, K, J, I); its matrix goes from voxels (I, J, K) to millimeters (RAS).
        volume = read_volume(args.scan) if args.scan else make_phantom(1000, (84, 68, 37), (4.0, 4.0, 5.0))[0]
        with ModelPackage.load(args.model) as package:
            # The engine is built on first use, compared with its simulation on this scan, and kept for the next run.
            choice, options = EngineChoice(precision="int8"), SegmentationOptions(overlap=0.25)
            run = segment(package, volume, choice, options, Task())
            write_segmentation(args.output, run.result.labels, run.result.ijk_to_ras, package.spec.labels)
            labels = package.spec.labels
    except MedQuantError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    report = run.engine["description"]
    print(f"{run.engine['title']}: {report['verdict']}, {100 * report['int8_mac_share']:.1f} % of the work in INT8")
    for note in run.result.notes:
        print(f"note: {note}")
    for label in labels:
        milliliters = (run.result.labels == label.value).sum() * volume.grid.voxel_ml
        print(f"{label.name:20} {milliliters:8.1f} ml")
    print(f"wrote {args.output} in {run.seconds['total']:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
