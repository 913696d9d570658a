"""Figures and documents that a person reads."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def _import_matplotlib_without_its_variable() -> None:
    """Imports matplotlib without MPLBACKEND, which names a backend of Jupyter in programs that it starts, and then ends the import.

    Figures here are files, and need none; for other code in the process, a backend that exists here is set as the import would.
    """
    backend = os.environ.pop("MPLBACKEND")
    try:
        import matplotlib
    finally:
        os.environ["MPLBACKEND"] = backend
    with suppress(ValueError):
        matplotlib.rcParams["backend"] = backend


if "matplotlib" not in sys.modules and os.environ.get("MPLBACKEND"):
    _import_matplotlib_without_its_variable()
