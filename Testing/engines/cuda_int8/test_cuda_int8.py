"""The CUDA INT8 engine without a GPU: plans, their integers, the cut into tiles, and that every kernel compiles."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

import nvrtc_at_hand
from cuda_networks import NETWORKS, Made, fixed, plan_of, size_of
from data_models import DATA
from gpu_stand_in import StandInGpu
from MedQuantINT8Lib.engines import base, ranking, registry
from MedQuantINT8Lib.engines.base import UnsupportedNetwork
from MedQuantINT8Lib.engines.cuda_int8 import backend as cuda_backend
from MedQuantINT8Lib.engines.cuda_int8.frontend.onnx_reader import read_network
from MedQuantINT8Lib.engines.cuda_int8.kernels.wgmma import multiply_mma_steps
from MedQuantINT8Lib.engines.cuda_int8.plan import planner
from MedQuantINT8Lib.engines.cuda_int8.plan.kernel_plan import KernelPlan, Layout
from MedQuantINT8Lib.engines.cuda_int8.reference.executor import POISON, ReferenceExecutor
from MedQuantINT8Lib.engines.cuda_int8.runtime import autotuning as tuning
from MedQuantINT8Lib.engines.cuda_int8.runtime.network import CudaInt8Network
from MedQuantINT8Lib.engines.cuda_int8.runtime.program import programs
from MedQuantINT8Lib.engines.cuda_int8.tiling.candidates import Machine, candidates
from MedQuantINT8Lib.engines.cuda_int8.tiling.phases import phases_of
from MedQuantINT8Lib.engines.cuda_int8.tiling.tile import DEPTH, Tile
from MedQuantINT8Lib.engines.cuda_int8.tiling.tiling import Tiling
from MedQuantINT8Lib.engines.cuda_int8.tiling.weight_order import arranged_weights, columns_of
from MedQuantINT8Lib.engines.onnxruntime import session
from MedQuantINT8Lib.errors import EngineError

H100, RTX_3090 = Machine((9, 0), 132), Machine((8, 6), 82)


def simulated(model, size, x):
    run = session(fixed(model, size).SerializeToString(), "int8")
    return np.concatenate([run.run(None, {"image": one[None]})[0] for one in x])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_computes_what_the_simulated_network_does(name):
    model, size = NETWORKS[name](), size_of(name)
    plan = plan_of(model, size)
    x = np.random.default_rng(1).normal(size=(2, plan.channels, *size)).astype(np.float32)
    found, expected = ReferenceExecutor(plan, 2).run(x), simulated(model, size, x)
    assert found.shape == expected.shape
    # FP16 between the layers moves a value to the next INT8 step now and then; a wrong step would be off by all of it.
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("name", NETWORKS)
def test_no_step_reads_what_nobody_wrote(name):
    plan = plan_of(NETWORKS[name](), size_of(name))
    x = np.random.default_rng(1).normal(size=(1, plan.channels, *plan.size)).astype(np.float32)
    run = ReferenceExecutor(plan)
    written = set()
    for step in plan.steps:
        for view in step.reads():
            held = run.buffers[view.buffer][..., view.start : view.start + view.layout.width]
            assert (view.buffer, view.start) in written or view.buffer in {b for b, _ in written}
            poisoned = held == POISON["i8"] if view.scale else np.isnan(held)
            assert poisoned.mean() < 0.02
        run.run_step(step, x)
        written |= {(view.buffer, view.start) for view in step.writes()}


def test_buffers_that_live_at_once_do_not_share_memory_and_others_do():
    plan = plan_of(NETWORKS["residuals"](), (16, 16, 16))
    places, total = plan.places()
    lives = plan.lifetimes()
    for a in places:
        for b in places:
            apart = lives[a][1] < lives[b][0] or lives[b][1] < lives[a][0]
            beside = places[a] + plan.buffers[a].bytes <= places[b] or places[b] + plan.buffers[b].bytes <= places[a]
            assert a == b or apart or beside
    assert total < 0.7 * sum(buffer.bytes for buffer in plan.buffers.values())


def test_a_plan_is_kept_and_read_again_without_onnx(tmp_path):
    plan = plan_of(NETWORKS["joined"](), size_of("joined"))
    plan.save(tmp_path)
    again = KernelPlan.load(tmp_path)
    assert (
        again.steps == plan.steps
        and again.buffers == plan.buffers
        and again.norms == plan.norms
        and again.size == plan.size
    )
    assert all(
        np.array_equal(again.arrays[name], array) and again.arrays[name].dtype == array.dtype
        for name, array in plan.arrays.items()
    )


def test_joined_tensors_are_written_where_they_are_read():
    plan = plan_of(NETWORKS["joined"](), size_of("joined"))
    join = next(step for step in plan.steps if step.kind == "conv" and len(step.source.layout.parts) == 3)
    writers = [step for step in plan.steps for view in step.writes() if view.buffer == join.source.buffer]
    assert (
        len(writers) == 3
        and join.source.layout.parts == ((0, 20), (32, 36), (80, 36))
        and join.source.layout.width == 128
    )
    assert not any(step.kind == "concat" for step in plan.steps)


def test_pooling_and_nearest_neighbors_stay_in_int8():
    m = Made(1)
    x = m.op("Relu", m.conv("image", 1, 16))
    x = m.conv(m.op("MaxPool", x, kernel_shape=(2, 2, 2), strides=(2, 2, 2)), 16, 2)
    plan = plan_of(m.finished(x, 2), (8, 8, 8))
    pool = next(step for step in plan.steps if step.kind == "maxpool")
    assert pool.source.scale > 0 and pool.ops[0].view.scale == pool.source.scale
    assert [buffer.kind for buffer in plan.buffers.values()].count("f16") == 0


def test_a_first_layer_of_few_channels_becomes_pointwise():
    plan = plan_of(NETWORKS["normalized"](), (9, 9, 9))
    first = plan.steps[0]
    assert first.kind == "conv" and first.geometry.kernel == (1, 1, 1) and first.neighbors.kernel == (3, 3, 3)
    assert first.source.layout.channels == 27 and first.takes_input and not list(first.reads())
    assert not any(step.kind == "input" for step in plan.steps)


def test_a_first_layer_that_is_normalised_is_done_again_instead_of_kept(monkeypatch):
    model, size = NETWORKS["normalized"](), size_of("normalized")
    plan = plan_of(model, size)
    first, statistics, again = plan.steps[:3]
    assert (
        [op.kind for op in first.ops] == ["affine", "statistics"] and first.macs == 0 and statistics.kind == "normalize"
    )
    assert [op.kind for op in again.ops] == ["affine", "norm", "act", "store"] and again.neighbors == first.neighbors
    assert again.weights != first.weights and np.array_equal(plan.arrays[again.weights], plan.arrays[first.weights])
    monkeypatch.setattr(planner, "recomputed", lambda plan: plan)
    kept = plan_of(model, size)
    assert (
        sum(step.macs for step in kept.steps) == sum(step.macs for step in plan.steps)
        and len(kept.buffers) == len(plan.buffers) + 1
    )
    x, found = np.random.default_rng(4).normal(size=(2, 1, *size)).astype(np.float32), []
    for made in (plan, kept):
        run = ReferenceExecutor(made, 2)
        run.run(x)
        found.append(run.buffers[made.steps[2].ops[-1].view.buffer].astype(int))
    # What was kept was rounded to FP16.
    away = np.abs(found[0] - found[1])
    assert away.max() <= 1 and (away > 0).mean() < 0.01


def test_scales_and_shifts_that_follow_one_another_are_one(monkeypatch):
    m = Made(1)
    x = m.conv("image", 1, 16)
    # GroupNorm as torch writes it; then a scale of its own, before a value that others read.
    grouped = m.op("Reshape", x, m.constant(np.array([0, 4, -1], np.int64)))
    ones, zeros = m.constant(np.ones(4, np.float32)), m.constant(np.zeros(4, np.float32))
    x = m.op("Reshape", m.op("InstanceNormalization", grouped, ones, zeros), m.op("Shape", x))
    for op in ("Mul", "Add", "Mul"):
        x = m.op(op, x, m.constant(m.rng.uniform(0.5, 1.5, (16, 1, 1, 1)).astype(np.float32)))
    y = m.conv(m.op("Relu", x), 16, 16)
    y = m.op("Mul", m.op("Relu", y), m.constant(m.rng.uniform(0.5, 1.5, (16, 1, 1, 1)).astype(np.float32)))
    model = m.finished(m.conv(y, 16, 2, kernel=1), 2)
    plan = plan_of(model, (8, 8, 8))
    applied = next(step for step in plan.steps if any(op.kind == "norm" for op in step.ops))
    assert [op.kind for op in applied.ops if op.kind != "store"] == ["affine", "norm", "act"]
    # Not past an activation.
    assert any([op.kind for op in step.ops][:3] == ["affine", "act", "affine"] for step in plan.steps)
    monkeypatch.setattr(planner, "merged", lambda plan: plan)
    apart = plan_of(model, (8, 8, 8))
    assert sum(len(step.ops) for step in apart.steps) == sum(len(step.ops) for step in plan.steps) + 3
    data = np.random.default_rng(4).normal(size=(1, 1, 8, 8, 8)).astype(np.float32)
    found, expected = ReferenceExecutor(plan).run(data), ReferenceExecutor(apart).run(data)
    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(expected)


def test_a_first_layer_that_others_read_too_is_kept():
    m = Made(1)
    first = m.conv("image", 1, 16)
    x = m.op("Add", m.op("Relu", m.norm(first, 16)), first)
    plan = plan_of(m.finished(m.conv(x, 16, 2), 2), (8, 8, 8))
    assert [op.kind for op in plan.steps[0].ops] == ["affine", "store", "statistics"] and not any(
        step.weights.endswith("again") for step in plan.steps
    )


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "words"),
    [
        ("Einsum", ("image",), {"equation": "abcde->abcde"}, "Einsum (node odd)"),
        ("Softmax", ("image",), {"axis": -1}, "another axis than that of channels"),
        ("Resize", ("image", "", "scales"), {"mode": "cubic"}, "mode cubic"),
        ("MatMul", ("image", "image"), {}, "no product of tokens"),
    ],
)
def test_what_has_no_kernel_is_named_with_the_engine_to_use_instead(operator, inputs, attributes, words):
    import onnx

    m = Made(1)
    scales = onnx.numpy_helper.from_array(np.array([1, 1, 2, 2, 2], np.float32), "scales")
    m.constants.append(scales)
    m.nodes.append(onnx.helper.make_node(operator, list(inputs), ["odd_out"], name="odd", **attributes))
    with pytest.raises(UnsupportedNetwork) as caught:
        plan_of(m.finished("odd_out", 1), (4, 4, 4))
    assert words in str(caught.value) and "--engine" in str(caught.value) and "openvino" in str(caught.value)


@pytest.mark.parametrize(
    "kernel,stride,dilation,before", [(3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 4, 4), (5, 3, 2, 1), (1, 1, 1, 0)]
)
def test_a_lattice_takes_each_output_its_inputs(kernel, stride, dilation, before):
    axis, size = phases_of(kernel, stride, dilation, before, False), 23
    for phase in range(axis.phases):
        for i in range(axis.count(size)):
            out = phase + i * axis.out_step
            inputs = [axis.starts[phase] + (i * axis.stride + offset) * axis.in_step for _, offset in axis.taps[phase]]
            assert inputs == [out * stride + k * dilation - before for k, _ in axis.taps[phase]]


@pytest.mark.parametrize("kernel,stride,before", [(2, 2, 0), (3, 2, 1), (4, 2, 1), (3, 3, 0), (2, 3, 0)])
def test_a_transposed_lattice_takes_each_output_its_inputs(kernel, stride, before):
    axis = phases_of(kernel, stride, 1, before, True)
    for phase in range(stride):
        found = {(k, axis.starts[phase] + offset) for k, offset in axis.taps[phase]}
        # Output `phase` of input j through place k: j * stride + k - before.
        assert found == {
            (k, j) for k in range(kernel) for j in range(-kernel, kernel) if j * stride + k - before == phase
        }


def multiplied(plan, tiling, held):
    """What the kernel adds up, from the very bytes and places that it reads: (n, *size, slots)."""
    step, tile = tiling.step, tiling.tile
    kinds, mma_steps = len(tiling.taps), tiling.mma_step_groups * tiling.group_mma_steps
    shape = (kinds, tiling.column_blocks, tiling.k_blocks, mma_steps)
    raw = arranged_weights(plan, tiling)
    if tile.groups:
        raw = np.swapaxes(raw.reshape(*shape, 2, tile.channels, 16), -3, -2)
    else:
        raw = raw.reshape(*shape, tile.channels, 2, 16)
        rows = (np.arange(mma_steps)[:, None] % tiling.group_mma_steps) * tile.channels + np.arange(tile.channels)
        raw = np.where((rows >> 2 & 1).astype(bool)[..., None, None], raw[..., ::-1, :], raw)
    dtype = np.int8 if step.int8 else np.float16
    weights = np.ascontiguousarray(raw).view(dtype).astype(np.float64)
    weights = weights.reshape(*shape, tile.channels, 2, -1)
    _, height, width = tiling.halo
    stride = tiling.axis_phases[2].stride
    columns = np.zeros((len(held), *step.size, step.layout.width))
    items = 16 // tiling.element
    channel = columns_of(tiling)
    for phase in np.ndindex(*(phases.phases for phases in tiling.axis_phases)):
        kind = (
            0
            if tiling.same_taps
            else int(np.ravel_multi_index(phase, [phases.phases for phases in tiling.axis_phases]))
        )
        counts = [
            len(range(p, n, phases.out_step)) for p, n, phases in zip(phase, step.size, tiling.axis_phases, strict=True)
        ]
        if tiling.spread > 1:
            counts = [n // phases.out_step for n, phases in zip(step.size, tiling.axis_phases, strict=True)]
        for number, place in enumerate(tiling.places[kind]):
            chunk, voxel = divmod(place, math.prod(tiling.halo)) if tile.groups else divmod(place, tiling.chunks)[::-1]
            row, w = divmod(voxel, width)
            d, h = divmod(row, height)
            offset = (d, h, w % (width // stride) * stride + w // (width // stride))
            taken = np.zeros((len(held), *counts, tiling.k_blocks * tiling.chunks * items))
            index, inside = [], []
            for axis in range(3):
                phases = tiling.axis_phases[axis]
                at = (
                    phases.starts[phase[axis]]
                    + (np.arange(counts[axis]) * phases.stride + offset[axis]) * phases.in_step
                )
                inside.append((at >= 0) & (at < step.source_size[axis]))
                index.append(np.clip(at, 0, step.source_size[axis] - 1))
            values = held[:, index[0]][:, :, index[1]][:, :, :, index[2]] * (
                inside[0][:, None, None, None] & inside[1][:, None, None] & inside[2][:, None]
            )
            taken[..., : values.shape[-1]] = values
            mma_step, half = divmod(number, 2)
            for block in range(tiling.column_blocks):
                for k_block in range(tiling.k_blocks):
                    begin = (k_block * tiling.chunks + chunk) * items
                    part = taken[..., begin : begin + items] @ weights[kind, block, k_block, mma_step, :, half].T
                    for column in range(tile.channels):
                        beside, slot = divmod(block * tile.channels + channel[column], step.layout.width)
                        if beside >= tiling.spread:
                            continue
                        shift = np.unravel_index(beside, step.geometry.stride) if tiling.spread > 1 else (0, 0, 0)
                        to = tuple(
                            slice(p + s, None, phases.out_step)
                            for p, s, phases in zip(phase, shift, tiling.axis_phases, strict=True)
                        )
                        columns[(slice(None), *to, slot)] += part[..., column]
    return columns


@pytest.mark.parametrize("name", ["kernels_and_strides", "dilations", "read_often", "transposed", "joined"])
@pytest.mark.parametrize("machine", [H100, RTX_3090], ids=["wgmma", "mma"])
def test_tiles_take_the_right_bytes_to_the_right_channels(name, machine):
    plan = plan_of(NETWORKS[name](), size_of(name))
    run = ReferenceExecutor(plan)
    x = np.random.default_rng(2).normal(size=(1, plan.channels, *plan.size)).astype(np.float32)
    for step in plan.steps:
        if step.kind in ("conv", "deconv"):
            view = step.source
            held = run.rows(step, x).astype(np.float64)
            # Slots between parts are whatever memory held; weights there are 0.
            held[..., np.setdiff1d(np.arange(view.layout.width), view.layout.slots)] = 77.0
            expected = run._accumulated(step, run.rows(step, x))
            # Of a GPU with few multiprocessors, so that there are tiles enough for teams.
            fitting = candidates(step, replace(machine, processors=2), 1)
            shared = [tiling for tiling in fitting if tiling.tile.teams > 1]
            lines = [tiling for tiling in fitting if tiling.by_lines]
            deep = [tiling for tiling in fitting if tiling.tile.depth > DEPTH]
            for tiling in (fitting[0], fitting[-1], *shared[:2], *lines[:1], *deep[:1], *deep[-1:]):
                flat = tiling.step
                found = multiplied(plan, tiling, held.reshape(1, *flat.source_size, -1)).reshape(expected.shape)
                np.testing.assert_allclose(
                    found, expected, rtol=1e-3 if tiling.half else 0, atol=1e-2 if tiling.half else 0
                )
        run.run_step(step, x)


def test_tilings_fit_the_gpu_and_leave_no_tile_out():
    plan = plan_of(NETWORKS["kernels_and_strides"](), (24, 24, 24))
    for machine in (H100, RTX_3090):
        for step in plan.steps:
            if step.kind != "conv":
                continue
            for tiling in candidates(step, machine, 1):
                assert tiling.shared_bytes < machine.shared_bytes and tiling.tile.groups <= machine.has_groups
                covered = [
                    t * n >= phases.count(size)
                    for t, n, phases, size in zip(
                        tiling.tile.voxels, tiling.tiles, tiling.axis_phases, tiling.step.size, strict=True
                    )
                ]
                assert all(covered)


def test_products_that_are_written_out_begin_where_their_rows_lie():
    plan = plan_of(NETWORKS["kernels_and_strides"](), (24, 24, 24))
    seen = set()
    for step in plan.steps:
        for tiling in candidates(step, H100, 1) if step.weights else ():
            tile, (_, height, width) = tiling.tile, tiling.halo
            text = multiply_mma_steps(tiling) if tile.groups and not tiling.by_lines else "#define WRITTEN_OUT 0"
            if "WRITTEN_OUT 0" in text:
                continue
            found = [int(n) for n in re.findall(r"add\.s64 a, %\d+, (\d+)", text)]
            slabs = tile.count // (64 * tile.warps // 4)
            # 64 rows are eight lines of eight voxels.
            lines = [divmod(8 * slab, tile.voxels[1]) for slab in range(slabs)]
            begins = [
                (d * tiling.axis_phases[0].stride * height + h * tiling.axis_phases[1].stride) * width for d, h in lines
            ]
            places = tiling.places[0]
            assert found == [
                begin + place + (other - place) * 65536
                for place, other in zip(places[::2], places[1::2], strict=True)
                for begin in begins
            ]
            seen.add((slabs, slabs > 1 and lines[1][0] > 0, tiling.axis_phases[0].stride))
    assert {(4, True, 1), (2, True, 2), (1, False, 1)} <= seen


@pytest.mark.parametrize("kernel", [(1, 1, 701), (31, 31, 31)])
def test_a_kernel_that_no_tile_holds_is_refused_by_name(kernel):
    plan = plan_of(NETWORKS["kernels_and_strides"](), (24, 24, 24))
    first, step = [step for step in plan.steps if step.weights][:2]
    geometry = replace(step.geometry, kernel=kernel, stride=(1, 1, 1), before=tuple(k // 2 for k in kernel))
    with pytest.raises(
        UnsupportedNetwork, match=re.escape(f"{' x '.join(map(str, kernel))} does not fit (node {step.name})")
    ):
        candidates(replace(step, geometry=geometry), H100, 1)
    # A first layer is pointwise, but it is its own kernel that is named.
    far = replace(first.neighbors, dilation=(1, 500, 1))
    with pytest.raises(UnsupportedNetwork, match=re.escape(f"3 x 3 x 3 does not fit (node {first.name})")):
        candidates(replace(first, neighbors=far), H100, 1)


def test_kept_tiles_come_back_as_they_were():
    plan = plan_of(NETWORKS["transposed"](), size_of("transposed"))
    tiles = {step.name: candidates(step, H100, 1)[0].guess for step in plan.steps if step.weights}
    again = tuning.from_json(plan, json.loads(json.dumps(tuning.to_json(tiles))))
    assert {name: tiling.guess for name, tiling in again.items()} == tiles


def test_slots_between_parts_hold_no_channel():
    layout = Layout(((0, 3), (16, 5)), 32)
    assert layout.channels == 8 and list(layout.slots) == [0, 1, 2, 16, 17, 18, 19, 20]
    assert list(np.flatnonzero(layout.placed(np.arange(1, 9)))) == list(layout.slots)


#: The generation of GPUs that is always compiled for, with both kinds of matrix instructions, and those that take minutes more.
GENERATIONS = [
    pytest.param((9, 0), marks=pytest.mark.slow),
    *(pytest.param(capability, marks=pytest.mark.long) for capability in ((8, 0), (8, 9), (12, 0))),
]


@pytest.mark.skipif(nvrtc_at_hand.library() is None, reason="NVRTC is not installed")
@pytest.mark.parametrize("capability", GENERATIONS, ids=str)
def test_every_kernel_compiles_for_every_generation(capability, monkeypatch, tmp_path):
    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path))
    compiler = nvrtc_at_hand.compiler(capability)
    sources = []
    for name in ("read_often", "normalized", "transposed", "joined", "cut_and_padded", "shifted_windows", "tokens"):
        plan = plan_of(NETWORKS[name](), size_of(name))
        sources += [program.source for program in programs(plan, Machine(capability, 100), 2)]
    binaries = compiler.binaries(sources)
    assert all(binary[:4] == b"\x7fELF" for binary in binaries)
    assert len(list((tmp_path / "kernels").iterdir())) == len(set(sources))


@pytest.mark.skipif(nvrtc_at_hand.library() is None, reason="NVRTC is not installed")
def test_shared_sums_teams_and_both_depths_compile(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path))
    from MedQuantINT8Lib.engines.cuda_int8.runtime.program import conv_program

    def sources(name, stride, *tiles):
        plan = plan_of(NETWORKS[name](), size_of(name))
        step = next(
            s for s in plan.steps if s.weights and s.geometry.kernel == (3, 3, 3) and s.geometry.stride == (stride,) * 3
        )
        tilings = [Tiling.of(step, tile) for tile in tiles]
        return [t.by_lines for t in tilings], [conv_program(plan, step, t, H100).source for t in tilings]

    by_taps = (
        Tile((2, 4, 8), 48, 4, 2, split=2),
        Tile((4, 8, 8), 16, 4, 2),
        Tile((1, 8, 8), 48, 4, 1, groups=True, split=2),
        Tile((1, 8, 8), 48, 4, 1, groups=True, teams=2),
    )
    lines, texts = sources("kernels_and_strides", 2, *by_taps)
    assert not any(lines)
    lines, more = sources(
        "joined", 1, Tile((4, 8, 8), 32, 4, 2, groups=True, teams=3), Tile((4, 8, 8), 32, 8, 1, groups=True)
    )
    assert all(lines)
    assert len(nvrtc_at_hand.compiler((9, 0)).binaries(texts + more)) == 6


class Stub:
    real_int8, needs_gpu, precisions = True, True, ("int8", "fp16")

    def __init__(self, name, reason=""):
        self.name, self.title, self._reason = name, name.upper(), reason

    def unavailable(self):
        return self._reason

    def version(self):
        return "1"

    def device_name(self, device):
        return "card"


def with_engines(monkeypatch, *made):
    monkeypatch.setattr(registry, "_REGISTRY", {stub.name: "" for stub in made})
    by_name = {stub.name: stub for stub in made}
    monkeypatch.setattr(registry, "backend", lambda name: by_name[name])


def test_on_a_gpu_the_order_is_what_a_trial_found_and_it_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path))
    processor = SimpleNamespace(name="cpu", title="CPU", real_int8=True, unavailable=lambda: "")
    with_engines(monkeypatch, Stub("slow"), Stub("fast"), processor)
    tried = []
    monkeypatch.setattr(
        ranking, "_time_patch", lambda made: tried.append(made.name) or {"slow": 9.0, "fast": 2.0}[made.name]
    )
    assert [made.name for made in registry.usable_backends("int8")] == ["fast", "slow", "cpu"]
    assert registry.choose_backend("auto", "int8").name == "fast"
    assert tried == ["slow", "fast"]
    # FP32 is what neither of them has.
    assert registry.choose_backend("auto", "fp32").name == "cpu"


def test_one_engine_on_a_gpu_is_not_tried(monkeypatch):
    with_engines(monkeypatch, Stub("only"), Stub("other", "it is not installed"))
    monkeypatch.setattr(ranking, "_time_patch", lambda made: pytest.fail("tried"))
    assert registry.choose_backend("auto", "int8").name == "only"


def test_a_network_without_a_kernel_goes_to_the_next_engine(monkeypatch):
    processor = SimpleNamespace(name="cpu", title="CPU", real_int8=True, unavailable=lambda: "")
    with_engines(monkeypatch, Stub("only"), processor)
    assert registry.choose_instead("int8", UnsupportedNetwork("no kernel")).name == "cpu"
    with_engines(monkeypatch, Stub("only"))
    with pytest.raises(UnsupportedNetwork, match="no kernel"):
        registry.choose_instead("int8", UnsupportedNetwork("no kernel"))


def test_the_engine_says_why_it_cannot_run_here(monkeypatch):
    made = cuda_backend.CudaInt8Backend()
    monkeypatch.setattr(cuda_backend.cuda, "bindings", lambda: (None, SimpleNamespace(nvrtcVersion=lambda: (0, 13, 0))))
    monkeypatch.setattr(cuda_backend.cuda, "gpus", list)
    assert "no NVIDIA GPU" in made.unavailable()
    card = SimpleNamespace(reason_unfit="")
    monkeypatch.setattr(cuda_backend.cuda, "gpus", lambda: [card])
    assert made.unavailable() == ""

    def missing():
        raise RuntimeError("Failed to dlopen libnvrtc.so.13")

    monkeypatch.setattr(cuda_backend.cuda, "bindings", lambda: (None, SimpleNamespace(nvrtcVersion=missing)))
    assert "pip install nvidia-cuda-nvrtc" in made.unavailable()
    monkeypatch.setattr(cuda_backend.cuda, "gpus", lambda: [SimpleNamespace(reason_unfit="GTX 1080 is too old")])
    assert "too old" in made.unavailable()


def test_a_precision_that_an_engine_lacks_is_refused():
    with pytest.raises(EngineError, match="CUDA INT8 does not compute in FP32"):
        registry.choose_backend("cuda_int8", "fp32")


def test_layers_put_back_to_float_run_in_fp16(tmp_path):
    model = NETWORKS["residuals"]()
    path = tmp_path / "network.onnx"
    path.write_bytes(model.SerializeToString())
    options = base.BuildOptions("int8", (8, 8, 8))
    whole = cuda_backend.planned(path, options)
    layer = next(step for step in whole.steps if step.int8)
    put_back = cuda_backend.planned(path, replace(options, high_precision=(layer.sources[0],)))
    assert [s.name for s in whole.steps if s.int8 and s.name not in {t.name for t in put_back.steps if t.int8}] == [
        layer.name
    ]


def test_unused_nodes_are_left_out():
    m = Made(1)
    m.op("Exp", m.conv("image", 1, 4))
    network = read_network(fixed(m.finished(m.conv("image", 1, 2), 2), (4, 4, 4)))
    assert [node.op for node in network.nodes] == ["quant", "conv"]


def test_a_network_that_gives_another_size_is_refused(tmp_path):
    path = tmp_path / "network.onnx"
    path.write_bytes(NETWORKS["kernels_and_strides"]().SerializeToString())
    with pytest.raises(UnsupportedNetwork, match="keep a patch's size"):
        cuda_backend.planned(path, base.BuildOptions("int8", (11, 9, 13)))


@pytest.fixture
def stand_in(monkeypatch):
    made = []

    def gpu(index=0):
        made.append(StandInGpu())
        return made[-1]

    monkeypatch.setattr(cuda_backend, "Gpu", gpu)
    monkeypatch.setattr(cuda_backend.cuda, "choose_gpu", lambda device: StandInGpu().info)
    return made


def test_an_engine_is_built_and_loaded_with_its_weights_in_order(stand_in, tmp_path):
    path, folder = tmp_path / "network.onnx", tmp_path / "engine"
    path.write_bytes(NETWORKS["residuals"]().SerializeToString())
    folder.mkdir()
    made, options = cuda_backend.CudaInt8Backend(), base.BuildOptions("int8", (12, 16, 20), batch=2, device="gpu")
    made.build(path, folder, options)
    assert stand_in[0].closed and not stand_in[0].buffers
    # Nothing is compiled in the background that nobody asks for.
    assert stand_in[0].begun and set(stand_in[0].begun) <= set(stand_in[0].sources)
    plan = cuda_backend.planned(path, options)
    tiles = tuning.from_json(plan, json.loads((folder / "tiles.json").read_text()))
    assert set(tiles) == {step.name for step in plan.steps if step.weights}
    with np.load(folder / "weights.npz") as weights:
        assert all(np.array_equal(weights[t.step.weights], arranged_weights(plan, t)) for t in tiles.values())
    engine = made.load(folder, options)
    gpu = stand_in[-1]
    held = {buffer.nbytes for buffer in gpu.buffers.values()}
    assert {arranged_weights(plan, t).nbytes for t in tiles.values()} <= held
    described = engine.describe()
    assert described.verdict == "INT8" and described.engine == "cuda_int8" and "Stand-in" in described.device
    assert {layer.precision for layer in described.layers if layer.macs} == {"s8"}
    source, target = gpu.allocate((2, 1, 12, 16, 20), np.float32), gpu.allocate((2, 2, 12, 16, 20), np.float16)
    engine.enqueue(2, source, target, gpu.stream())
    launches = gpu.driver.launches
    network = engine.gpu_network
    # Each of the two patches has its own memory, but for the ends.
    assert len(launches) == 2 * len(plan.steps) and len(network.parts) == 2
    for number, part in enumerate(network.parts):
        own = launches[number::2]
        assert (
            own[0].params["source"] == source.pointer + number * source.nbytes // 2
            and own[0].params["source_half"] == 0
        )
        assert own[-1].params["output"] == target.pointer + number * target.nbytes // 2
        for launch, program in zip(own, network.programs, strict=True):
            step = program.step
            if step.source is not None and not step.takes_input:
                assert launch.params["source"] == part.address(step.source)
                assert (
                    part.activations.pointer
                    <= launch.params["source"]
                    < part.activations.pointer + part.activations.nbytes
                )
            assert (
                launch.shared == program.shared
                and launch.block == (program.threads, 1, 1)
                and launch.grid == program.grid(1)
            )
    # Scores as float32 take one kernel more.
    launches.clear()
    engine.enqueue(1, source, gpu.allocate((1, 2, 12, 16, 20), np.float32), gpu.stream())
    assert len(launches) == len(plan.steps) + 1
    engine.close()
    engine.close()
    assert not gpu.events
    assert gpu.closed and all(
        buffer in (source, target) or buffer.dtype == np.float32 for buffer in gpu.buffers.values()
    )


@pytest.mark.parametrize(
    ("batch", "parts", "count", "sizes"),
    [(5, 2, 5, [3, 2]), (5, 2, 1, [1]), (5, 3, 4, [2, 1, 1]), (4, 2, 3, [2, 1]), (1, 2, 1, [1])],
)
def test_parts_of_a_batch_run_side_by_side(batch, parts, count, sizes):
    plan, gpu = plan_of(NETWORKS["normalized"](), (24, 24, 24)), StandInGpu()
    network = CudaInt8Network(gpu, plan, batch, parts=parts)
    assert sum(part.batch for part in network.parts) == batch
    # None has the other's memory.
    places = sorted((part.activations.pointer, part.activations.nbytes) for part in network.parts)
    assert all(begin + length <= after for (begin, length), (after, _) in pairwise(places))
    source, target, stream = (
        gpu.allocate((batch, 1, 24, 24, 24), np.float16),
        gpu.allocate((batch, plan.classes, 24, 24, 24), np.float16),
        gpu.stream(),
    )
    launches = gpu.driver.launches
    network.enqueue(count, source, target, stream)
    streams = list(dict.fromkeys(launch.stream for launch in launches))
    assert len(streams) == len(sizes) and streams[0] == stream.handle
    first = 0
    for handle, size, part in zip(streams, sizes, network.parts, strict=False):
        own = [launch for launch in launches if launch.stream == handle]
        assert [launch.grid for launch in own] == [
            program.grid(size) for program in network.programs
        ] and size <= part.batch
        assert own[-1].params["output"] == target.pointer + first * target.nbytes // batch
        first += size
        if handle != stream.handle:
            # It begins after what was in the caller's stream before, which goes on after its end.
            queue = next(queue for queue in gpu.streams if queue.handle == handle)
            assert [(when, event.recorded) for when, event in queue.waited] == [(0, [(0, stream)])]
            assert (len(launches), [(len(launches), queue)]) in [
                (when, event.recorded) for when, event in stream.waited
            ]
    assert first == count and len(stream.waited) == len(sizes) - 1
    # What kernels were told is kept for the same ends, and told anew for others.
    told = [launch.params["output"] for launch in launches]
    other = gpu.allocate(target.shape, np.float16)
    for ends in ((source, target), (source, other), (source, target)):
        launches.clear()
        network.enqueue(count, *ends, stream)
        assert [launch.params["output"] - ends[1].pointer + target.pointer for launch in launches] == told
    network.close()
    assert set(gpu.buffers.values()) == {source, target, other} and gpu.streams == [stream] and not gpu.events


def test_tuning_takes_the_fastest_tile_and_frees_what_it_held(stand_in):
    plan = plan_of(NETWORKS["normalized"](), (24, 24, 24))
    gpu = StandInGpu()
    found = tuning.tuned(gpu, plan, 1)
    machine = Machine((9, 0), 132)
    for step in plan.steps:
        if step.weights:
            # In the stand-in the first that is timed seems fastest.
            assert found[step.name] == candidates(step, machine, 1)[0].guess
    assert not gpu.buffers and not gpu.streams and not gpu.events


def test_kernels_that_may_begin_early_are_started_so_but_for_the_first_of_each_part():
    plan, gpu = plan_of(NETWORKS["normalized"](), (24, 24, 24)), StandInGpu()
    network, launches = CudaInt8Network(gpu, plan, 3, parts=2), gpu.driver.launches
    shapes = (3, 1, 24, 24, 24), (3, plan.classes, 24, 24, 24)
    source, target = (gpu.allocate(shape, np.float16) for shape in shapes)
    stream, told = gpu.stream(), []
    for early in (False, True):
        network.early = early
        launches.clear()
        network.enqueue(3, source, target, stream)
        told.append([(one.grid, one.block, one.shared, one.stream, bytes(one.params)) for one in launches])
        attributes = [getattr(one, "attributes", None) for one in launches]
        expected = {
            "CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION": {"programmaticStreamSerializationAllowed": 1}
        }
        assert attributes == [None] * 2 + [expected if early else None] * (len(launches) - 2)
    assert told[0] == told[1] and len(launches) == 2 * len(plan.steps)
    network.close()


def test_each_kernel_waits_for_the_one_before_it_once_and_first():
    plans = [
        plan_of(NETWORKS[name](), size_of(name)) for name in ("shifted_windows", "normalized", "read_often", "gated")
    ]
    every = [program for plan in plans for program in programs(plan, H100, 1)]
    kinds = {program.step.kind for program in every}
    assert kinds >= {"conv", "attention", "layernorm", "normalize", "elementwise", "maxpool", "resize", "move", "input"}
    for program in every:
        _, body = program.source.split('extern "C" __global__', 1)
        assert body.count("AWAIT_LAST()") == 1, program.step.kind
        before = body.split("AWAIT_LAST()")[0]
        # What is read before is no other kernel's work: weights, and the numbers of a normalization.
        assert "p.source" not in before and "p.partials" not in before and "keep_constants" not in before


def test_a_network_begins_kernels_early_where_that_is_faster(monkeypatch):
    plan, gpu = plan_of(NETWORKS["normalized"](), (24, 24, 24)), StandInGpu()
    tilings = {step.name: candidates(step, H100, 1)[0] for step in plan.steps if step.weights}
    # In the stand-in what is timed later seems slower.
    assert tuning.early_pays(gpu, plan, 2, tilings, 2) is False
    times = iter([5.0, 4.0] * 20)
    monkeypatch.setattr(gpu.driver, "cuEventElapsedTime", lambda *arguments: (0, next(times)))
    assert tuning.early_pays(gpu, plan, 2, tilings, 2) is True
    assert not gpu.buffers and not gpu.streams and not gpu.events
    older = StandInGpu(capability=(8, 6))
    assert tuning.early_pays(older, plan, 2, {}, 2) is False and not older.driver.launches


def test_a_cancelled_build_stops_before_it_times_kernels(stand_in, tmp_path):
    from MedQuantINT8Lib.errors import Cancelled
    from MedQuantINT8Lib.progress import Task

    path = tmp_path / "network.onnx"
    path.write_bytes(NETWORKS["residuals"]().SerializeToString())
    task = Task()
    task.cancel()
    with pytest.raises(Cancelled):
        cuda_backend.CudaInt8Backend().build_with(
            path, tmp_path, base.BuildOptions("int8", (8, 8, 8), device="gpu"), task
        )


def test_the_demos_network_is_trusted_as_the_engine_computes_it():
    """What is compared before an engine is used: the real INT8 against the simulation, on a made scan."""
    from MedQuantINT8Lib.imaging.phantom import make_phantom
    from MedQuantINT8Lib.imaging.preprocessing import preprocess
    from MedQuantINT8Lib.models import onnx_graph as graph
    from MedQuantINT8Lib.models.package import ModelPackage
    from MedQuantINT8Lib.resources import resource

    size = (48, 48, 48)
    with ModelPackage.load(resource("demo.zip")) as package:
        model = graph.load_network(package.onnx_path("int8"))
        data = preprocess(make_phantom(7)[0], package.spec).data
    middle = tuple(slice((n - 48) // 2, (n - 48) // 2 + 48) for n in data.shape[1:])
    patch = np.ascontiguousarray(data[(slice(None), *middle)][None], np.float32)
    plan = plan_of(model, size)
    ours = ReferenceExecutor(plan).run(patch)
    run = session(fixed(model, size).SerializeToString(), "int8")
    expected = run.run(None, {run.get_inputs()[0].name: patch})[0]
    assert len(np.unique(expected.argmax(1))) > 2
    assert (ours.argmax(1) != expected.argmax(1)).mean() < 0.005


#: Small patches that the public networks take; OBELISK's is tied to one size and only planned.
PUBLIC = {
    "brain18_meshnet": 20,
    "brain18_meshnet30": 20,
    "brain3_meshnet20": 20,
    "brain3_meshnet5": 24,
    "brain_mask_deepbrain_v1": 32,
    "brain_mask_deepbrain_v2": 32,
    "brain_mask_mindgrab": 20,
    "brain_torchio_4mm": 28,
    "head_hippodeep": 32,
    "abdomen_ct_obelisk": 144,
}


@pytest.mark.skipif(not (DATA / "networks").is_dir(), reason="needs MEDQUANT_DATA")
@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_network_has_a_plan_that_computes_it(name):
    from MedQuantINT8Lib.models import onnx_graph as graph

    size = (PUBLIC[name],) * 3
    model = graph.load_network(DATA / "networks" / f"{name}.onnx")
    plan = plan_of(model, size)
    assert sum(step.macs for step in plan.steps) > 0
    # And kernels on every GPU.
    assert all(len(programs(plan, machine, 4)) == len(plan.steps) for machine in (H100, RTX_3090))
    if name == "abdomen_ct_obelisk":
        return
    x = np.random.default_rng(4).normal(size=(1, plan.channels, *size)).astype(np.float32)
    run = session(fixed(model, size).SerializeToString(), "fp32")
    expected, found = run.run(None, {run.get_inputs()[0].name: x})[0], ReferenceExecutor(plan).run(x)
    # On noise the deepbrain networks give 0 everywhere, out of scores beyond FP16's range: there only labels can be compared.
    assert np.linalg.norm(found - expected) <= 0.02 * np.linalg.norm(expected) or expected.max() < 1e-3
    others = found.argmax(1) != expected.argmax(1) if plan.classes > 1 else (found > 0.5) != (expected > 0.5)
    assert others.mean() < 0.005
