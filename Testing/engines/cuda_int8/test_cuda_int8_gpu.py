"""The CUDA INT8 engine on a GPU: every step against the reference in NumPy, and what a kernel must never do. Skips where there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cuda_networks import NETWORKS, Made, fixed, plan_of, size_of
from MedQuantINT8Lib.engines.base import BuildOptions
from MedQuantINT8Lib.engines.cuda.device import Gpu
from MedQuantINT8Lib.engines.cuda_int8.backend import CudaInt8Backend
from MedQuantINT8Lib.engines.cuda_int8.reference.executor import ReferenceExecutor
from MedQuantINT8Lib.engines.cuda_int8.runtime import network as network_module
from MedQuantINT8Lib.engines.cuda_int8.runtime.network import CudaInt8Network
from MedQuantINT8Lib.engines.cuda_int8.runtime.program import machine_of
from MedQuantINT8Lib.engines.cuda_int8.tiling.candidates import candidates
from MedQuantINT8Lib.engines.cuda_int8.tiling.tile import DEPTH
from pointwise import needs_gpu

pytestmark = needs_gpu
#: What each kernel must come to where it is not exact: one step of INT8, or some of FP16's rounding.
HALF = 4e-3


@pytest.fixture(scope="module")
def gpu():
    with Gpu(0) as made:
        yield made


def image(plan, batch, seed=1):
    return np.random.default_rng(seed).normal(size=(batch, plan.channels, *plan.size)).astype(np.float32)


def scores_shape(plan, batch):
    """Of the network's output, which in these networks need not have the size of the input."""
    last = next(step for step in plan.steps if any(op.kind == "output" for op in step.ops))
    return batch, plan.classes, *last.size


class Bench:
    """A network on the GPU beside the reference: buffers go up before a step and come down after it."""

    def __init__(self, gpu, plan, batch, chosen=None):
        self.gpu, self.plan, self.batch = gpu, plan, batch
        self.network = CudaInt8Network(gpu, plan, batch, chosen)
        self.part = self.network.parts[0]
        self.run = ReferenceExecutor(plan, batch)
        self.stream, self.x = gpu.stream(), image(plan, batch)
        self.source = gpu.allocate(self.x.shape, np.float32)
        self.source.upload(self.x, self.stream)
        self.target = gpu.allocate(scores_shape(plan, batch), np.float16)

    def place(self, name):
        return self.part.activations.pointer + self.part.places[name] * self.batch

    def check(self, number, step):
        """Run one step on both sides from the same input."""
        for view in step.reads():
            held = np.ascontiguousarray(self.run.buffers[view.buffer])
            self.gpu.driver.cuMemcpyHtoD(self.place(view.buffer), held.ctypes.data, held.nbytes)
        for op in step.ops:
            if op.norm and op.kind != "statistics":
                for n in (0, 1):
                    self.part.factors[op.norm][n].upload(self.run._factors[op.norm][n], self.stream)
        self.run.run_step(step, self.x)
        self.network.launch(number, self.batch, self.source, self.target, self.stream)
        self.stream.synchronize()
        for view in step.writes():
            self.same(step, view)
        if step.kind == "normalize":
            for n in (0, 1):
                found = np.empty_like(self.run._factors[step.norm][n])
                self.part.factors[step.norm][n].download(found, self.stream)
                self.stream.synchronize()
                np.testing.assert_allclose(
                    found[:, step.layout.slots],
                    self.run._factors[step.norm][n][:, step.layout.slots],
                    rtol=2e-4,
                    atol=1e-4,
                )
        if any(op.kind == "output" for op in step.ops):
            found = np.empty(self.run.output.shape, np.float16)
            self.target.download(found, self.stream)
            self.stream.synchronize()
            np.testing.assert_allclose(
                found.astype(np.float32), self.run.output, rtol=HALF, atol=HALF * np.abs(self.run.output).max()
            )

    def same(self, step, view):
        expected = self.run.buffers[view.buffer][..., view.start : view.start + view.layout.width]
        whole = np.empty_like(self.run.buffers[view.buffer])
        self.gpu.driver.cuMemcpyDtoH(whole.ctypes.data, self.place(view.buffer), whole.nbytes)
        found = whole[..., view.start : view.start + view.layout.width][..., view.layout.slots]
        expected = expected[..., view.layout.slots]
        away = np.abs(found.astype(np.float32) - expected.astype(np.float32))
        exact = step.int8 and all(
            op.kind in ("affine", "store", "statistics", "add", "prelu") or op.function in ("relu", "leakyrelu", "clip")
            for op in step.ops
        )
        if exact:
            assert not away.any(), (step.name, self.network.programs)
        elif view.scale:
            assert away.max() <= 1 and (away > 0).mean() < 0.01, step.name
        else:
            assert away.max() <= HALF * np.abs(expected.astype(np.float32)).max(), step.name

    def close(self):
        self.network.close()
        for thing in (self.source, self.target, self.stream):
            thing.free()


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_step_equals_the_reference(gpu, name, batch):
    bench = Bench(gpu, plan_of(NETWORKS[name](), size_of(name)), batch)
    try:
        for number, step in enumerate(bench.plan.steps):
            bench.check(number, step)
    finally:
        bench.close()


