"""What the methods that compare with a reference policy share."""

from __future__ import annotations

from abc import ABC

from posttrain.methods.base import Method
from posttrain.models.reference import AdaptersOff, ReferencePolicy


class Referenced(Method, ABC):
    """A method with a `reference`, which its constructor makes: built with the model, moved between steps, in checkpoints if it moves."""

    reference: ReferencePolicy

    def build_beside(self) -> None:
        super().build_beside()
        if self.referenced and self.recipe.trains:
            self.reference.build(self.model, self.recipe.policy)

    @property
    def referenced(self) -> bool:
        """Whether anything asks the reference policy."""
        return True

    def advance(self, step: int) -> None:
        """Before optimizer step `step` (from 0): move the reference if it is time."""
        if self.reference.due(step):
            with self.sharding.editable(self):
                self.reference.advance(step, self.model)

    def before_step(self, step: int) -> None:
        self.advance(step)
        super().before_step(step)

    def copies(self, *, adapters_off_restore: bool) -> int:
        return int(self.reference.is_copy(adapters_off_restore=adapters_off_restore))

    @property
    def forward_passes(self) -> float:
        return super().forward_passes + self.reference.forward_passes

    @property
    def bare_passes(self) -> float:
        return float(self.referenced and isinstance(self.reference.source, AdaptersOff))

    def saved_names(self) -> set[str]:
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        return super().saved_names() | {f"reference.{name}" for name in self.reference.moving_names(trained)}
