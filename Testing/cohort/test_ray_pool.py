"""Many machines: a local cluster of three nodes stands for them. No case is lost or run twice, whoever dies."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import tiny
from cohorts import cases_of, wait_for, write_scans
from MedQuantINT8Lib import __version__
from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.cli.parsers import parser
from MedQuantINT8Lib.cohort import packages, ray_pool
from MedQuantINT8Lib.cohort.case_settings import model_hash
from MedQuantINT8Lib.cohort.journal import JOURNAL
from MedQuantINT8Lib.cohort.local_pool import LocalPool
from MedQuantINT8Lib.cohort.packages import installed_on_node, packed
from MedQuantINT8Lib.cohort.pool import Order
from MedQuantINT8Lib.cohort.ray_cluster import ClusterOptions
from MedQuantINT8Lib.cohort.ray_pool import RayPool
from MedQuantINT8Lib.cohort.ray_worker import CaseActor, NodeOrder
from MedQuantINT8Lib.cohort.segment import CohortRequest, segment_cohort
from MedQuantINT8Lib.errors import DependencyError, EngineError, PackageError
from MedQuantINT8Lib.inference.engine_choice import EngineChoice
from MedQuantINT8Lib.inference.ensemble import load_ensemble
from MedQuantINT8Lib.progress import Task
from MedQuantINT8Lib.system import library_environment, module_arguments
from places import ROOT


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.package(tmp_path_factory.mktemp("model")).folder)


# ---- without Ray


def digest_of(model):
    with load_ensemble(model) as ensemble:
        return model_hash(ensemble)


def test_a_package_arrives_once_and_is_known_by_its_hash(model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    digest, fetched = digest_of(model), []

    def fetch():
        fetched.append(1)
        return packed(model)

    first = installed_on_node(digest, fetch)
    assert installed_on_node(digest, fetch) == first and len(fetched) == 1 and digest_of(first) == digest
    # One that was damaged there is brought again.
    (Path(first) / "model.int8.onnx").write_bytes(b"junk")
    assert digest_of(installed_on_node(digest, fetch)) == digest and len(fetched) == 2
    monkeypatch.setattr(packages, "packed", lambda _: [])
    with pytest.raises(PackageError, match="arrived damaged"):
        installed_on_node("0" * 64, fetch)


def test_a_node_that_lacks_a_path_or_the_version_says_so(model, tmp_path):
    settings = {"model": model, "model_hash": digest_of(model)}
    for version, path, words in (("0.0", str(tmp_path), "version"), (None, str(tmp_path / "scans"), "does not see")):
        answer = CaseActor(NodeOrder("segment", settings, version or __version__, (path,)), list).open()
        assert words in answer["error"]["message"]


def test_options_that_do_not_go_together_are_refused(model, tmp_path, capsys):
    write_scans(tmp_path / "scans", 1)
    command = ["segment", model, str(tmp_path / "scans"), "-o", str(tmp_path / "out"), "--cluster"]
    for more, words in ((["local", "--device", "gpu:1"], "every GPU"), (["somewhere"], "is no cluster")):
        assert main([*command, *more]) == 2
        assert words in capsys.readouterr().err


def test_without_ray_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DependencyError, match="pip install ray"):
        RayPool(ClusterOptions("local"))


class StandInCluster:
    """A cluster of nodes that have so many processors, without Ray."""

    def __init__(self, workers, *nodes):
        self.ray = types.SimpleNamespace(put=lambda value: value)
        self._workers, self._nodes = workers, nodes

    def living_nodes(self):
        return [{"NodeID": name, "NodeManagerHostname": name, "Resources": {}} for name in self._nodes]

    def devices_of(self, node):
        return ["cpu"] * self._workers


def run_on_stand_in(monkeypatch, model, workers, cases, *nodes):
    """A run whose actors are those that :meth:`_Run._start` was asked for, and how many it saw on a node."""
    started = []

    def start(run, node, device, count):
        started.append((node["NodeID"], count))
        return ray_pool._Actor(None, node["NodeID"], device, None)

    monkeypatch.setattr(ray_pool, "_NODES_SECONDS", 0.0)
    monkeypatch.setattr(ray_pool._Run, "_start", start)
    channels = [{"id": str(n), "channels": ["missing.nrrd"]} for n in range(cases)]
    order = Order("segment", {"model": model})
    run = ray_pool._Run(StandInCluster(workers, *nodes), ClusterOptions("local"), order, channels, Path("marker"))
    run._look_at_nodes()
    return run, started


def test_a_node_gets_as_many_actors_as_it_can_keep_and_there_are_cases(monkeypatch, model):
    _, started = run_on_stand_in(monkeypatch, model, 8, 20, "a", "b")
    assert started == [("a", 8)] * 8 + [("b", 8)] * 8
    _, started = run_on_stand_in(monkeypatch, model, 64, 2, "a", "b")
    assert started == [("a", 2)] * 2


def test_a_node_that_others_keep_busy_does_not_hold_up_the_cases(monkeypatch, model):
    """Ray starts no actor there while its processors are taken; those of the other node have room."""
    run, started = run_on_stand_in(monkeypatch, model, 64, 2, "a", "b")
    run._look_at_nodes()
    assert started == [("a", 2)] * 2
    for actor in run._actors:
        actor.started -= 2 * ray_pool._OPENING_SECONDS
    run._actors[0].ready = True
    run._look_at_nodes()
    run._look_at_nodes()
    assert started[2:] == [("b", 2)], "one in place of the one that does not open"


@pytest.mark.parametrize(
    ("gpus", "actors", "share", "beside"),
    [(8, 8, 1.0, 1), (8, 3, 1.0, 1), (2, 3, 0.5, 2), (1, 7, 0.1428, 7)],
    ids=["one each", "fewer cases than GPUs", "more workers than GPUs", "a number that no decimal is"],
)
def test_an_actor_asks_for_one_gpu_or_a_part_of_it(monkeypatch, model, gpus, actors, share, beside):
    """Ray refuses 8 / 3 GPUs, and finds no GPU for the third actor of two thirds each."""
    scheduling = types.SimpleNamespace(NodeAffinitySchedulingStrategy=lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "ray.util", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", scheduling)
    asked = []

    class Remote:
        def options(self, **how):
            asked.append(how["num_gpus"])
            return self

        def remote(self, order, fetch):
            asked.append(order.beside)
            return types.SimpleNamespace(open=types.SimpleNamespace(remote=lambda: None))

    cluster = StandInCluster(1, "a")
    cluster.ray.remote = lambda _: Remote()
    order = Order("segment", {"model": model, "choice": {}})
    run = ray_pool._Run(cluster, ClusterOptions("local"), order, [], Path("marker"))
    run._start({"NodeID": "a", "Resources": {"CPU": 8.0, "GPU": float(gpus)}}, "gpu:0", actors)
    assert asked == [share, beside]


def test_a_node_whose_actors_end_at_once_is_left(monkeypatch, model):
    run, started = run_on_stand_in(monkeypatch, model, 2, 9, "a")
    for _ in range(6):
        assert run._nodes["a"].unfit is None
        list(run._lost(run._actors.pop(), RuntimeError("gone")))
        run._look_at_nodes()
    run._actors.clear()
    with pytest.raises(EngineError, match="Workers on a end at once"):
        run._look_at_nodes()
    assert len(started) == 7


def test_the_examples_for_clusters_name_options_that_there_are():
    """The scripts cannot run here; their form and the command in them are looked at."""
    yaml = pytest.importorskip("yaml")
    slurm = ROOT / "examples/cluster_slurm.sh"
    bash = shutil.which("bash")
    if bash is not None:
        assert subprocess.run([bash, "-n", str(slurm)], capture_output=True).returncode == 0
    job = yaml.safe_load((ROOT / "examples/cluster_kuberay.yaml").read_text())["spec"]
    for text in (
        job["entrypoint"],
        slurm.read_text().replace("\\\n", " ").split("medquant segment", 1)[1].split("||")[0],
    ):
        words = shlex.split(text.removeprefix("medquant segment"))
        assert parser().parse_args(["segment", *words]).cluster
    groups = [job["rayClusterSpec"]["headGroupSpec"], *job["rayClusterSpec"]["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
    assert "RAY_USAGE_STATS_ENABLED=0" in slurm.read_text()


# ---- with Ray

needs_ray = pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import ray"], capture_output=True).returncode != 0,
    reason="needs ray (the extra cluster)",
)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Three nodes on this machine, and the driver connected to them."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(p for p in (*map(str, paths_of_tests()), os.environ.get("PYTHONPATH")) if p)
    )
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, logging_level="ERROR", log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def paths_of_tests():
    import MedQuantINT8Lib

    return [Path(MedQuantINT8Lib.__file__).parents[1], Path(__file__).parents[1] / "support"]


def request(model, tmp_path):
    return CohortRequest(model, (str(tmp_path / "scans"),), tmp_path / "out", EngineChoice(device="cpu"))


def run(model, tmp_path, on_case=lambda *_: None, **options):
    return segment_cohort(request(model, tmp_path), RayPool(ClusterOptions("auto", **options)), Task(), on_case)


def labels_of(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.mark.slow
@needs_ray
def test_two_hundred_cases_with_a_node_lost_and_one_that_joins(cluster, model, tmp_path):
    count = 200
    # Large enough that the lost node has cases on their way when it goes.
    write_scans(tmp_path / "scans", count, 40)
    ended = []

    def on_case(record, already):
        ended.append(record["id"])
        if len(ended) == 20:
            # In the middle of cases: what the node had is run by others.
            cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
        if len(ended) == 60:
            cluster.add_node(num_cpus=1, wait=False)

    result = run(model, tmp_path, on_case)
    assert not result.failed, result.failed[:2]
    assert any(record["attempts"] > 1 for record in result.records)
    names = [f"s{n:04d}/ct" for n in range(count)]
    # Every case has one line, and its labels are those of a single process.
    assert sorted(line["id"] for line in cases_of(tmp_path / "out" / JOURNAL)) == names == sorted(ended)
    other = CohortRequest(model, (str(tmp_path / "scans"),), tmp_path / "plain", EngineChoice(device="cpu"))
    assert not segment_cohort(other, LocalPool(["cpu"]), Task()).failed
    for name in names:
        assert np.array_equal(
            labels_of(tmp_path / f"out/{name}.seg.nrrd"), labels_of(tmp_path / f"plain/{name}.seg.nrrd")
        )
    assert not list((tmp_path / "out").glob(".cohort-*"))


@pytest.mark.slow
@needs_ray
def test_a_poisoned_case_is_reported_after_its_retries_and_costs_no_other(cluster, model, tmp_path):
    (tmp_path / "out").mkdir()
    cases = [{"id": f"{'poison' if n == 7 else n}", "channels": [str(tmp_path)]} for n in range(20)]
    settings = {
        "model": model,
        "model_hash": digest_of(model),
        "choice": {"threads": 0},
        "output": str(tmp_path / "out"),
    }
    order = Order("cohorts:Poison", settings)
    records = {r["id"]: r for r in RayPool(ClusterOptions("auto", retries=1)).run(order, cases, lambda: None)}
    assert len(records) == 20 and [name for name, r in records.items() if r["state"] == "failed"] == ["poison"]
    assert records["poison"]["attempts"] == 2 and "lost 2 times" in records["poison"]["error"]


@pytest.mark.slow
@needs_ray
def test_each_worker_has_a_gpu_of_its_own_and_what_a_killed_one_had_is_run_again(model, tmp_path, monkeypatch):
    """Over GPUs that Ray is told of, and that are none."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths_of_tests())))
    import ray

    (tmp_path / "out").mkdir()
    cases = [{"id": "deadly" if n == 4 else str(n), "channels": [str(tmp_path)]} for n in range(16)]
    settings = {
        "model": model,
        "model_hash": digest_of(model),
        "choice": {"threads": 0},
        "output": str(tmp_path / "out"),
    }
    ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        pool = RayPool(ClusterOptions("auto"), "gpu")
        records = list(pool.run(Order("cohorts:OnGpu", settings), cases, lambda: None))
    finally:
        ray.shutdown()
    assert sorted(record["id"] for record in records) == sorted(case["id"] for case in cases)
    assert all(record["state"] == "done" and record["device"] == "gpu:0" for record in records)
    assert {record["gpu"] for record in records} == {"0", "1"}
    (deadly,) = (record for record in records if record["id"] == "deadly")
    assert deadly["attempts"] == 2


@pytest.mark.slow
@needs_ray
def test_a_driver_that_is_killed_goes_on_where_it_stopped(model, tmp_path):
    count = 40
    write_scans(tmp_path / "scans", count)
    out = tmp_path / "out"
    command = ["segment", model, str(tmp_path / "scans"), "-o", str(out), "--cluster", "local"]
    process = subprocess.Popen(
        [sys.executable, *module_arguments("MedQuantINT8Lib.cli.main"), *command],
        env=library_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: len(cases_of(out / JOURNAL)) >= 3, process, 120)
    process.kill()
    process.wait()
    before = {line["id"] for line in cases_of(out / JOURNAL)}
    assert 3 <= len(before) < count
    # The journal is the same wherever cases run.
    done = subprocess.run(
        [sys.executable, *module_arguments("MedQuantINT8Lib.cli.main"), *command, "--json"],
        env=library_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert sum(json.loads(line)["already"] for line in done.stdout.splitlines()) == len(before)
    assert sorted(line["id"] for line in cases_of(out / JOURNAL)) == [f"s{n:04d}/ct" for n in range(count)]
