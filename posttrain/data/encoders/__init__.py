"""What a kind of run makes of an Example: a registry that finds every file of this folder. A new kind is a new file here."""

from __future__ import annotations

from posttrain.data.encoders.registry import Drop, Encoded, EncodeSettings, check_format, encoder, example_of, get, readable

__all__ = ["Drop", "EncodeSettings", "Encoded", "check_format", "encoder", "example_of", "get", "readable"]
