"""Reward heads: from the state at an answer's last token to a reward. A new head is a new file here."""

from __future__ import annotations

from posttrain.models.heads.registry import RewardHead, head, make

__all__ = ["RewardHead", "head", "make"]
