"""The loader of online learning: samples with the policy of the moment, has the answers judged and annotated, hands out micro-batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from posttrain.data.work import attended_by
from posttrain.rollout.collect import Answered, Collector
from posttrain.rollout.curriculum import Curriculum
from posttrain.rollout.held import Held
from posttrain.rollout.measures import rollout_metrics, sample_rows, sampling_work
from posttrain.rollout.plan import ExperiencePlan, parts_of
from posttrain.types import Arrangement, Part, Rollout, TokenizedExample, TokenTree, Work

log = logging.getLogger(__name__)


class Learner(Protocol):
    """What is trained."""

    def choose(self, rollout: Rollout) -> np.ndarray:
        """bool [P, G]: the answers to learn from."""
        ...

    def informative(self, rollout: Rollout) -> np.ndarray:
        """bool [P]: the groups that something can be learnt from by the answers that are kept. What it says of a group may not depend on
        the group's place in the rollout, since others may take the places before it."""
        ...

    def arrange(self, rollout: Rollout) -> Arrangement:
        """Which of the kept answers the loss reads together, and so must share a tree."""
        ...

    def beside(self, rollout: Rollout) -> np.ndarray:
        """bool [P, G]: answers that are not learnt from, and that `annotate` is to be given all the same."""
        ...

    def annotate(self, rollout: Rollout, parts: Sequence[Part]) -> list[TokenizedExample]:
        """The parts' trees with the columns that the loss reads."""
        ...

    @property
    def bare_passes(self) -> float:
        """Forward passes over what was sampled that leave the adapters out."""
        ...

    def sampling(self) -> AbstractContextManager[object]:
        """Around everything that is computed between steps: no gradients, the precision of training."""
        ...


@dataclass(frozen=True)
class Selection:
    """Which prompts are asked, and what becomes of groups that nothing can be learnt from (all rewards alike).

    kind: keep; drop; or resample, which asks further prompts in their place, in at most `tries` further rounds. low, high: see
    `posttrain.rollout.curriculum.Curriculum`.
    """

    kind: str = "keep"
    tries: int = 4
    low: float = 0.0
    high: float = 1.0


