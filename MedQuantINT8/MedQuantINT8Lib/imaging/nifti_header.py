"""The header of a NIfTI file, version 1 or 2, of either byte order: sizes, voxel type, scaling and where voxels lie.

Read here and not by ITK, because ITK says nothing where sform and qform disagree, straightens or refuses a shear, and
replaces spacings of zero by 1 mm. The fields are those of the standard (https://nifti.nimh.nih.gov); what
:func:`matrix_of` takes where both forms are given is what nibabel takes.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Matrix = NDArray[np.float64]
NiftiForm = Literal["auto", "sform", "qform"]
HEADER_BYTES = 540
#: The largest distance of a voxel center between sform and qform that is only rounding (both are float32), in shares of a voxel.
FORM_TOLERANCE = 0.01
#: By how much, in shares, the length of a column of nine float32 numbers may differ from the float32 length itself.
_ROUNDING = 5e-7

#: Voxel types by their code in the header; those of 128 bits and of colors have none in numpy.
TYPES: dict[int, str] = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 32: "c8", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8", 1792: "c16"
}  # fmt: skip
_REFUSED = {
    1: "1-bit voxels",
    128: "RGB colors",
    2304: "RGBA colors",
    1536: "128-bit floating point",
    2048: "256-bit complex numbers",
}
_INTENTS_OF_TIME = {2001: "a time series"}
_VECTORS = {
    1004: "matrices",
    1005: "symmetric matrices",
    1006: "displacements",
    1007: "vectors",
    1009: "triangles",
    2003: "RGB colors",
    2004: "RGBA colors",
}
_TIME_UNITS = {8: "seconds", 16: "milliseconds", 24: "microseconds", 32: "Hz", 40: "ppm", 48: "rad/s"}


@dataclass(frozen=True)
class NiftiHeader:
    """What the header says, checked.

    Attributes:
        shape: voxels along I, J, K, and frames along a fourth axis (1 where there is none).
        dtype: of the file, with its byte order.
        offset: bytes before the first voxel.
        slope, intercept: value = slope x stored + intercept.
        spacing: pixdim of I, J, K in millimeters.
        sform, qform: IJK-to-RAS matrices, None where the header gives none.
        fourth: what the fourth axis is called in messages, "" if the header does not say.
    """

    version: int
    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    spacing: tuple[float, float, float]
    sform: Matrix | None
    qform: Matrix | None
    fourth: str
    units: float

    @property
    def data_bytes(self) -> int:
        """The bytes of all voxels."""
        return math.prod(self.shape) * self.dtype.itemsize


def parse_header(data: bytes, name: str) -> NiftiHeader:
    """Return what the first bytes of an unpacked NIfTI file say.

    Raises:
        InputError: no NIfTI header, or one that is cut off, contradicts itself or names what cannot be read.
    """
    version, order = _form_of(data, name)
    fields = _fields(data, version, order, name)
    dims, pixdim = fields["dim"], fields["pixdim"]
    shape = _shape(dims, name)
    code = fields["datatype"]
    if code not in TYPES:
        raise InputError(
            f"{name} holds {_REFUSED.get(code, f'voxels of an unknown type (code {code})')}.",
            "Convert it to numbers of 8 to 64 bits.",
        )
    dtype = np.dtype(order + TYPES[code])
    if fields["bitpix"] not in (0, 8 * dtype.itemsize):
        raise InputError(
            f"{name} says {fields['bitpix']} bits a voxel, but its voxel type has {8 * dtype.itemsize}.",
            "The file is damaged; copy it again.",
        )
    if fields["intent"] in _VECTORS:
        raise InputError(f"{name} holds {_VECTORS[fields['intent']]}, not a scan.", "Give the scan itself.")
    spacing = pixdim[1:4]
    if not all(map(math.isfinite, spacing)) or min(spacing) <= 0:
        raise InputError(
            f"{name} has a voxel spacing of {' x '.join(f'{s:g}' for s in spacing)} mm.",
            "Repair its header, for example in Slicer's Volumes module.",
        )
    offset = fields["vox_offset"]
    least = 352 if version == 1 else 544
    if not math.isfinite(offset) or not 0 <= offset < 2**62:
        raise InputError(
            f"{name} says that its voxels begin at byte {offset:g}.", "The file is damaged; copy it again."
        )
    slope, intercept = fields["scl_slope"], fields["scl_inter"]
    if not math.isfinite(slope) or slope == 0.0:
        slope, intercept = 1.0, 0.0  # As the standard and nibabel have it: no scaling.
    if not math.isfinite(intercept):
        raise InputError(
            f"{name} adds {intercept:g} to every voxel (scl_inter).", "Repair its header, or export the scan again."
        )
    units = {1: 1000.0, 3: 0.001}.get(fields["xyzt_units"] & 7, 1.0)
    fourth = _INTENTS_OF_TIME.get(fields["intent"], "") or _time(fields["xyzt_units"] & 56, pixdim[4])
    a, b, c = (float(s) * units for s in spacing)
    return NiftiHeader(
        version, shape, dtype, max(int(offset), least), float(slope), float(intercept), (a, b, c),
        _sform(fields, units), _qform(fields, units), fourth if shape[3] > 1 else "", units,
    )  # fmt: skip


def _form_of(data: bytes, name: str) -> tuple[int, str]:
    if len(data) >= 4:
        for order in "<>":
            size = struct.unpack(order + "i", data[:4])[0]
            if size == 540:
                return 2, order
            if size == 348:
                return 1, order
        raise InputError(
            f"{name} cannot be read: it does not begin with a NIfTI header.",
            "It may be of another type or damaged; copy it again.",
        )
    raise InputError(f"{name} is cut off within its header.", "Copy or download it again.")


def _fields(data: bytes, version: int, order: str, name: str) -> dict[str, Any]:
    size = 348 if version == 1 else 540
    if len(data) < size:
        raise InputError(f"{name} is cut off within its header.", "Copy or download it again.")

    def numbers(form: str, at: int) -> Any:
        values = struct.unpack_from(order + form, data, at)
        return values[0] if len(values) == 1 else values

    if version == 1:
        magic = data[344:348]
        places = {
            "dim": ("8h", 40), "intent": ("h", 68), "datatype": ("h", 70), "bitpix": ("h", 72), "pixdim": ("8f", 76), "vox_offset": ("f", 108),
            "scl_slope": ("f", 112), "scl_inter": ("f", 116), "xyzt_units": ("B", 123), "qform_code": ("h", 252), "sform_code": ("h", 254),
            "quaternion": ("3f", 256), "qoffset": ("3f", 268), "srow": ("12f", 280),
        }  # fmt: skip
    else:
        magic = data[4:8]
        places = {
            "dim": ("8q", 16), "intent": ("i", 504), "datatype": ("h", 12), "bitpix": ("h", 14), "pixdim": ("8d", 104), "vox_offset": ("q", 168),
            "scl_slope": ("d", 176), "scl_inter": ("d", 184), "xyzt_units": ("i", 500), "qform_code": ("i", 344), "sform_code": ("i", 348),
            "quaternion": ("3d", 352), "qoffset": ("3d", 376), "srow": ("12d", 400),
        }  # fmt: skip
    fields = {key: numbers(*place) for key, place in places.items()}
    if magic[:2] == b"ni" and magic[2:3] in b"12":
        raise InputError(f"{name} is the header of a pair (.hdr and .img).", "Convert it to a single .nii file.")
    if version == 1 and magic[:2] != b"n+":
        # Analyze 7.5, which nothing but the missing mark tells from NIfTI: these bytes are other fields there.
        fields |= {"qform_code": 0, "sform_code": 0, "intent": 0, "scl_slope": 1.0, "scl_inter": 0.0, "xyzt_units": 0}
    return fields


def _shape(dims: tuple[int, ...], name: str) -> tuple[int, int, int, int]:
    count = dims[0]
    if not 1 <= count <= 7 or any(n < 1 for n in dims[1 : 1 + count]):
        raise InputError(
            f"{name} says that it has {count} axes of {' x '.join(map(str, dims[1 : 1 + max(0, min(7, count))]))} voxels.",
            "The file is damaged; copy it again.",
        )
    sizes = [*dims[1 : 1 + count], *[1] * (7 - count)]
    if count < 3:
        raise InputError(f"{name} is a {count}-dimensional image, not a volume.", "Give the whole 3D scan.")
    many = [n for n in sizes[3:] if n > 1]
    if len(many) > 1:
        raise InputError(
            f"{name} has more than four axes: {' x '.join(map(str, dims[1 : 1 + count]))}.", "Give one 3D scan."
        )
    return sizes[0], sizes[1], sizes[2], math.prod(sizes[3:])


def _time(code: int, step: float) -> str:
    """Return what the fourth axis is by its unit. Many writers put seconds there with nothing to say: only with a step it counts."""
    return (
        f"a series in {_TIME_UNITS[code]}"
        if code in _TIME_UNITS and (code != 8 or (math.isfinite(step) and step not in (0.0, 1.0)))
        else ""
    )


def _usable(matrix: Matrix) -> Matrix | None:
    if not np.isfinite(matrix).all() or min(lengths := np.linalg.norm(matrix[:3, :3], axis=0)) < 1e-6:
        return None
    return matrix if abs(np.linalg.det(matrix[:3, :3] / lengths)) > 1e-3 else None


def _sform(fields: dict[str, Any], units: float) -> Matrix | None:
    if fields["sform_code"] <= 0:
        return None
    matrix = np.eye(4)
    matrix[:3] = np.array(fields["srow"], np.float64).reshape(3, 4) * units
    return _usable(matrix)


def _qform(fields: dict[str, Any], units: float) -> Matrix | None:
    if fields["qform_code"] <= 0:
        return None
    b, c, d = (float(x) for x in fields["quaternion"])
    if not all(map(math.isfinite, (b, c, d))) or (square := 1.0 - (b * b + c * c + d * d)) < -1e-3:
        return None
    a = math.sqrt(max(0.0, square))
    norm = math.sqrt(a * a + b * b + c * c + d * d)
    a, b, c, d = a / norm, b / norm, c / norm, d / norm
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ]
    qfac = -1.0 if fields["pixdim"][0] < 0 else 1.0
    matrix[:3, :3] *= np.array(fields["pixdim"][1:4]) * np.array([1.0, 1.0, qfac]) * units
    matrix[:3, 3] = np.array(fields["qoffset"]) * units
    return _usable(matrix)


def matrix_of(header: NiftiHeader, form: NiftiForm, name: str) -> tuple[Matrix, list[str]]:
    """Return the IJK-to-RAS matrix, and what has to be said of it.

    By default the sform where its code is not zero, else the qform: what nibabel, MONAI and (for scanner coordinates) ITK
    and Slicer take. Without either, the axes run to the right, the front and the head (the standard's first method, as in ITK).

    Raises:
        InputError: the form that was asked for is not there.
    """
    if form != "auto":
        matrix = header.sform if form == "sform" else header.qform
        if matrix is None:
            raise InputError(
                f"{name} has no usable {form}.",
                f"Leave --nifti-form out, or give {'qform' if form == 'sform' else 'sform'}.",
            )
        return _as_long_as_pixdim(matrix, header), []
    notes = []
    matrix = header.sform if header.sform is not None else header.qform
    if (
        header.sform is not None
        and header.qform is not None
        and (distance := _form_distance(header)) > FORM_TOLERANCE * min(header.spacing)
    ):
        notes.append(
            f"{name}: sform and qform disagree by up to {distance:.3g} mm; the sform was taken (--nifti-form qform takes the other)"
        )
    if matrix is None:
        notes.append(
            f"{name} does not say how it lies in the patient: its axes were taken as right, front and head, so left and right may be exchanged"
        )
        return np.diag([*header.spacing, 1.0]), notes
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if not np.allclose(lengths, header.spacing, rtol=1e-2):
        sizes = " x ".join(f"{s:g}" for s in header.spacing)
        notes.append(
            f"{name}: its sform has voxels of {' x '.join(f'{s:g}' for s in lengths)} mm, its pixdim of {sizes} mm; the sform was taken"
        )
    return _as_long_as_pixdim(matrix, header), notes


def _as_long_as_pixdim(matrix: Matrix, header: NiftiHeader) -> Matrix:
    """Return the matrix with columns of exactly pixdim's lengths, where they differ by no more than the rounding of 32 bits.

    ITK, Slicer and nnU-Net take voxel sizes from pixdim. An oblique sform's nine rounded numbers give 2.9999999 mm for 3 mm, which
    would decide how half a voxel is rounded.
    """
    lengths, spacing = np.linalg.norm(matrix[:3, :3], axis=0), np.array(header.spacing)
    if (lengths <= 0).any():
        return matrix
    exact = matrix.copy()
    exact[:3, :3] *= np.where(np.abs(lengths - spacing) <= _ROUNDING * spacing, spacing / lengths, 1.0)
    return exact


def _form_distance(header: NiftiHeader) -> float:
    """Return how far a corner of the volume moves between the two forms, in millimeters."""
    assert header.sform is not None and header.qform is not None
    i, j, k, _ = header.shape
    corners = np.array([[x, y, z, 1.0] for x in (0, i - 1) for y in (0, j - 1) for z in (0, k - 1)])
    return float(np.linalg.norm((corners @ (header.sform - header.qform).T)[:, :3], axis=1).max())
