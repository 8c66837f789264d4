"""What an online run needs besides: its plan, its loader, how it is measured, and tables of what it says."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from transformers import PreTrainedTokenizerBase

from posttrain.data.held_out import spread
from posttrain.data.mixture import epoch_order
from posttrain.data.prepare import Prepared
from posttrain.errors import ConfigError, Problem
from posttrain.evaluation.exact_match import ExactMatch, check, merge
from posttrain.evaluation.scores import Scores, names_of
from posttrain.functional.pairing import most_pairs
from posttrain.methods.base import Method
from posttrain.methods.parts.collectives import gather
from posttrain.methods.parts.online import Online
from posttrain.rewards.base import Reward
from posttrain.rewards.combine import plain
from posttrain.rewards.compose import RewardSet
from posttrain.rollout.base import Generator, Request, Sampling
from posttrain.rollout.collect import Collector
from posttrain.rollout.experience import ExperienceLoader, Selection
from posttrain.rollout.measures import mean, missing_share
from posttrain.rollout.plan import ExperiencePlan, make_experience_plan
from posttrain.runs import targets
from posttrain.runs.budget.amount import length_of
from posttrain.runs.callbacks.base import StepCallback
from posttrain.runs.files import write_atomic
from posttrain.runs.measure import Measures, answering
from posttrain.runs.opponents import Opponents
from posttrain.runs.ranks import Ranks
from posttrain.runs.reporter import Reporter
from posttrain.types import Group

log = logging.getLogger(__name__)

Config = Mapping[str, Any]
UNLIMITED = 200  # held-out prompts that are answered where the evaluation names no number


def plan_of(config: Config, prepared: Prepared, ranks: Ranks) -> ExperiencePlan:
    """The plan of an online run. Raises ConfigError where the data does not fit the numbers given."""
    train, method, rollout = prepared.train, config["method"], config["rollout"]

    def order(epoch: int) -> np.ndarray:
        return epoch_order(train.sizes, train.source_weights, exhaustion=train.exhaustion, seed=config["seed"], epoch=epoch)

    try:
        return make_experience_plan(
            order, longest_prompt=int(train.lengths.max()), group_size=rollout["group_size"], max_new_tokens=rollout["max_new_tokens"],
            global_batch=config["global_batch"], minibatches=method["minibatches"], rollout_epochs=method["rollout_epochs"],
            max_tokens=config["max_tokens"], ranks=ranks.world, **length_of(config), seed=config["seed"],
            pairs=most_pairs(method["pairs"], rollout["group_size"]) if "pairs" in method else None,
        )  # fmt: skip
    except ValueError as error:
        hint = "raise max_tokens, or lower rollout.max_new_tokens or max_length"
        raise ConfigError(Problem("max_tokens", str(error), hint)) from error


def loader_of(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    plan: ExperiencePlan,
    ranks: Ranks,
    method: Online,
    *,
    allow: Collection[str] = (),
) -> ExperienceLoader:
    """The loader of an online run; its generator gets the policy when training begins."""
    collector = Collector(
        prepared.train,
        build_generator(config, allow=allow),
        build_rewards(config, allow=allow),
        tokenizer,
        config["seed"],
        ranks.rank,
        ranks.world,
        gather,
        lambda: method.sharding.gathered(method.model),
    )
    method.max_tokens = plan.max_tokens
    selection = Selection(method.selection, method.selection_tries, method.difficulty_low, method.difficulty_high)
    return ExperienceLoader(collector, plan, method, selection, forward_passes=lambda: method.passes_between)


def build_generator(config: Config, *, allow: Collection[str] = ()) -> Generator:
    """What samples. Raises ConfigError for numbers or texts that no answer can be sampled with."""
    try:
        generator = targets.build(config["rollout"], allow=allow)
    except ValueError as error:
        raise ConfigError(Problem("rollout", str(error))) from error
    assert isinstance(generator, Generator)
    return generator


def build_rewards(config: Config, *, allow: Collection[str] = ()) -> RewardSet:
    """The reward's components by name."""
    components: dict[str, Reward] = {name: targets.build(node, allow=allow) for name, node in config["reward"].items()}
    return RewardSet(components)


