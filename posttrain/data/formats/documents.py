"""Plain text, and source files as in The Stack v2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from posttrain.data.formats.fields import filled, list_of, text_of
from posttrain.data.formats.registry import Filtered, RowError, register
from posttrain.types import Example


@register("text", needs=[["text"]], kind="text")
def convert(row: Mapping[str, Any]) -> Example:
    """{"text"}: a document."""
    return Example(text=filled(row, "text"))


@register("stack_v2", needs=[["content", "blob_id"], ["content", "language", "path"]], kind="text")
def convert_stack(
    row: Mapping[str, Any],
    *,
    languages: list[str] | None = None,
    licenses: list[str] | None = None,
    license_types: list[Literal["permissive", "no_license"]] | None = None,
    vendor: bool = False,
    generated: bool = False,
) -> Example | Filtered:
    """The Stack v2 with a `content` column (the published rows hold none: it comes from Software Heritage by `blob_id`).

    languages, licenses, license_types: keep only these, by `language`, any of `detected_licenses`, `license_type`; null keeps all.
    vendor, generated: keep files so marked.
    """
    if row.get("content") is None:
        raise RowError("has no content: fetch it from Software Heritage by blob_id first")
    reason = (
        ("vendor" if row.get("is_vendor") and not vendor else None)
        or ("generated" if row.get("is_generated") and not generated else None)
        or _unless(languages, [text_of(row, "language", "")], "language")
        or _unless(licenses, list_of(row, "detected_licenses"), "license")
        or _unless(license_types, [text_of(row, "license_type", "")], "license type")
    )
    if reason:
        return Filtered(reason)
    meta = {key: row.get(key) for key in ("language", "path", "repo_name")}
    return Example(text=filled(row, "content"), meta=meta)


def _unless(wanted: list[Any] | None, found: Any, reason: str) -> str | None:
    """`reason` where something is wanted and nothing of it is found; without regard to case."""
    if wanted is None:
        return None
    names = {str(name).lower() for name in wanted}
    return None if any(str(name).lower() in names for name in found) else reason
