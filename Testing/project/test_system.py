"""What is said of the processor."""

from __future__ import annotations

import sys

import pytest

from MedQuantINT8Lib import system


@pytest.fixture
def not_linux(monkeypatch):
    """There is no /proc, as on Windows and macOS."""
    monkeypatch.setattr(system, "_processor_lines", lambda keys: [])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="compares with what Linux tells")
def test_instruction_sets_are_found_without_linuxs_file_too(monkeypatch, not_linux):
    pytest.importorskip("archspec")
    elsewhere = system.cpu_features()
    monkeypatch.undo()
    assert elsewhere == system.cpu_features()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="compares with what CPUID tells")
def test_cpuid_tells_the_same_as_linux(monkeypatch):
    """Windows' way: the instruction itself is asked."""
    pytest.importorskip("archspec")
    from archspec.cpu import detect

    if detect._machine() != detect.X86_64:
        pytest.skip("CPUID is an instruction of x86")
    told = system.cpu_features()
    monkeypatch.setitem(detect.INFO_FACTORY, "Linux", [detect.cpuid_info])
    monkeypatch.setattr(system, "_processor_lines", lambda keys: [])
    assert system.cpu_features() == told and system.cpu_name()


def test_without_archspec_nothing_is_known_and_nothing_fails(monkeypatch, not_linux):
    for name in ("archspec", "archspec.cpu", "archspec.cpu.detect"):
        monkeypatch.setitem(sys.modules, name, None)
    assert system.cpu_features() == [] and system.cpu_name()
