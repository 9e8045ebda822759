"""Work that comes again is recorded and replayed; what goes, goes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from MedQuantINT8Lib.engines.cuda.graph_capture import RecordedGraphs
from MedQuantINT8Lib.errors import EngineError


class OutOfMemory(int):
    name = "CUDA_ERROR_OUT_OF_MEMORY"


class Driver:
    """Streams that do, or record, what is put into them."""

    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=2)

    def __init__(self):
        self.done, self.recording, self.executables, self.full = [], None, {}, False

    def do(self, work):
        (self.done if self.recording is None else self.recording).append(work)

    def cuStreamIsCapturing(self, stream):
        return 0, int(self.recording is not None)

    def cuStreamBeginCapture(self, stream, mode):
        self.recording = []
        return (0,)

    def cuStreamEndCapture(self, stream):
        graph, self.recording = tuple(self.recording), None
        return 0, graph

    def cuGraphInstantiate(self, graph, flags):
        if self.full:
            return OutOfMemory(2), 0
        handle = len(self.done) + 1000
        self.executables[handle] = graph
        return 0, handle

    def cuGraphDestroy(self, graph):
        return (0,)

    def cuGraphLaunch(self, executable, stream):
        self.done += [f"replayed {work}" for work in self.executables[executable]]
        return (0,)

    def cuGraphExecDestroy(self, executable):
        del self.executables[executable]
        return (0,)


@pytest.fixture
def driver():
    return Driver()


@pytest.fixture
def graphs(driver):
    return RecordedGraphs(SimpleNamespace(driver=driver), 2)


STREAM = SimpleNamespace(handle=7)


def test_the_second_time_records_and_each_one_is_done_once(driver, graphs):
    for _ in range(4):
        graphs.put("a", STREAM, lambda _: driver.do("a"))
    assert driver.done == ["a", "replayed a", "replayed a", "replayed a"] and len(driver.executables) == 1


def test_no_more_are_kept_than_may_be_and_those_used_longest_ago_go(driver, graphs):
    for key in "aabbacc":
        graphs.put(key, STREAM, lambda _, key=key: driver.do(key))
    assert list(driver.executables.values()) == [("a",), ("c",)]
    graphs.put("b", STREAM, lambda _: driver.do("b"))
    assert driver.done[-1] == "b"
    graphs.free()
    assert not driver.executables


def test_what_somebody_else_records_is_recorded_as_it_comes(driver, graphs):
    driver.recording = []
    for _ in range(3):
        graphs.put("a", STREAM, lambda _: driver.do("a"))
    assert driver.recording == ["a"] * 3 and not driver.done and not driver.executables


def test_a_failure_ends_the_recording(driver, graphs):
    def fail(_):
        raise EngineError("It failed.")

    graphs.put("a", STREAM, lambda _: driver.do("a"))
    with pytest.raises(EngineError):
        graphs.put("a", STREAM, fail)
    assert driver.recording is None
    graphs.put("a", STREAM, lambda _: driver.do("a"))
    assert driver.done == ["a", "a"]


def test_where_there_is_no_memory_for_a_recording_the_work_is_done_all_the_same(driver, graphs):
    driver.full = True
    for _ in range(3):
        graphs.put("a", STREAM, lambda _: driver.do("a"))
    assert driver.done == ["a"] * 3 and driver.recording is None
    driver.full = False
    graphs.put("a", STREAM, lambda _: driver.do("a"))
    assert driver.done[3:] == ["replayed a"]