@pytest.mark.parametrize(
    "name", ["kernels_and_strides", "dilations", "read_often", "transposed", "in_float", "residuals", "joined"]
)
def test_every_tiling_equals_the_reference(gpu, name, monkeypatch):
    # As if the GPU were small: blocks have many tiles to go through.
    machine = replace(machine_of(gpu), processors=2)
    monkeypatch.setattr(network_module, "machine_of", lambda gpu: machine)
    plan = plan_of(NETWORKS[name](), size_of(name))
    convolutions = [step for step in plan.steps if step.weights]
    fitting = {step.name: candidates(step, machine, 2) for step in convolutions}
    # By estimate the best, the worst, and between; then some of each kind.
    choices = [{n: found[number * (len(found) - 1) // 5] for n, found in fitting.items()} for number in range(6)]
    kinds = [
        lambda t, n=n, stages=stages: (t.tile.teams, t.tile.stages) == (n, stages)
        for n in (2, 3, 4)
        for stages in (1, 2)
    ]
    kinds += [lambda t, n=n: t.by_lines and t.tile.teams == n for n in (1, 2, 3)]
    deep = [(stages, several) for stages in (1, 2) for several in (False, True)]
    kinds += [
        lambda t, stages=stages, several=several: (
            t.tile.depth > DEPTH and t.tile.stages == stages and (t.rounds > 1) == several
        )
        for stages, several in deep
    ]
    for kind in kinds if machine.has_groups else []:
        choices.append({n: next(filter(kind, found), found[0]) for n, found in fitting.items()})
    for chosen in choices:
        bench = Bench(gpu, plan, 2, chosen)
        try:
            for number, step in enumerate(plan.steps):
                bench.check(number, step)
        finally:
            bench.close()


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_read_that_was_not_written_and_nothing_left_unwritten(gpu, name):
    plan = plan_of(NETWORKS[name](), size_of(name))
    x, found = image(plan, 3), []
    for poison, parts in ((None, 1), (0x7F, 1), (0xFF, 2), (0x91, 3)):
        network = CudaInt8Network(gpu, plan, 3, parts=parts, poison=poison)
        stream = gpu.stream()
        source, target = gpu.allocate(x.shape, np.float32), gpu.allocate(scores_shape(plan, 3), np.float16)
        source.upload(x, stream)
        # What a run leaves out would be this.
        gpu.driver.cuMemsetD8Async(target.pointer, 0x7E, target.nbytes, stream.handle)
        network.enqueue(3, source, target, stream)
        scores = np.empty(target.shape, np.float16)
        target.download(scores, stream)
        stream.synchronize()
        assert np.isfinite(scores).all()
        found.append(scores)
        network.close()
        for thing in (source, target, stream):
            thing.free()
    assert all(np.array_equal(found[0], other) for other in found[1:])


def test_a_thousand_runs_give_the_same_and_take_no_more_memory(gpu):
    plan = plan_of(NETWORKS["normalized"](), (24, 24, 24))
    network, x, stream = CudaInt8Network(gpu, plan, 2, parts=2), image(plan, 2), gpu.stream()
    source, target = gpu.allocate(x.shape, np.float32), gpu.allocate((2, plan.classes, *plan.size), np.float16)
    source.upload(x, stream)
    first, again = np.empty(target.shape, np.float16), np.empty(target.shape, np.float16)
    free = 0
    for run in range(1000):
        network.enqueue(2, source, target, stream)
        target.download(again, stream)
        stream.synchronize()
        if run == 0:
            first[...] = again
        if run == 10:
            free = gpu.free_bytes
        assert np.array_equal(first, again)
    assert gpu.free_bytes >= free
    network.close()
    for thing in (source, target, stream):
        thing.free()


@pytest.mark.parametrize("name", ["residuals", "normalized", "joined"])
def test_the_engine_is_built_loaded_and_agrees_with_the_simulation(name, tmp_path, monkeypatch):
    from MedQuantINT8Lib.engines.onnxruntime import session

    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path / "cache"))
    model, size, made = NETWORKS[name](), size_of(name), CudaInt8Backend()
    network = tmp_path / "network.onnx"
    network.write_bytes(model.SerializeToString())
    folder = tmp_path / "engine"
    folder.mkdir()
    options = BuildOptions("int8", size, batch=2, device="gpu")
    made.build(network, folder, options)
    engine = made.load(folder, options)
    x = np.random.default_rng(3).normal(size=(2, 1, *size)).astype(np.float32)
    run = session(fixed(model, size).SerializeToString(), "int8")
    expected = np.concatenate([run.run(None, {"image": one[None]})[0] for one in x])
    for count in (2, 1, 2):
        found = np.array(engine.infer(x[:count]))
        assert found.dtype == np.float32 and np.linalg.norm(found - expected[:count]) < 0.05 * np.linalg.norm(
            expected[:count]
        )
    described = engine.describe()
    assert (
        described.verdict == "INT8"
        and described.int8_mac_share > 0.9
        and any("mma" in layer.kernel for layer in described.layers)
    )
    engine.close()
    engine.close()


def test_the_sliding_window_on_the_gpu_takes_it(tmp_path, monkeypatch):
    from MedQuantINT8Lib.inference.gpu_network_labels import Reduction
    from MedQuantINT8Lib.inference.gpu_sliding_window import GpuSlidingWindow
    from MedQuantINT8Lib.inference.windows import plan_windows
    from MedQuantINT8Lib.models.spec import Window
    from pointwise import on_the_processor

    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path))
    m = Made(1)
    x = m.op("Relu", m.conv("image", 1, 16))
    plan = plan_of(m.finished(m.conv(x, 16, 3, kernel=1), 3), (16, 16, 16))
    volume = np.random.default_rng(5).normal(size=(1, 30, 37, 25)).astype(np.float32)
    window = Window((16, 16, 16), overlap=0.5)
    windows = plan_windows(volume.shape[1:], window, (16, 16, 16))
    with Gpu(0) as gpu:
        network = CudaInt8Network(gpu, plan, 3, parts=2)
        runner = GpuSlidingWindow(gpu, network, 1, 3, windows, window, 3)
        labels = runner.run(volume, Reduction(np.arange(3, dtype=np.uint16)))
        runner.close()
        network.close()

    class Reference:
        classes = 3

        def infer(self, batch):
            return ReferenceExecutor(plan, len(batch)).run(batch)

    expected = on_the_processor(volume, Reference(), windows, window, np.arange(3))
    assert (labels == expected).mean() > 0.995


