"""MedQuantINT8: 3D medical segmentation networks in real 8-bit integers.

Importing this package costs milliseconds: torch, ONNX, the engines and Slicer are imported by the function that
needs them, never here. What it does do is to keep them from reporting to their makers (:mod:`.telemetry`).
"""

from .former_names import install
from .telemetry import silence

__version__ = "0.1.0"

silence()
install()
