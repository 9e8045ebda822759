"""Memory and time of writing DICOM segmentations of a large scan: what the process takes at its peak beyond the scan itself.

    python benchmarks/dicom_memory.py [--size 512 512 400] [--structures 105]

Writes a synthetic series of headers and empty slices, fills a label map with boxes of as many structures, and writes both kinds. The peak is the process's
resident memory (VmHWM), set back before each; without Linux it is the peak since the process began.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from MedQuantINT8Lib.imaging.dicom_segmentation import DICOM_KINDS, Algorithm, write_dicom_segmentation
from MedQuantINT8Lib.imaging.dicom_source import DicomSource
from MedQuantINT8Lib.imaging.volume import LPS_FROM_RAS, Grid
from MedQuantINT8Lib.models.spec import Label
from MedQuantINT8Lib.system import peak_memory, reset_peak_memory


def source_of(size: tuple[int, int, int]) -> DicomSource:
    """The headers of an axial CT series."""
    from pydicom.dataset import Dataset
    from pydicom.uid import CTImageStorage, generate_uid

    images = []
    for k in range(size[2]):
        data = Dataset()
        data.SOPClassUID, data.SOPInstanceUID, data.Modality = CTImageStorage, generate_uid(), "CT"
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.9"
        data.Columns, data.Rows = size[:2]
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, k], [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.SliceThickness = [0.8, 0.8], 1
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
            setattr(data, keyword, "")
        data.StudyDate = data.StudyTime = data.ReferringPhysicianName = ""
        images.append(data)
    lps = np.diag([0.8, 0.8, 1.0, 1.0])
    return DicomSource(
        images, np.array([[0, 0, k] for k in range(size[2])], float), True, Grid(size, LPS_FROM_RAS @ lps)
    )


def boxes(size: tuple[int, int, int], structures: int) -> np.ndarray:
    """A label map (K, J, I) of structures that reach through a fifth of the slices each."""
    labels = np.zeros(size[::-1], np.uint8 if structures < 256 else np.uint16)
    rng = np.random.default_rng(0)
    for value in range(1, structures + 1):
        start = [int(rng.integers(0, n - n // 5)) for n in labels.shape]
        labels[tuple(slice(s, s + n // 5) for s, n in zip(start, labels.shape, strict=True))] = value
    return labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=3, default=[512, 512, 400])
    parser.add_argument("--structures", type=int, default=105)
    arguments = parser.parse_args()
    size = (arguments.size[0], arguments.size[1], arguments.size[2])
    source, labels = source_of(size), boxes(size, arguments.structures)
    names = tuple(Label(n, f"structure {n}", n) for n in range(1, arguments.structures + 1))
    with tempfile.TemporaryDirectory() as folder:
        for kind in DICOM_KINDS:
            path = Path(folder) / f"{kind}.dcm"
            reset_peak_memory()
            before, began = peak_memory(), time.perf_counter()
            write_dicom_segmentation(path, labels, names, source, Algorithm("benchmark", "1"), kind)
            figures = {
                "kind": kind,
                "seconds": round(time.perf_counter() - began, 1),
                "file_mb": round(path.stat().st_size / 1e6, 1),
                "peak_beyond_scan_mb": round((peak_memory() - before) / 1e6, 1),
            }
            print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
