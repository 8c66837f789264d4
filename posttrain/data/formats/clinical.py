"""MTS-Dialog: doctor-patient dialogues and the section of the clinical note that sums them up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.data.formats.fields import conversation, filled, text_of, turn
from posttrain.data.formats.registry import register
from posttrain.types import Example


@register("mts_dialog", needs=[["dialogue", "section_text"]])
def convert(row: Mapping[str, Any]) -> Example:
    """{"ID", "section_header", "section_text", "dialogue"}: dialogue and section name in, the section out."""
    header = text_of(row, "section_header", "").strip()
    asked = f"Summarize this dialogue as {f'the {header} section of ' if header else ''}a clinical note."
    return conversation(turn(f"{asked}\n\n{filled(row, 'dialogue')}", filled(row, "section_text").strip()), meta={"section": header})
