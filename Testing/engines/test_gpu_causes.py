"""What TensorRT and CUDA say, in their own words, and the advice that goes with it; one logger a process."""

from __future__ import annotations

import gc
import threading
import weakref
from types import SimpleNamespace

import pytest

from MedQuantINT8Lib.engines.cuda.device import GpuMemoryError
from MedQuantINT8Lib.engines.error_causes import advice, failure, last_and_first
from MedQuantINT8Lib.engines.tensorrt import backend as tensorrt
from MedQuantINT8Lib.engines.tensorrt import log as tensorrt_log
from MedQuantINT8Lib.errors import EngineError

#: Messages as they were seen: TensorRT 10.15.1, TensorRT for RTX 1.7.1, cuda-python, ONNX Runtime.
SEEN = {
    "IBuilder::buildSerializedNetwork: Error Code 6: API Usage Error (Unable to load library: libnvinfer_builder_resource_sm90.so.10.15.1: "
    "libnvinfer_builder_resource_sm90.so.10.15.1: cannot open shared object file: No such file or directory In Impl at x.cpp:1)": "install it again",
    "Error Code 2: Internal Error (Assertion validateCaskKLibSize(buffer.size) failed. )": "install it again",
    "createInferBuilder: Error Code 6: API Usage Error (CUDA initialization failure with error: 35. Please check your CUDA installation)": "Install NVIDIA's driver",
    "CUDA initialization failure with error: 100. Please check your CUDA installation": "Install NVIDIA's driver",
    "Failed to dlopen libcuda.so.1": "Install NVIDIA's driver",
    "libcuda.so.1: cannot open shared object file: No such file or directory": "Install NVIDIA's driver",
    "CUDA driver version is insufficient for CUDA runtime version": "Install NVIDIA's driver",
    "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine cannot run on this GPU, which has compute capability 9.0. "
    "Supported compute capabilities: 8.0 8.6 8.9 12.0 12.1 >12.0. )": "medquant cache clear",
    "[virtualMemoryBuffer.cpp::resizePhysical::135] Error Code 2: OutOfMemory (Requested size was 1073741824 bytes.)": "Close other programs",
    "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)": "Close other programs",
    "libnvinfer.so.10: cannot open shared object file: No such file or directory": "install it again",
    "TensorRT-RTX does not support this compute capability": "",
    "Error Code 4: Internal Error (Could not find any implementation for node conv_3.)": "",
    "[checkMacros.cpp::catchCudaError::229] Error Code 1: Cuda Runtime (In catchCudaError at common/dispatch/checkMacros.cpp:229)": "",
}


@pytest.mark.parametrize(("text", "words"), SEEN.items(), ids=[text[:40] for text in SEEN])
def test_each_cause_has_the_advice_that_helps_and_the_rest_none(text, words):
    found = advice(text)
    assert words in found and bool(words) == bool(found)
    made = failure(f"It failed: {text}.", [text])
    assert isinstance(made, GpuMemoryError) == ("Close other programs" in words) and isinstance(made, EngineError)
    assert made.hint == found


def test_the_last_error_and_the_first_where_they_are_many():
    assert last_and_first([]) == "no reason was given" and last_and_first([" one. "]) == "one"
    assert last_and_first(["cause.", "between", "end."]) == "end (first: cause)"
    assert last_and_first(["same", "same"]) == "same"


class Logger:
    """TensorRT's base class of loggers."""


class Registry:
    """TensorRT's library, as far as loggers go: the first of a process counts while anything made with it lives, others are ignored."""

    def __init__(self):
        self.ILogger, self.registered, self.ignored = Logger, None, 0
        self._living = weakref.WeakSet()
        registry = self

        class Made:
            def __init__(self, logger):
                if registry._living and registry.registered is not logger:
                    registry.ignored += 1
                elif not registry._living:
                    registry.registered = logger
                registry._living.add(self)

            def say(self, severity, text):
                registry.registered.log(severity, text)

        self.Builder = self.Runtime = Made


def test_a_second_build_hears_its_own_messages_while_an_engine_is_loaded():
    trt = Registry()
    with tensorrt_log.listening(trt) as first:
        runtime = tensorrt.started(trt.Runtime, first)
        runtime.say(2, "a warning of the first")
    with tensorrt_log.listening(trt) as second:
        builder = tensorrt.started(trt.Builder, second)
        builder.say(1, "an error of the second")
        builder.say(3, "chatter")
        builder.say(2, "a warning after it")
    runtime.say(1, "nobody listens")
    assert trt.ignored == 0 and first.errors == [] and second.errors == ["an error of the second"]
    assert second.last_words() == "an error of the second"
    assert first.last_words() == "no reason was given; its last warning was: a warning of the first"
    del builder, runtime
    gc.collect()
    assert tensorrt_log.process_logger(trt) is first.logger is second.logger


def test_two_threads_hear_their_own_and_both_hear_tensorrts_threads():
    trt, ready, told = Registry(), threading.Barrier(3), {}

    def work(name):
        with tensorrt_log.listening(trt) as log:
            made = trt.Builder(log.logger)
            ready.wait()
            made.say(1, f"error of {name}")
            ready.wait()
            ready.wait()
            told[name] = log.errors

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    ready.wait()
    ready.wait()
    trt.registered.log(1, "of a thread of TensorRT's")
    ready.wait()
    for thread in threads:
        thread.join()
    assert told == {name: [f"error of {name}", "of a thread of TensorRT's"] for name in ("one", "two")}


def test_where_tensorrt_does_not_start_the_first_error_is_the_cause():
    class Trt(Registry):
        pass

    trt = Trt()

    def nothing(logger):
        logger.log(1, next(text for text in SEEN if "error: 35" in text))
        logger.log(1, list(SEEN)[-1])
        raise TypeError("pybind11::init(): factory function returned nullptr")

    with tensorrt_log.listening(trt) as log, pytest.raises(EngineError) as told:
        tensorrt.started(nothing, log)
    assert (
        "catchCudaError" in str(told.value)
        and "first: createInferBuilder" in str(told.value)
        and "Install NVIDIA's driver" in told.value.hint
    )


def test_a_logger_of_another_kind_is_still_heard():
    def nothing(logger):
        raise TypeError

    log = SimpleNamespace(
        logger=None, errors=[], last_words=lambda: "Unable to load library: libnvinfer_builder_resource_sm90.so.10.15.1"
    )
    with pytest.raises(EngineError, match="install it again"):
        tensorrt.started(nothing, log)
