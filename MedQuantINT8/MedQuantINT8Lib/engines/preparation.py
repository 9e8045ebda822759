"""From a package to a loaded, trusted engine: cache, build, comparison with the simulation, fallback."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import EngineError, MedQuantError
from ..files import sha256_file
from ..models import onnx_graph as graph
from ..models.package import ModelPackage
from ..progress import Task
from . import cache
from .base import (
    BuildOptions,
    Engine,
    EngineBackend,
    EngineDescription,
    ReportsBuild,
    device_of,
    form_of,
)
from .choices import Choice
from .fidelity import Fidelity, LayerSearch, Networks, Patch, compare, labels_of
from .registry import unavailable_reason
from .saturation import SEVEN_BIT_NOTE

#: Patches that are compared, and voxels after which one is enough: more would tell little and cost seconds each.
COMPARED_PATCHES = 2
_LARGE_PATCH = 1 << 20
#: Shares of the accepted drift above which a layer by itself is put back to high precision, one search after the other.
#: Faults too small to be seen alone add up.
SEARCHED_SHARES = (1.0, 0.5, 0.25)
#: Layers that a message names.
_NAMED = 8


@dataclass
class PreparedEngine:
    """A loaded engine with what is known of it.

    Attributes:
        fidelity: the comparison with the simulation; None for FP32, or where it could not be made.
        note: why there is no comparison, or what was done about a failed one; for the report.
        fallback: layers put back to high precision because the engine computed them wrongly.
        cached: the files were found, not built.
        choice: why this precision, where it was left to the program.
    """

    engine: Engine
    backend: EngineBackend
    options: BuildOptions
    entry: cache.CacheEntry
    fidelity: Fidelity | None
    note: str
    fallback: tuple[str, ...]
    cached: bool
    choice: Choice | None = None

    def describe(self) -> EngineDescription:
        return self.engine.describe()

    def close(self) -> None:
        self.engine.close()


def engine_key(package: ModelPackage, backend: EngineBackend, options: BuildOptions) -> dict[str, Any]:
    """Everything that an engine file depends on."""
    return {
        "model_name": package.spec.name,
        "model": sha256_file(package.onnx_path(options.precision)),
        # What this project makes of a network before an engine sees it changes with its version and its format.
        "medquant": __version__,
        "engine": backend.name,
        "engine_version": backend.version(),
        "device": backend.device_name(options.device),
        # Files are those of a kind of GPU, which "device" names, not of the one among several.
        "options": _jsonable(replace(options, device=options.device.partition(":")[0]).to_json()),
        "format": cache.FORMAT,
    }


def _jsonable(value: dict[str, Any]) -> dict[str, Any]:
    return {key: list(item) if isinstance(item, tuple) else item for key, item in value.items()}


def prepare(
    package: ModelPackage,
    backend: EngineBackend,
    options: BuildOptions,
    patches: Sequence[Patch] = (),
    task: Task | None = None,
) -> PreparedEngine:
    """Find or build the engine, and make sure that it computes what was quantized.

    Args:
        patches: real patches in network space, (C, A0, A1, A2) each, for the comparison. Without them a real INT8
            engine is returned uncompared, and ``note`` says so; the first run with patches makes up for it.

    Raises:
        EngineError: the network cannot be built, or stays wrong with the layers at fault in high precision.
    """
    task = task or Task()
    options = replace(options, device=device_of(backend, options.device))
    if options.precision == "int8":
        options = replace(options, **form_of(backend).to_json())
    key = engine_key(package, backend, options)
    with _closed_on_failure() as loaded, task.stage("preparing the engine"):
        entry = cache.find(key)
        cached = entry is not None
        if entry is None:
            entry = _build(package, backend, options, key, task)
        used = replace(options, high_precision=tuple(entry.record.get("high_precision", options.high_precision)))
        engine = backend.load(entry.folder, used)
        loaded.append(engine)
    if options.precision != "int8" or not backend.real_int8:
        return PreparedEngine(engine, backend, used, entry, None, "", (), cached)
    if recorded := entry.record.get("fidelity"):
        fidelity = Fidelity(**{k: v for k, v in recorded.items() if k != "trusted"})
        fallback = tuple(entry.record.get("fallback", ()))
        note = _note(used, entry.record.get("note", ""))
        return PreparedEngine(engine, backend, used, entry, fidelity, note, fallback, cached)
    missing = unavailable_reason(_reference_backend()) if patches else "no scan was given"
    if missing:
        note = _note(used, f"not compared with the simulation: {missing}")
        return PreparedEngine(engine, backend, used, entry, None, note, (), cached)
    try:
        with task.stage("comparing with the simulation"):
            fidelity = _compare(package, engine, used, _compared(patches))
    except BaseException:
        engine.close()
        raise
    if fidelity.trusted:
        entry = entry.update(fidelity=fidelity.to_json(), int8_mac_share=engine.describe().int8_mac_share)
        return PreparedEngine(engine, backend, used, entry, fidelity, _note(used), (), cached)
    engine.close()
    return _with_fallback(package, backend, options, key, patches, fidelity, task)


def is_prepared(package: ModelPackage, backend: EngineBackend, options: BuildOptions) -> bool:
    """Whether :func:`prepare` would load an engine that was built, and compared where it has to be, before."""
    options = replace(options, device=device_of(backend, options.device))
    if options.precision == "int8":
        options = replace(options, **form_of(backend).to_json())
    entry = cache.find(engine_key(package, backend, options))
    if entry is None:
        return False
    return options.precision != "int8" or not backend.real_int8 or bool(entry.record.get("fidelity"))


@contextmanager
def _closed_on_failure() -> Iterator[list[Engine]]:
    """Close the engines of the list if what follows fails; a task that was cancelled says so at the end of a stage, when they are loaded."""
    loaded: list[Engine] = []
    try:
        yield loaded
    except BaseException:
        for engine in loaded:
            engine.close()
        raise


def _note(options: BuildOptions, note: str = "") -> str:
    """What is said of an engine, and of the weights where they are kept to fewer bits."""
    return "; ".join(filter(None, [SEVEN_BIT_NOTE if options.weight_bits < 8 else "", note]))


def _compared(patches: Sequence[Patch]) -> Sequence[Patch]:
    return patches[: 1 if patches[0].size > _LARGE_PATCH else COMPARED_PATCHES]


@contextmanager
def strangers_network(backend: EngineBackend, package: ModelPackage) -> Iterator[None]:
    """What an engine stumbles over in a network, as one error: the network may be damaged, or made to do harm.

    Raises:
        EngineError: in place of any exception that is not this project's own.
    """
    try:
        yield
    except MedQuantError:
        raise
    except Exception as error:
        # Each engine raises types of its own for networks that it does not take.
        raise EngineError(
            f"{backend.title} cannot take the network of {package.spec.name}: {graph.reason_of(error)}.",
            "Choose another engine with --engine, or import the network again.",
        ) from error


def _build(
    package: ModelPackage, backend: EngineBackend, options: BuildOptions, key: dict[str, Any], task: Task, **record: Any
) -> cache.CacheEntry:
    def build(folder: Path) -> dict[str, Any]:
        network = package.onnx_path(options.precision)
        with strangers_network(backend, package):
            if isinstance(backend, ReportsBuild):
                backend.build_with(network, folder, options, task)
            else:
                backend.build(network, folder, options)
        return {"high_precision": list(options.high_precision), **record}

    return cache.make(key, build)


def _reference_backend() -> EngineBackend:
    from .onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend()


def _compare(package: ModelPackage, engine: Engine, options: BuildOptions, patches: Sequence[Patch]) -> Fidelity:
    from tempfile import TemporaryDirectory

    reference = _reference_backend()
    loaded = []
    for precision in ("int8", "fp32"):
        wanted = replace(
            options, precision=precision, high_precision=options.high_precision if precision == "int8" else ()
        )  # type: ignore[arg-type]
        with TemporaryDirectory(prefix="medquant-reference-") as scratch:
            reference.build(package.onnx_path(precision), Path(scratch), wanted)
            loaded.append(reference.load(Path(scratch), wanted))
    labels = labels_of(package.spec.output)
    return compare(engine, loaded[0], loaded[1], patches, labels)


def _with_fallback(
    package: ModelPackage,
    backend: EngineBackend,
    options: BuildOptions,
    key: dict[str, Any],
    patches: Sequence[Patch],
    wrong: Fidelity,
    task: Task,
) -> PreparedEngine:
    """Rebuild with the layers at fault in high precision; with more of them where the faults of the rest still add up.

    Raises:
        EngineError: no such engine agrees with the simulation; says what was tried.
    """
    networks = Networks(package.onnx_path("int8"), package.onnx_path("fp32"), labels_of(package.spec.output))
    search = LayerSearch(backend, networks, options, patches[0], task)
    problem = f"real INT8 differed from the simulation by {wrong.relative_error:.3g} (relative)"
    shutil.rmtree(cache.cache_root() / cache.key_of(key), ignore_errors=True)
    layers: list[str] = []
    tried: list[str] = []
    for share in SEARCHED_SHARES:
        culprits = search.find(share)
        if set(culprits) <= set(layers):
            continue
        layers = [name for name in search.quantized if name in {*layers, *culprits}]
        safe = replace(options, high_precision=tuple(sorted({*options.high_precision, *layers})))
        note = f"{problem}; {len(layers)} layer(s) were put back to high precision"
        with _closed_on_failure() as loaded, task.stage("rebuilding the engine"):
            entry = _build(package, backend, safe, key, task, fallback=layers, note=note)
            engine = backend.load(entry.folder, safe)
            loaded.append(engine)
            fidelity = _compare(package, engine, safe, _compared(patches))
        if fidelity.trusted:
            entry = entry.update(fidelity=fidelity.to_json(), int8_mac_share=engine.describe().int8_mac_share)
            return PreparedEngine(
                engine, backend, safe, entry, fidelity, _note(safe, note), tuple(layers), cached=False
            )
        engine.close()
        shutil.rmtree(entry.folder, ignore_errors=True)
        tried.append(
            f"by {fidelity.relative_error:.3g} with {len(layers)} layer(s) in high precision ({_named(layers)})"
        )
    outcome = (
        f"and still {', '.join(tried)}"
        if tried
        else "and each of its layers agrees with the simulation when it is alone"
    )
    raise EngineError(
        f"{backend.title} computes the INT8 network of {package.spec.name} wrongly: {problem}, {outcome}.",
        "Use --precision fp32, or another engine.",
    )


def _named(layers: Sequence[str]) -> str:
    return ", ".join(layers[:_NAMED]) + (f" and {len(layers) - _NAMED} more" if len(layers) > _NAMED else "")
