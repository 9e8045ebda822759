"""Texts that a user of the window reads, in the application's language. Outside of Slicer they stay as they are."""

from __future__ import annotations

import sys


def tr(text: str) -> str:
    """Return the text in the language of the application; Slicer's tools find texts by the call ``_("...")`` of it."""
    if "slicer" not in sys.modules:
        # Nothing to ask, and importing Slicer's core takes over a second.
        return text
    try:
        from slicer.i18n import tr as translated
    except ImportError:
        # Slicer's core without the application.
        return text
    return str(translated(text))
