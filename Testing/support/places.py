"""Where things lie in the repository, for tests and scripts: one place to change when they move."""

from __future__ import annotations

from pathlib import Path

#: The repository.
ROOT = Path(__file__).resolve().parent.parent.parent
#: The folder from which ``import MedQuantINT8Lib`` works without an installation.
LIBRARY = ROOT / "MedQuantINT8"
TESTING = ROOT / "Testing"
#: Networks that belong to the project, for tests.
NETWORKS = TESTING / "Networks"
#: The stand-in for Slicer's window: on the path only of what runs in it, since its modules are called as Slicer's.
HOST = TESTING / "host"
