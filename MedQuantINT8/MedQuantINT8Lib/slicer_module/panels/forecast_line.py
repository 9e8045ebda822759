"""The line under the button that says what will happen before it happens."""

from __future__ import annotations

from slicer.i18n import tr as _

from ..forecast import Forecast
from .job_runner import duration, unbroken

_GB = 1e9
_SMALLEST_GB = 0.1


def forecast_text(forecast: Forecast) -> str:
    """Engine and precision, time and memory; what is not known is said to be unknown."""
    precision = forecast.precision.upper() or _("The faster of INT8 and FP32")
    engine = forecast.engine or _("the fastest engine of this computer")
    parts = [_("{precision} on {engine}").format(precision=precision, engine=engine)]
    if forecast.seconds is None:
        parts.append(_("time unknown until the first run"))
    else:
        time = duration(max(1.0, forecast.seconds))
        parts.append((_("at most {time}") if forecast.at_most else _("about {time}")).format(time=time))
    if forecast.memory_bytes is not None:
        memory = f"{max(_SMALLEST_GB, forecast.memory_bytes / _GB):.1f}"
        parts.append(unbroken(_("{memory} GB").format(memory=memory)))
    return ", ".join(parts)
