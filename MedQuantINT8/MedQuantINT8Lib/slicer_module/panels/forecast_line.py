"""The line under the button that says what will happen before it happens."""

from __future__ import annotations

from slicer.i18n import tr as _

from ..forecast import Forecast
from .job_runner import duration

_GB = 1e9
_SMALLEST_GB = 0.1


def forecast_text(forecast: Forecast) -> str:
    """Engine and precision, time and memory; what is not known is said to be unknown."""
    precision = forecast.precision.upper() or _("INT8 or FP32, whichever is faster")
    engine = forecast.engine or _("the fastest engine of this computer")
    parts = [_("{precision} on {engine}").format(precision=precision, engine=engine)]
    if forecast.seconds is None:
        parts.append(_("time unknown until the first run"))
    else:
        parts.append(_("about {time}").format(time=duration(max(1.0, forecast.seconds))))
    if forecast.memory_bytes is not None:
        parts.append(_("{memory} GB").format(memory=f"{max(_SMALLEST_GB, forecast.memory_bytes / _GB):.1f}"))
    return ", ".join(parts)
