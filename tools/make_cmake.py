"""Writes MedQuantINT8/CMakeLists.txt: every script and resource of the module, since what is not listed is not installed.

python tools/make_cmake.py
"""

from __future__ import annotations

from pathlib import Path

MODULE = Path(__file__).resolve().parent.parent / "MedQuantINT8"


def scripts() -> list[str]:
    paths = [p.relative_to(MODULE).as_posix() for p in MODULE.rglob("*.py")]
    return ["MedQuantINT8.py", *sorted(name for name in paths if name != "MedQuantINT8.py"), "MedQuantINT8Lib/py.typed"]


def resources() -> list[str]:
    suffixes = (".json", ".onnx", ".zip", ".txt", ".ui", ".png")
    paths = [path for path in (MODULE / "Resources").rglob("*") if path.suffix in suffixes]
    # CUDA C that the engines compile at run time, and the reports' templates: texts to Python, which are copied and not byte-compiled.
    paths += [path for path in (MODULE / "MedQuantINT8Lib").rglob("*") if path.suffix in (".cu", ".cuh", ".html")]
    return sorted(path.relative_to(MODULE).as_posix() for path in paths)


def text() -> str:
    def listed(names: list[str]) -> str:
        return "\n".join(f"  {name}" for name in names)

    return f"""# Written by tools/make_cmake.py; a test compares it with the tree.
set(MODULE_NAME MedQuantINT8)

set(MODULE_PYTHON_SCRIPTS
{listed(scripts())}
  )

set(MODULE_PYTHON_RESOURCES
{listed(resources())}
  )

slicerMacroBuildScriptedModule(
  NAME ${{MODULE_NAME}}
  SCRIPTS ${{MODULE_PYTHON_SCRIPTS}}
  RESOURCES ${{MODULE_PYTHON_RESOURCES}}
  WITH_GENERIC_TESTS
  )

if(BUILD_TESTING)
  # MedQuantINT8Test.runTest() does a complete round.
  slicer_add_python_unittest(SCRIPT ${{MODULE_NAME}}.py)
endif()
"""


if __name__ == "__main__":
    (MODULE / "CMakeLists.txt").write_text(text(), encoding="utf-8")
