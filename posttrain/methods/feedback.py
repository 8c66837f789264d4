"""Learning from answers judged one by one: KTO and BCO."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from posttrain.errors import ConfigError, Problem
from posttrain.functional.coefficients import constant
from posttrain.functional.feedback import MISMATCH, RUNNING_MEAN, answer_logps, function_of
from posttrain.functional.pairs import divergence_per_token
from posttrain.methods.parts.collectives import gather
from posttrain.methods.parts.health import DriftWatch
from posttrain.methods.parts.recipe import Recipe
from posttrain.methods.parts.referenced import Referenced
from posttrain.methods.parts.running import RunningMean
from posttrain.models.reference import ReferencePolicy, inference
from posttrain.types import AnswerLogps, TokenTree

FeedbackLoss = Callable[..., Tensor]


@final
class Feedback(Referenced):
    """Mean of a loss over judged answers: KTO (arXiv:2402.01306), BCO (arXiv:2404.04656).

    loss: from posttrain.functional.feedback. beta_schedule: progress of the run in [0, 1] -> factor on beta. reference,
    reference_update_every, reference_update_mix: see `posttrain.models.reference.ReferencePolicy`. KTO's baseline is the mean over the
    whole optimizer step of log pi(y') - log pi_ref(y') of answers y' to other prompts, at least 0; validation uses that of the last
    step. BCO's is the mean log-ratio of all answers of the steps before.
    """

    loss_inputs: ClassVar[tuple[str, ...]] = ("answers",)
    data_kind: ClassVar[str] = "feedback"

    def __init__(
        self,
        recipe: Recipe,
        *,
        loss: FeedbackLoss,
        beta_schedule: Callable[[float], float] = constant,
        reference: Literal["auto", "adapters", "copy", "cached"] = "auto",
        reference_update_every: int | None = None,
        reference_update_mix: float = 0.6,
    ) -> None:
        super().__init__(recipe)
        self.loss, self.beta_schedule = loss, beta_schedule
        self.beta = float(inspect.signature(loss).parameters["beta"].default)
        self.mismatch = function_of(loss) in MISMATCH
        self.running = RunningMean() if function_of(loss) in RUNNING_MEAN else None
        self.reference = ReferencePolicy(reference, update_every=reference_update_every, update_mix=reference_update_mix)
        self.watch = self.kept["drift"] = DriftWatch()
        self.baseline: Tensor
        self.register_buffer("baseline", torch.zeros((), dtype=torch.float64))
        if self.mismatch and reference == "cached":
            raise ConfigError(Problem("method.reference", "kto also needs the reference on mismatched answers", "use copy or adapters"))

    @property
    def forward_passes(self) -> float:
        return super().forward_passes + 2.0 * self.mismatch

    def before_step(self, step: int) -> None:
        super().before_step(step)
        if self.mismatch:
            self.baseline = self._drift_elsewhere(step)

    @torch.no_grad()
    def _drift_elsewhere(self, step: int) -> Tensor:
        """KTO's estimate of KL(pi || pi_ref), nats an answer: over all ranks, at least 0."""
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        with inference(self.model):
            for tree in self.step_trees(step, mismatched=True):
                answers = self._read(tree)[0]
                total += torch.stack([(answers.logps - answers.reference).double().sum(), total.new_tensor(len(answers.logps))])
        summed = torch.stack(gather(total.cpu())).sum(0)
        return (summed[0] / summed[1]).clamp(min=0.0).to(self.device)

    def loss_of(self, tree: TokenTree) -> tuple[Tensor, Tensor | None, Mapping[str, Tensor]]:
        answers, aux, drift = self._read(tree)
        parts = {name: value / tree.share.examples for name, value in self._totals(answers, drift).items()}
        return parts.pop("loss"), aux, parts

    def after_step(self, sums: Mapping[str, float]) -> None:
        if self.running is not None:
            self.running.add(sums["ratio"], count=self.examples)
        self.watch.look(self.global_step, self.step_metrics(sums), leads=self.global_rank == 0)

    def _read(self, tree: TokenTree) -> tuple[AnswerLogps, Tensor | None, Tensor]:
        """The tree's answers, the auxiliary loss, and the divergence per token of each answer."""
        known = self.reference(tree)
        stats, aux = self.model(tree)
        baseline = self.baseline if self.running is None else self.running.mean
        return answer_logps(stats.logps, known, tree, baseline=baseline), aux, divergence_per_token(stats.logps, known, tree)

    def _totals(self, answers: AnswerLogps, drift: Tensor) -> dict[str, Tensor]:
        """Sums over the answers of a tree: of the loss and of what is reported."""
        beta = self.beta * self.beta_schedule(self.progress)
        ratios = (answers.logps - answers.reference).detach()
        rewards = beta * ratios
        good = answers.desirable.to(rewards.dtype)
        return {
            "loss": self.loss(answers, beta=beta).sum(),
            "rewards/mean": rewards.sum(),
            "ratio": ratios.sum(),
            "rewards/desirable": (rewards * good).sum(),
            "rewards/undesirable": (rewards * (1 - good)).sum(),
            "share/desirable": good.sum(),
            "drift/kl": drift.sum(),
            "drift/chosen": (ratios / answers.length * good).sum(),
            "baseline": answers.baseline.to(rewards) * len(rewards) if answers.baseline is not None else rewards.new_zeros(()),
        }

    @torch.no_grad()
    def validation_parts(self, tree: TokenTree) -> Mapping[str, Tensor]:
        answers, _, drift = self._read(tree)
        return {**self._totals(answers, drift), "answers": torch.tensor(float(len(answers.logps)))}

    def validation_summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        return self.step_metrics({name: value / sums["answers"] for name, value in sums.items() if name != "answers"})

    def step_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Means over the desirable and over the undesirable answers, each where there are some, and their difference."""
        good = sums["share/desirable"]
        share = {"rewards/desirable": good, "rewards/undesirable": 1 - good, "drift/chosen": good}
        means = {name: sums[name] / part for name, part in share.items() if part > 0}
        if len(means) == len(share):
            means["rewards/margin"] = means["rewards/desirable"] - means["rewards/undesirable"]
        return {name: value for name, value in sums.items() if name not in share} | means