def test_a_scan_is_segmented_by_the_command_at_the_first_try(tmp_path, monkeypatch):
    sitk = pytest.importorskip("SimpleITK")
    from MedQuantINT8Lib.cli.main import main
    from MedQuantINT8Lib.imaging.phantom import make_phantom
    from MedQuantINT8Lib.imaging.volume import to_sitk
    from MedQuantINT8Lib.resources import resource

    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path / "cache"))
    volume, truth = make_phantom(77, (176, 144, 128), 2.2)
    scan, found = tmp_path / "scan.nii.gz", tmp_path / "found.nii.gz"
    sitk.WriteImage(to_sitk(volume.data[0], volume.grid), scan)
    # The first builds the engine, compares it with the simulation and has it race FP16's; the second finds it.
    for _ in range(2):
        assert (
            main(
                [
                    "segment",
                    str(resource("demo.zip")),
                    str(scan),
                    "--output",
                    str(found),
                    "--engine",
                    "cuda_int8",
                    "--quiet",
                ]
            )
            == 0
        )
        labels = sitk.GetArrayFromImage(sitk.ReadImage(found))
        dice = [
            2 * ((labels == k) & (truth == k)).sum() / ((labels == k).sum() + (truth == k).sum()) for k in range(1, 6)
        ]
        assert np.mean(dice) > 0.9
        found.unlink()


def test_a_build_that_is_cancelled_leaves_the_gpu_usable(tmp_path, monkeypatch, gpu):
    from MedQuantINT8Lib.errors import Cancelled
    from MedQuantINT8Lib.progress import Task

    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path))
    path = tmp_path / "network.onnx"
    path.write_bytes(NETWORKS["residuals"]().SerializeToString())
    task = Task()
    task.cancel()
    with pytest.raises(Cancelled):
        CudaInt8Backend().build_with(path, tmp_path, BuildOptions("int8", (8, 8, 8), device="gpu"), task)
    bench = Bench(gpu, plan_of(NETWORKS["in_float"](), size_of("in_float")), 1)
    for number, step in enumerate(bench.plan.steps):
        bench.check(number, step)
    bench.close()
