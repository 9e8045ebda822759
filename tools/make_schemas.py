"""Write the published schemas in MedQuantINT8/Resources from one place: python tools/make_schemas.py"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "MedQuantINT8"))

from MedQuantINT8Lib.models import spec_parser, task
from MedQuantINT8Lib.resources import resource

_NUMBER, _TEXT = {"type": "number"}, {"type": "string"}
_NAME = {"type": "string", "pattern": "\\S"}


def _object(required: list[str], **properties: object) -> dict[str, object]:
    return {"type": "object", "required": required, "additionalProperties": False, "properties": properties}


def _maybe(item: dict[str, object]) -> dict[str, object]:
    return {"anyOf": [item, {"type": "null"}]}


def _choice(*values: str) -> dict[str, object]:
    return {"enum": list(values)}


_COUNT = {"type": "integer", "minimum": 1}


def model_schema() -> dict[str, object]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "MedQuantINT8 model package: model.json",
        **spec_parser.model_schema(),
    }


def task_schema() -> dict[str, object]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "MedQuantINT8 task: task.json",
        **task.task_schema(),
    }


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
        form=_choice("onnx", "bundle", "nnunet", "auto3dseg", "package", "task"),
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
        resampling=_choice("nnunet", "totalsegmentator"),
        spec={"type": "object"},
    )
    # Where nothing can be downloaded, the entry says how it is got by hand; a task is got by the models that it runs.
    item["if"] = {"properties": {"url": {"type": "null"}, "form": {"not": {"const": "task"}}}}
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


SCHEMAS = {
    "model.schema.json": model_schema,
    "task.schema.json": task_schema,
    "report.schema.json": report_schema,
    "models.schema.json": models_schema,
}

if __name__ == "__main__":
    for name, make in SCHEMAS.items():
        resource("phantom_unet.onnx").with_name(name).write_text(json.dumps(make(), indent=2) + "\n", encoding="utf-8")
