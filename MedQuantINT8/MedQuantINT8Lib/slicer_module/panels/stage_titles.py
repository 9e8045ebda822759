"""What the worker does, in the application's language."""

from __future__ import annotations

from slicer.i18n import tr as _


def stage_title(stage: str) -> str:
    """A stage in the application's language; one that is not known, as the worker calls it."""
    part, separator, name = stage.rpartition(": ")
    # A part's name, such as a volume's, is left as it is.
    return f"{part}{separator}{_titles().get(name) or _named(name)}"


def _named(name: str) -> str:
    """The title of a stage that names what it works on, or of one that is not known."""
    word, _space, rest = name.partition(" ")
    return _("Downloading {file}").format(file=rest) if word == "downloading" else name[:1].upper() + name[1:]


def _titles() -> dict[str, str]:
    """The stages by the names that the worker gives them."""
    return {
        "loading the packages": _("Loading the model"),
        "reading": _("Reading"),
        "preprocessing": _("Preprocessing"),
        "preparing the engine": _("Preparing the engine"),
        "building the engine": _("Building the engine"),
        "rebuilding the engine": _("Rebuilding the engine"),
        "comparing with the simulation": _("Comparing with the simulation"),
        "looking for the layers at fault": _("Looking for the layers at fault"),
        "timing INT8 against FP32": _("Timing INT8 against FP32"),
        "choosing tiles": _("Choosing tiles"),
        "timing kernels": _("Timing kernels"),
        "compiling kernels": _("Compiling kernels"),
        "planning": _("Planning"),
        "segmenting": _("Segmenting"),
        "restoring the grid": _("Restoring the grid"),
        "looking at ranges": _("Looking at ranges"),
        "looking for differences": _("Looking for differences"),
        "writing": _("Writing"),
        "trying the network": _("Trying the network"),
        "calibrating": _("Calibrating"),
        "placing Q/DQ nodes": _("Placing the quantization nodes"),
        "making the network": _("Making the network"),
        "checking the agreement with FP32": _("Checking the agreement with FP32"),
        "finding the layers that INT8 cannot afford": _("Finding the layers that INT8 cannot afford"),
        "putting layers back to float": _("Putting layers back to float"),
        "timing what the layers cost": _("Timing what the layers cost"),
        "exporting": _("Exporting"),
        "comparing the export with PyTorch": _("Comparing the export with PyTorch"),
        "comparing the import": _("Comparing the import"),
        "comparing on held-out scans": _("Comparing on held-out scans"),
        "comparing on the scan": _("Comparing on the scan"),
        "comparing": _("Comparing"),
        "evaluating": _("Evaluating"),
        "finding the layers that need two INT8 halves": _("Finding the layers that need two INT8 halves"),
        "finding the layers whose weights INT8 cannot afford": _("Finding the layers whose weights INT8 cannot afford"),
        "finding the layers whose weights need two INT8 halves": _(
            "Finding the layers whose weights need two INT8 halves"
        ),
        "finding the layers whose weights need 8 bits": _("Finding the layers whose weights need 8 bits"),
        "finding the layers that weights of 4 bits cannot hold": _(
            "Finding the layers that weights of 4 bits cannot hold"
        ),
        "learning how to round weights": _("Learning how to round weights"),
        "looking at what is done": _("Looking at what is done"),
        "looking for scans": _("Looking for scans"),
        "making a scan": _("Making a scan"),
        "measuring": _("Measuring"),
        "networks": _("Networks"),
        "writing the results": _("Writing the results"),
    }
