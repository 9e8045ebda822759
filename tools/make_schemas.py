"""Write the published schemas in MedQuantINT8/Resources from one place: python tools/make_schemas.py"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "MedQuantINT8"))

from MedQuantINT8Lib.models.spec import Channel, Cleaning, Crop, Fit, Geometry, Label, Normalization, Output, Window
from MedQuantINT8Lib.resources import resource

_NUMBER, _TEXT = {"type": "number"}, {"type": "string"}
_NAME = {"type": "string", "pattern": "\\S"}


def _object(required: list[str], **properties: object) -> dict[str, object]:
    return {"type": "object", "required": required, "additionalProperties": False, "properties": properties}


def _triple(item: dict[str, object]) -> dict[str, object]:
    return {"type": "array", "items": item, "minItems": 3, "maxItems": 3}


def _maybe(item: dict[str, object]) -> dict[str, object]:
    return {"anyOf": [item, {"type": "null"}]}


def _choice(*values: str) -> dict[str, object]:
    return {"enum": list(values)}


_POSITIVE = {"type": "number", "exclusiveMinimum": 0}
_NOT_NEGATIVE = {"type": "number", "minimum": 0}
_WHOLE = {"type": "integer", "minimum": 0}
_PADDING = _choice("constant", "edge", "reflect", "wrap")
_COUNT = {"type": "integer", "minimum": 1}
_CODE = _object(["scheme", "value", "meaning"], scheme=_NAME, value=_NAME, meaning=_NAME)


_SPLINE = _object(
    [], order={"enum": [0, 1, 3]}, order_z={"enum": [0, 1]}, separate_z=_maybe({"type": "boolean"}), threshold=_POSITIVE
)


def model_schema() -> dict[str, object]:
    normalization = _object(
        ["kind"],
        kind=_choice(
            "window",
            "minmax",
            "percentile",
            "zscore",
            "nnunet_ct",
            "linear",
            "sigmoid",
            "tanh",
            "clip",
            "clip_percentile",
            "threshold",
            "truncate",
            "spread",
        ),
        low=_maybe(_NUMBER),
        high=_maybe(_NUMBER),
        mean=_maybe(_NUMBER),
        std=_maybe(_POSITIVE),
        clip={"type": "boolean"},
        mask=_choice("all", "nonzero", "above_mean", "nonzero_filled"),
        channels={"type": "array", "items": {"type": "integer", "minimum": 0}},
        over=_choice("channel", "all"),
        fill=_NUMBER,
    )
    needs = [
        ("window", ["low", "high"]),
        ("percentile", ["low", "high"]),
        ("nnunet_ct", ["low", "high", "mean", "std"]),
        ("linear", ["low", "high"]),
        ("tanh", ["high"]),
    ]
    normalization["allOf"] = [
        {
            "if": {"properties": {"kind": {"const": kind}}},
            "then": {"required": names, "properties": dict.fromkeys(names, _NUMBER)},
        }
        for kind, names in needs
    ]
    label = _object(
        ["value", "name", "channel"],
        value={"type": "integer", "minimum": 1, "maximum": 65535},
        name=_NAME,
        channel={"type": "integer", "minimum": 0},
        color=_triple({"type": "integer", "minimum": 0, "maximum": 255}),
        terminology=_maybe(_object(["category", "type"], category=_CODE, type=_CODE, modifier=_maybe(_CODE))),
    )
    schema = _object(
        [
            "schema",
            "schema_version",
            "name",
            "version",
            "modality",
            "channels",
            "geometry",
            "normalization",
            "window",
            "output",
            "labels",
            "license",
        ],
        schema={"const": "medquant-model"},
        schema_version={"enum": ["1.0", "1.1", "1.2", "1.3"]},
        name={"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]*$"},
        version=_NAME,
        modality=_NAME,
        title=_TEXT,
        description=_TEXT,
        channels={"type": "array", "minItems": 1, "items": _object(["name"], name=_NAME)},
        geometry=_object(
            [],
            axis_order=_choice("IJK", "KJI"),
            orientation={"type": "string", "pattern": "^([RLAPSI]{3}|native)$"},
            spacing=_maybe(_triple(_maybe(_POSITIVE))),
            size=_maybe(_triple(_maybe(_COUNT))),
            anchor=_choice("centers", "edges", "monai", "monai_extent", "corners"),
            interpolation=_choice("linear", "bspline", "nearest", "nnunet", "area", "exact"),
            tolerance={"type": "number", "minimum": 0, "exclusiveMaximum": 1},
            reorient=_choice("first", "last"),
            spline=_maybe(_SPLINE),
            score_spline=_maybe(_SPLINE),
            tolerance_mm=_maybe(_NOT_NEGATIVE),
            min_spacing=_maybe(_triple(_maybe(_NOT_NEGATIVE))),
            max_spacing=_maybe(_triple(_maybe(_NOT_NEGATIVE))),
            diagonal={"type": "boolean"},
            outside=_choice("border", "zeros"),
            longest=_maybe(_COUNT),
            resize=_choice("resample", "torch"),
            anti_aliasing={"type": "boolean"},
        ),
        crop=_object(
            [],
            kind=_choice("none", "nonzero", "threshold"),
            threshold=_NUMBER,
            margin=_WHOLE,
            comparison=_choice(">", ">=", "<", "<=", "!="),
            margins=_maybe(_triple(_WHOLE)),
            multiples=_triple(_COUNT),
            channels={"type": "array", "items": _WHOLE},
            look_at=_choice("current", "scan"),
            beyond=_choice("cut", "pad"),
            padding=_PADDING,
            pad_value=_NUMBER,
        ),
        order={"type": "array", "items": _choice("crop", "reorient", "resample", "normalize", "fit")},
        fits={
            "type": "array",
            "items": _object(
                ["kind"],
                kind=_choice("crop", "crop_share", "pad", "pad_multiple"),
                size=_triple(_maybe(_COUNT)),
                share=_triple(_POSITIVE),
                padding=_PADDING,
                pad_value=_NUMBER,
                at_end={"type": "boolean"},
            ),
        },
        normalize_in=_choice("network", "input"),
        cleaning={
            "type": "array",
            "items": _object(
                [],
                kind=_choice("largest", "remove_small", "fill_holes"),
                labels={"type": "array", "items": {"type": "integer", "minimum": 1}},
                count=_COUNT,
                size={"type": "integer", "minimum": 0},
                connectivity={"enum": [1, 3]},
                together={"type": "boolean"},
                where=_choice("scan", "network"),
            ),
        },
        normalization={"type": "array", "items": normalization},
        window=_object(
            ["patch_size"],
            patch_size=_triple(_COUNT),
            multiples=_triple(_COUNT),
            overlap={"type": "number", "minimum": 0, "exclusiveMaximum": 1},
            whole_volume={"type": "boolean"},
            blend=_choice("gaussian", "constant"),
            placement=_choice("monai", "nnunet"),
            pad_value=_NUMBER,
            air_threshold=_maybe(_NUMBER),
            padding=_choice("constant", "edge", "reflect", "wrap"),
            overlaps=_maybe(_triple({"type": "number", "minimum": 0, "exclusiveMaximum": 1})),
            sigma=_triple(_POSITIVE),
        ),
        output=_object(
            [],
            activation=_choice("softmax", "sigmoid"),
            activated={"type": "boolean"},
            threshold={"type": "number", "minimum": 0, "maximum": 1},
            resample=_maybe(_choice("logits", "probabilities", "masks", "labels")),
            decision=_maybe(_choice("largest", "threshold")),
            thresholds={"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 1}},
            inclusive={"type": "boolean"},
            paint=_choice("order", "nested"),
        ),
        labels={"type": "array", "minItems": 1, "items": label},
        license=_NAME,
        citation=_TEXT,
        source_url=_TEXT,
        files={
            "type": "object",
            "required": ["model.onnx"],
            "additionalProperties": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        },
    )
    _describe(schema["properties"])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "MedQuantINT8 model package: model.json",
        **schema,
    }


#: What each part of model.json means, and what is computed by it, is said once: by the class that holds it.
_MEANINGS = {
    "channels": Channel, "crop": Crop, "fits": Fit, "geometry": Geometry, "normalization": Normalization, "window": Window, "output": Output,
    "cleaning": Cleaning, "labels": Label,
}  # fmt: skip


def _describe(properties: Any) -> None:
    for name, value in properties.items():
        if name in _MEANINGS:
            value["description"] = inspect.cleandoc(_MEANINGS[name].__doc__ or "").replace("``", "'")


def report_schema() -> dict[str, object]:
    run = {
        "type": "object",
        "required": ["scan", "precision", "seconds", "latency_ms", "windows", "notes", "engine", "peak_memory_bytes"],
        "properties": {
            "scan": _TEXT,
            "precision": _choice("int8", "fp32"),
            "windows": {"type": "integer", "minimum": 1},
            "seconds": {
                "type": "object",
                "required": ["total", "network"],
                "additionalProperties": {"type": "number", "minimum": 0},
            },
            "latency_ms": {"type": "object", "required": ["median", "p95"], "additionalProperties": _NUMBER},
            "notes": {"type": "array", "items": _TEXT},
            "peak_memory_bytes": {"type": ["integer", "null"], "minimum": 0},
            "engine": {
                "type": "object",
                "required": ["name", "precision", "bytes", "fidelity", "description"],
                "properties": {
                    "description": {
                        "type": "object",
                        "required": ["engine", "version", "verdict", "int8_mac_share", "layers"],
                        "properties": {
                            "verdict": _choice("INT8", "mixed", "not INT8"),
                            "int8_mac_share": {"type": "number", "minimum": 0, "maximum": 1},
                        },
                    }
                },
            },
        },
    }
    structure = {
        "type": "object",
        "required": ["value", "name", "dice", "ml", "other_ml"],
        "properties": {"dice": _maybe({"type": "number", "minimum": 0, "maximum": 1})},
    }
    agreement = {
        "type": "object",
        "required": ["scan", "first", "second", "mean_dice", "structures"],
        "properties": {
            "mean_dice": _maybe({"type": "number", "minimum": 0, "maximum": 1}),
            "structures": {"type": "array", "items": structure},
        },
    }
    picture = {"type": "object", "required": ["title", "png"], "properties": {"title": _TEXT, "png": _TEXT}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "MedQuantINT8 report: report.json",
        "type": "object",
        "required": [
            "schema",
            "schema_version",
            "created",
            "medquant_version",
            "machine",
            "model",
            "sizes",
            "calibration",
            "runs",
            "agreement",
            "pictures",
        ],
        "properties": {
            "schema": {"const": "medquant-report"},
            "schema_version": {"const": "1.0"},
            "machine": {"type": "object", "required": ["processor", "cores", "features"]},
            "model": {"type": "object", "required": ["name", "version", "license", "citation"]},
            "sizes": {"type": "object", "required": ["fp32_bytes"]},
            "runs": {"type": "array", "items": run},
            "agreement": {"type": "array", "items": agreement},
            "pictures": {"type": "array", "items": picture},
        },
    }


def models_schema() -> dict[str, object]:
    digest = {"anyOf": [{"type": "string", "pattern": "^[0-9a-f]+$"}, {"type": "null"}]}
    address = {"type": "string", "pattern": "^https://"}
    item = _object(
        [
            "name",
            "title",
            "task",
            "modality",
            "network",
            "form",
            "structures",
            "labels",
            "license",
            "license_url",
            "homepage",
            "citation",
            "url",
        ],
        name={"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]*$"},
        title=_NAME,
        task=_NAME,
        modality=_NAME,
        network=_NAME,
        form=_choice("onnx", "bundle", "nnunet", "auto3dseg"),
        structures=_COUNT,
        labels={"type": "array", "minItems": 1, "items": _NAME},
        license=_NAME,
        license_url=address,
        homepage=address,
        citation=_NAME,
        url=_maybe(address),
        by_hand=_TEXT,
        size_bytes=_maybe(_COUNT),
        sha256=digest,
        sha1=digest,
        needs_trust={"type": "boolean"},
        spec={"type": "object"},
    )
    # Where nothing can be downloaded, the entry says how it is got by hand.
    item["if"] = {"properties": {"url": {"type": "null"}}}
    item["then"] = {"required": ["by_hand"], "properties": {"by_hand": _NAME}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "MedQuantINT8 catalogue of models: Models.json",
        **_object(
            ["schema", "schema_version", "models"],
            schema={"const": "medquant-models"},
            schema_version={"const": "1.0"},
            models={"type": "array", "items": item},
        ),
    }


SCHEMAS = {"model.schema.json": model_schema, "report.schema.json": report_schema, "models.schema.json": models_schema}

if __name__ == "__main__":
    for name, make in SCHEMAS.items():
        resource("phantom_unet.onnx").with_name(name).write_text(json.dumps(make(), indent=2) + "\n", encoding="utf-8")