class Sampler(StepCallback):
    """Has all that samples made ready, and shows answers of every so many steps: a file, the tracker's table, lines on the terminal."""

    def __init__(self, loader: ExperienceLoader, reporter: Reporter, config: Config, measures: Measures) -> None:
        self.loader, self.reporter, self.measures = loader, reporter, measures
        self.every = config["log"]["samples_every"]
        self.folder = Path(config["output_dir"]) / "rollouts"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Method)
        self.measures.ready(pl_module)

    def on_step_end(self, trainer: Trainer, module: Any) -> None:
        rows, self.loader.rows = self.loader.rows, self.loader.rows if self.every is None else []
        if not rows or self.every is None or not self.reporter.ranks.leads:
            return
        step = int(trainer.global_step)
        if step == 1 or step // self.every > (step - self.loader.plan.steps_per_rollout) // self.every:
            self._show(step, rows)

    def _show(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        self.folder.mkdir(exist_ok=True)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomic(self.folder / f"step-{step:06d}.jsonl", text)
        self.reporter.tracker.table(f"rollout-{step:06d}", list(rows))
        for row in rows[:2]:
            self.reporter.say(f"  step {step}  reward {row['reward']:.3g}  {_line(row['prompt'], 40)}  ->  {_line(row['completion'], 80)}")


def _line(text: str, width: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width // 2]} ... {line[-width // 2 :]}"


@dataclass
class OnlineMeasures(Measures):
    """Held-out prompts answered greedily: the reward of the answers, and whether they are right where that can be checked."""

    collector: Collector | None = None
    is_ready: bool = False

    def ready(self, method: Method) -> None:
        """Give the generator its policy and start the rewards: when training begins, or at the end where no step was left to do."""
        if self.is_ready:
            return
        assert self.collector is not None
        self.collector.generator.attach(method.model, self.tokenizer)
        self.collector.rewards.start(str(method.device))
        self.is_ready = True

    def loss(self, method: Method) -> dict[str, float]:
        """`val/reward`, its components, `val/unscored`, `val/win_rate` and `eval/exact_match`; nothing without held-out prompts."""
        if self.prepared.val is None:
            return {}
        assert isinstance(method, Online)
        assert self.collector is not None
        wanted, most = self.config["evaluation"]["exact_match"], self.config["validate"]["max_examples"]
        asked = UNLIMITED if wanted is None else wanted["examples"]
        every = min(asked, len(self.prepared.val), len(self.prepared.val) if most is None else most)
        chosen = spread(range(len(self.prepared.val)), self._affordable(every, method.longest, times=2))
        mine = [int(index) for index in chosen[self.ranks.rank :: self.ranks.world]]
        self.say(answering(len(chosen), every, method.longest))
        with method.sampling(), self._precision(method):
            groups = self._answers(mine)
        held_out = Collector(self.prepared.val, self.collector.generator, self.collector.rewards, self.tokenizer, 0)
        opponents = Opponents(Path(self.config["output_dir"]) / "rollouts" / "first.json", self.ranks.leads)
        wins = opponents.win_rates(held_out, groups, step=method.global_step)
        return self._rewards(held_out, groups) | wins | self._right(held_out, groups)

    def _answers(self, indices: Sequence[int]) -> list[Group]:
        assert self.prepared.val is not None
        assert self.collector is not None
        asked = self.collector.generator.sampling
        prompts = [self.prepared.val[index].ids for index in indices]
        sampling = Sampling(asked.max_new_tokens, temperature=0.0, stop=asked.stop)
        found = self.collector.generated([Request(ids, 1, 0) for ids in prompts], sampling)
        return [Group(index, ids, tuple(some)) for index, ids, some in zip(indices, prompts, found, strict=True)]

    def _rewards(self, held_out: Collector, groups: Sequence[Group]) -> dict[str, float]:
        """Of the components that can judge an answer by itself; their sum where no other one has a weight.

        As in training, the means are of the answers that could be scored: there is no lowest value that all rewards have, and an answer
        that a reward fails on is not known to be bad. What share could not is `val/unscored`, so that a mean of few is seen to be one.
        """
        rewards = held_out.rewards.alone()
        if not rewards.components:
            return {}
        samples = [sample for place, group in enumerate(groups) for sample in held_out.samples(group, place)]
        whole = torch.cat(gather(rewards.measure(samples).raw), 1)
        single = {f"val/reward/{name}": values for name, values in zip(rewards.components, whole.numpy(), strict=True)}
        if not any(component.weight for component in held_out.rewards.comparing().components.values()):
            single = {"val/reward": plain(whole, list(rewards.components.values())).numpy(), **single}
        self._keep_rewards(single, [group.example for group in groups])
        return {name: mean(values) for name, values in single.items()} | self._unscored(single)

    def _unscored(self, single: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The share of the answers that have no value: of the sum always, of a component where there are some; told where there are."""
        shares = {name.replace("val/reward", "val/unscored", 1): missing_share(values) for name, values in single.items()}
        if some := [f"{share:.1%} ({name})" for name, share in shares.items() if share]:
            self.say(f"could not be scored, and in no mean of val/reward: {', '.join(some)} of the held-out answers")
        return {name: share for name, share in shares.items() if share or name == "val/unscored"}

    def _keep_rewards(self, single: Mapping[str, np.ndarray], mine: Sequence[int]) -> None:
        """What each prompt's answer got, of all ranks; one that a component could not judge has no score. mine: this rank's prompts."""
        assert self.prepared.val is not None
        indices = np.array([index for part in gather(list(mine)) for index in part])
        order = np.argsort(indices)
        names = np.array(names_of(self.prepared.val[int(index)].ids.tobytes() for index in indices[order]))
        for metric, values in single.items():
            known = ~np.isnan(values[order])
            self.scores[metric] = Scores(names[known].tolist(), values[order][known].astype(float))

    def _right(self, held_out: Collector, groups: Sequence[Group]) -> dict[str, float]:
        if self.config["evaluation"]["exact_match"] is None or not self.prepared.val_checkable:
            return {}
        assert self.prepared.val is not None
        checkable = {example.example_index: example for example in _of(self.prepared, [group.example for group in groups])}
        checked = [check(checkable[group.example], held_out.text(group.completions[0])) for group in groups if group.example in checkable]
        whole = merge(gather(ExactMatch(tuple(checked))))
        self.samples, self.scores["eval/exact_match"] = whole.rows, whole.scores
        return {"eval/exact_match": whole.accuracy}

    def answers(self, method: Method, when: str) -> dict[str, float]:
        """Nothing: `loss` has them."""
        return {}


def _of(prepared: Prepared, indices: Sequence[int]) -> list[Any]:
    """The checkable ones among validation examples."""
    assert prepared.val is not None
    places = {int(index): place for place, index in enumerate(prepared.val.with_value("answer"))}
    return [prepared.val_checkable[places[index]] for index in indices if index in places]
