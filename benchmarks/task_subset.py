"""What some structures of a task cost beside all of them: python benchmarks/task_subset.py total scan.nii.gz liver spleen pancreas

Every run is one of a process that has the engines built and the packages loaded; the first run of each kind is not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace

from MedQuantINT8Lib.imaging.volume_files import read_volume
from MedQuantINT8Lib.inference import pipeline
from MedQuantINT8Lib.inference.engine_choice import EngineChoice
from MedQuantINT8Lib.inference.engine_pool import KeepingPool
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
from MedQuantINT8Lib.inference.task_model import load_model
from MedQuantINT8Lib.models.installed import resolve
from MedQuantINT8Lib.progress import Task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("scan")
    parser.add_argument("structures", nargs="+")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    volume = read_volume(args.scan)
    choice = EngineChoice(precision=args.precision, device=args.device)
    options = SegmentationOptions(check_ranges=False)
    rows = {}
    with load_model(resolve(args.model)) as model:
        for name, wanted in (("all", options), ("some", replace(options, structures=tuple(args.structures)))):
            pool = KeepingPool()
            runs = [
                pipeline.segment(model, volume, choice, wanted, Task(), pool=pool) for _ in range(1 + max(1, args.runs))
            ]
            pool.clear()
            rows[name] = {
                "seconds": statistics.median(run.seconds["total"] for run in runs[1:]),
                "windows": runs[-1].result.windows,
                "parts": [part["name"] for part in runs[-1].parts],
            }
    rows["share"] = {key: rows["some"][key] / rows["all"][key] for key in ("seconds", "windows")}
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
