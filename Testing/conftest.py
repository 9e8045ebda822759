"""What the tests share: the real data beside the project, volumes that are made, and an engine cache of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_models import DATA
from made_once import made_once
from MedQuantINT8Lib.imaging.phantom import make_phantom, phantom_spec
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.importers.onnx import import_onnx
from MedQuantINT8Lib.models.package import CALIBRATION, FP32, INT8, ModelPackage, write_package
from MedQuantINT8Lib.quantization.calibration import CalibrationOptions, PatchSampler
from MedQuantINT8Lib.resources import resource
from scans import GEOMETRIES, PHANTOM_SIZE, PHANTOM_SPACING


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests marked long, each of which takes minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing = pytest.mark.skip(
        reason=f"the real scans and networks are not at {DATA}; set MEDQUANT_DATA to where they are"
    )
    long = pytest.mark.skip(reason="takes minutes: make test-all, or pytest --long")
    for item in items:
        if item.get_closest_marker("data") and not (DATA / "networks").is_dir():
            item.add_marker(missing)
        # Whoever leaves out what is slow leaves out what is longer, and what needs a network to be quantized first.
        if item.get_closest_marker("long") or "quantized_package" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(long)


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees or touches the user's engines, models and notes; one cache for the session, so that an engine is built once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDQUANT_CACHE", str(tmp_path_factory.mktemp("engines")))
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture
def data() -> Path:
    return DATA


@pytest.fixture(scope="session")
def phantom() -> tuple[Volume, np.ndarray]:
    """A synthetic scan and its true labels."""
    return make_phantom(2000, PHANTOM_SIZE, PHANTOM_SPACING)


@pytest.fixture(scope="session")
def fp32_package(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    """The demo network, not quantized; its windows overlap less than the demo's, which take three times as long."""
    spec = phantom_spec()
    spec = replace(spec, window=replace(spec.window, overlap=0.25))
    folder = made_once(
        tmp_path_factory, "fp32", lambda folder: import_onnx(resource("phantom_unet.onnx"), spec, folder / "phantom")
    )
    return ModelPackage.load(folder / "phantom")


@pytest.fixture(scope="session")
def int8_package(fp32_package: ModelPackage, tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    """The demo network in INT8, as it is delivered; its windows overlap as those of ``fp32_package``."""

    def make(folder: Path) -> None:
        with ModelPackage.load(resource("demo.zip")) as demo:
            files = {name: demo.folder / name for name in (FP32, INT8, CALIBRATION)}
            write_package(folder / "phantom", fp32_package.spec, files)

    return ModelPackage.load(made_once(tmp_path_factory, "int8", make) / "phantom")


@pytest.fixture(scope="session")
def quantized_package(fp32_package: ModelPackage, tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    """The demo network, quantized now on two synthetic scans. Takes half a minute: what uses it is slow."""
    pytest.importorskip("modelopt", reason="needs ModelOpt, which quantizes")
    from MedQuantINT8Lib.quantization.accuracy_guard import Budget
    from MedQuantINT8Lib.quantization.quantize import QuantizationPolicy, calibration_patch, quantize_package

    def make(folder: Path) -> None:
        options = CalibrationOptions(patches=4)
        sources = [lambda seed=seed: make_phantom(seed, PHANTOM_SIZE, PHANTOM_SPACING)[0] for seed in (2001, 2002)]
        sampler = PatchSampler(sources, fp32_package.spec, calibration_patch(fp32_package), options)
        policy = QuantizationPolicy(budget=Budget(0))
        quantize_package(fp32_package, sampler, folder / "phantom", options, policy)

    return ModelPackage.load(made_once(tmp_path_factory, "quantized", make) / "phantom")


@pytest.fixture(params=list(GEOMETRIES))
def geometry(request: pytest.FixtureRequest) -> np.ndarray:
    return GEOMETRIES[request.param]


@pytest.fixture
def blob() -> Callable[[np.ndarray, tuple[int, int, int]], tuple[Volume, np.ndarray]]:
    """Make a scan of one bright, off-centre ball: the volume and the ball's mask (K, J, I)."""

    def make(matrix: np.ndarray, size: tuple[int, int, int] = (40, 36, 24)) -> tuple[Volume, np.ndarray]:
        i, j, k = np.meshgrid(*[np.arange(n) for n in size], indexing="ij")
        world = np.stack([i, j, k], -1) @ matrix[:3, :3].T + matrix[:3, 3]
        center = np.array([size[0] * 0.6, size[1] * 0.4, size[2] * 0.55]) @ matrix[:3, :3].T + matrix[:3, 3]
        radius = 0.3 * min(n * s for n, s in zip(size, np.linalg.norm(matrix[:3, :3], axis=0), strict=True))
        mask = (np.linalg.norm(world - center, axis=-1) < radius).transpose(2, 1, 0)
        image = mask * 100 + np.random.default_rng(0).normal(10, 2, mask.shape)
        return Volume(image.astype(np.float32), matrix, "ball"), mask

    return make


@pytest.fixture
def phantom_file(phantom, tmp_path):
    """The phantom as a scan file."""
    import SimpleITK as sitk

    volume = phantom[0]
    image = sitk.GetImageFromArray(volume.data[0])
    lps = np.diag([-1, -1, 1, 1]) @ volume.ijk_to_ras
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    path = tmp_path / "scan.nrrd"
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture
def medquant(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process: exit code, what it printed, and what it said beside that."""
    from MedQuantINT8Lib.cli.main import main

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