class ExperienceLoader:
    """A rank's micro-batches of a whole online run, in order; one pass. In the middle of a rollout its state holds that rollout."""

    def __init__(
        self, collector: Collector, plan: ExperiencePlan, learner: Learner, selection: Selection, *, forward_passes: Callable[[], float]
    ) -> None:
        self.collector, self.plan, self.learner, self.selection = collector, plan, learner, selection
        self.forward_passes = forward_passes
        self.curriculum = Curriculum(len(plan.order(0)), selection.low, selection.high)
        self.given = self.cursor = 0
        self._sampled: list[tuple[int, list[int]]] = []
        collector.check_answers()
        self.held: Held | None = None
        self.seconds: dict[str, float] = {}
        self.rows: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return self.plan.steps * self.plan.micro_batches

    def __iter__(self) -> Iterator[TokenTree]:
        first, skip = divmod(self.given, self.plan.micro_batches)
        for number in range(first, self.plan.steps):
            for tree in self._trees(number)[skip:]:
                self.given += 1
                yield tree
            skip = 0

    @property
    def micro_batches(self) -> int:
        """Of this rank, in each optimizer step, the empty ones included."""
        return self.plan.micro_batches

    @property
    def parts(self) -> int:
        """Micro-batches of a step over all ranks."""
        return self.plan.ranks * self.plan.micro_batches

    def step_trees(self, step: int, *, mismatched: bool = False) -> Iterator[TokenTree]:
        """This rank's micro-batches of optimizer step `step`, which must be of the present rollout."""
        if mismatched:
            raise ValueError("sampled answers have no mismatched counterparts")
        return iter([tree for tree in self._trees(step) if len(tree.ids)])

    def _trees(self, step: int) -> list[TokenTree]:
        number = step // self.plan.steps_per_rollout
        if self.held is None or self.held.number != number:
            with self.learner.sampling():
                self.held = self._collect(number)
        return self.plan.split(self._chosen(step), self.collector.rank, self.held.spare)

    def _chosen(self, step: int) -> list[Part]:
        assert self.held is not None
        chosen = set(self.plan.chosen(step, self.held.groups))
        return [part for part in self.held.parts if part.group in chosen]

    def _collect(self, number: int) -> Held:
        self.collector.pop_operations()  # those of an evaluation are not training
        answered, asked = self._answered()
        rollout, informative = self._judged(answered, number)
        failures = self.collector.pop_failures()
        measures = self.collector.generator.measures()
        metrics = rollout_metrics(
            rollout, informative, self.collector.plain(answered), answered.raw, asked=asked,
            names=list(self.collector.rewards.components), failures=failures,
        )  # fmt: skip
        if self.selection.kind != "keep":
            rollout = replace(rollout, kept=rollout.kept & informative[:, None])
        self.rows = sample_rows(self.collector, rollout, self.collector.plain(answered).numpy(), answered.raw)
        arrangement = self.learner.arrange(rollout)
        metrics |= arrangement.notes
        cut = parts_of(rollout, self.plan.max_tokens, arrangement.units)
        beside = parts_of(replace(rollout, kept=self.learner.beside(rollout)), self.plan.max_tokens)
        with self.collector.timed("annotate"):
            trees = self.learner.annotate(rollout, [*cut, *beside])
        self.seconds |= self.collector.pop_seconds()
        parts = [replace(part, tree=tree) for part, tree in zip(cut, trees[: len(cut)], strict=True)]
        spare = parts[0].tree if parts else self.collector.prompts[rollout.groups[0].example]
        return Held(number, parts, len(rollout.groups), spare, {**metrics, **measures}, self._forward([*parts, *beside]))

    def _answered(self) -> tuple[Answered, int]:
        """Answers to a rollout's prompts, and how many prompts were gone through for it."""
        asked, self._sampled = self.cursor, []
        answered = self._ask(self.plan.prompts)
        for _ in range(self.selection.tries if self.selection.kind == "resample" else 0):
            good = np.flatnonzero(self._judged(answered, 0)[1])
            if len(good) >= self.plan.prompts:
                break
            # those without information stay last, and count only where there are not enough others
            idle = np.setdiff1d(np.arange(len(answered.groups)), good)
            more = self._ask(self.plan.prompts - len(good))
            answered = joined(answered.picked(good), more, answered.picked(idle))
        return answered.picked(np.arange(self.plan.prompts)), self.cursor - asked

    def _judged(self, answered: Answered, number: int) -> tuple[Rollout, np.ndarray]:
        """The rollout with the answers that are to be learnt from, and which of its groups these teach something, bool [P]."""
        rollout = self.collector.judged(answered, number)
        rollout = replace(rollout, kept=rollout.kept & self.learner.choose(rollout))
        return rollout, self.learner.informative(rollout)

    def _ask(self, count: int) -> Answered:
        places = list(self.curriculum.places(self.cursor, count, self.plan.prompt_at))
        self.cursor = places[-1] + 1 if places else self.cursor
        numbers = [self.plan.prompt_at(place) for place in places]
        answered = self.collector.answer(numbers, places)
        self._sampled += [(len(group.prompt), [len(c.tokens) for c in group.completions]) for group in answered.groups]
        self.curriculum.learn(answered.groups, self.collector.plain(answered), places)
        return answered

    def _forward(self, parts: Sequence[Part]) -> Work:
        """Sampling, that of groups which were replaced included, and the passes that annotate."""
        sampled = [sampling_work(prompt, lengths) for prompt, lengths in self._sampled]
        passes, generated = self.forward_passes(), sum(w.generated for w in sampled)
        return Work(
            forward_tokens=sum(w.forward_tokens for w in sampled) + passes * sum(len(part.tree.ids) for part in parts),
            forward_targets=sum(w.forward_targets for w in sampled) + passes * sum(_targets(part) for part in parts),
            forward_pairs=sum(w.forward_pairs for w in sampled) + passes * sum(attended_by(part.tree) for part in parts),
            generated=generated,
            bare_tokens=self.learner.bare_passes * sum(len(part.tree.ids) for part in parts),
            beside=self.collector.pop_operations() + self.collector.generator.drawing(generated),
        )

    def work(self, step: int) -> Work:
        """What optimizer step `step` (from 0, of the present rollout) computed on; a rollout's sampling counts in its first step."""
        assert self.held is not None
        parts = self._chosen(step)
        first = step % self.plan.steps_per_rollout == 0
        groups = {part.group: int(part.tree.segment_lengths[0]) for part in parts}
        computed, targets = sum(len(part.tree.ids) for part in parts), sum(map(_targets, parts))
        batches = self.plan.batches(parts)
        return replace(
            self.held.forward if first else Work(),
            examples=len(groups),
            tokens=sum(groups.values()) + sum(int(part.tree.segment_lengths[1:].sum()) for part in parts),
            computed=computed,
            targets=float(targets),
            pairs=sum(attended_by(part.tree) for part in parts),
            batches=tuple(sum(_targets(parts[place]) for place in places) for places in batches),
        )

    def notes(self, step: int) -> Mapping[str, float]:
        """What the rollout of optimizer step `step` (from 0) showed, at its first step."""
        return self.held.metrics if self.held is not None and step % self.plan.steps_per_rollout == 0 else {}

    def pop_seconds(self) -> dict[str, float]:
        """Seconds of each phase since the last call."""
        seconds, self.seconds = self.seconds, {}
        return seconds

    def close(self) -> None:
        """End what rewards run in processes of their own."""
        self.collector.rewards.close()

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is; with the present rollout unless its last step is done. Tensors, numbers and texts only."""
        step = self.given // self.plan.micro_batches
        needed = self.held is not None and step // self.plan.steps_per_rollout == self.held.number
        held = self.held.to_state() if needed and self.held is not None else None
        return {"given": self.given, "cursor": self.cursor, "held": held, "curriculum": self.curriculum.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given, self.cursor = state["given"], state["cursor"]
        self.curriculum.load_state_dict(state["curriculum"])
        self.held = None if state["held"] is None else Held.from_state(state["held"])


def _targets(part: Part) -> int:
    return int(np.count_nonzero(part.tree.weights))


def joined(*several: Answered) -> Answered:
    """All groups, one after the other."""
    return Answered(tuple(group for some in several for group in some.groups), np.concatenate([some.raw for some in several], 1))
