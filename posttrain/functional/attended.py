"""How many products of a query and a key attention computes: what its operations are counted by."""

from __future__ import annotations

from typing import Any

QUERY_BLOCK = 128  # queries that share the keys up to their last one; device kernels skip what is masked in blocks of about this size


def attended(length: Any, before: Any) -> Any:
    """Products of the queries of a segment of `length` tokens with its own keys and with the `before` keys of its ancestors.

    Queries are taken in blocks of QUERY_BLOCK; each block multiplies with every key up to its own end, the masked ones among them
    included. Numbers, or arrays of them.
    """
    full, rest = length // QUERY_BLOCK, length % QUERY_BLOCK
    return QUERY_BLOCK * full * before + QUERY_BLOCK * QUERY_BLOCK * full * (full + 1) / 2 + rest * (before + length)
