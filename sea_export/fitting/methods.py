"""The known methods by name. To add one, write its module and add a line here."""

from __future__ import annotations

from typing import Any

from sea_export.fitting.edit_method import EditMethod
from sea_export.fitting.spectral import SpectralMethod

__all__ = ["DEFAULT_METHOD", "METHODS"]

METHODS: dict[str, EditMethod[Any]] = {
    "spectral": SpectralMethod(),
}

DEFAULT_METHOD = "spectral"
"""The name of the method of every fit, as long as there is only one."""
