"""Learning from pairs of answers: the DPO family, and its relatives without a reference policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, final

from torch import Tensor

from posttrain.functional.coefficients import constant
from posttrain.methods.parts.paired import PairLoss, Preference
from posttrain.methods.parts.recipe import Recipe
from posttrain.methods.parts.referenced import Referenced
from posttrain.models.reference import ReferencePolicy
from posttrain.types import TokenTree


@final
class DPO(Referenced, Preference):
    """Direct preference optimisation (arXiv:2305.18290) and its variants, against the policy that entered the stage.

    reference, reference_update_every, reference_update_mix: see `posttrain.models.reference.ReferencePolicy`. reference_cache: folder of
    the log-probabilities that reference=cached computes or finds there, None for one in the user's cache.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        loss: PairLoss,
        beta_schedule: Callable[[float], float] = constant,
        sft_weight: float = 0.0,
        tail_weight: float = 1.0,
        wpo: bool = False,
        reference: Literal["auto", "adapters", "copy", "cached"] = "auto",
        reference_update_every: int | None = None,
        reference_update_mix: float = 0.6,
        reference_cache: str | None = None,
    ) -> None:
        super().__init__(recipe, loss=loss, beta_schedule=beta_schedule, sft_weight=sft_weight, tail_weight=tail_weight, wpo=wpo)
        self.reference = ReferencePolicy(reference, update_every=reference_update_every, update_mix=reference_update_mix)

    def reference_logps(self, tree: TokenTree) -> Tensor | None:
        logps = self.reference(tree)
        assert isinstance(logps, Tensor)
        return logps


@final
class ReferenceFree(Preference):
    """Pair losses on the policy's own log-probabilities: SimPO (arXiv:2405.14734), CPO (arXiv:2401.08417), ORPO (arXiv:2403.07691)."""

    has_reference: ClassVar[bool] = False

    def reference_logps(self, tree: TokenTree) -> Tensor | None:
        return None
