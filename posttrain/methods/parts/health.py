"""Signs that a preference run goes wrong, told once each."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)

START_DRIFT = 1e-3  # nats^2 a token, twice the k3 estimate: far above rounding in bfloat16, below what a wrong reference shows
COLLAPSE = -0.5  # nats a token


class DriftWatch:
    """Reads the step's means `drift/kl` and `drift/chosen` (nats a token, against the reference).

    told: what was told; in checkpoints, so that a run which goes on does not say it again.
    """

    def __init__(self) -> None:
        self.told: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        return {"told": sorted(self.told)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.told = set(state["told"])

    def look(self, step: int, sums: Mapping[str, float], *, leads: bool) -> None:
        """step: the optimizer step that `sums` are of, from 1. leads: whether this process speaks."""
        if not leads or "drift/kl" not in sums:
            return
        if step == 1 and sums["drift/kl"] > START_DRIFT:
            self._tell(
                "start",
                "policy and reference differ before the first update (%.2g nats a token): dropout, or a reference that is not the model "
                "that entered this stage",
                sums["drift/kl"],
            )
        if sums.get("drift/chosen", 0.0) < COLLAPSE:
            self._tell(
                "collapse",
                "step %d: the chosen answers have lost %.2f nats a token against the reference: the policy is unlearning them. Lower "
                "optimizer.lr, raise method.loss.beta, or add method.sft_weight",
                step,
                -sums["drift/chosen"],
            )

    def _tell(self, what: str, message: str, *values: float) -> None:
        if what not in self.told:
            self.told.add(what)
            log.warning(message, *values)
