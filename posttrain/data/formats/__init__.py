"""The formats of training data: a registry that finds every file of this folder, and the rule that detects a source's format.

A new format is a new file here: a function `convert(row, *, options) -> Example | Filtered` under `@register(...)`.
"""

from __future__ import annotations

from posttrain.data.formats.registry import Filtered, Format, RowError, detect, formats, get, options_of, register

__all__ = ["Filtered", "Format", "RowError", "detect", "formats", "get", "options_of", "register"]
