"""The evaluations inside a run: validation loss, and greedy exact match where examples have a checkable answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from posttrain.data.held_out import spread
from posttrain.data.loader import EvaluationBatches
from posttrain.data.prepare import Prepared
from posttrain.evaluation.exact_match import ExactMatch, exact_match, merge
from posttrain.evaluation.generation import attached
from posttrain.evaluation.scores import Scores, content_of, names_of
from posttrain.evaluation.validation import validate
from posttrain.methods.base import Method
from posttrain.methods.parts.collectives import gather
from posttrain.rollout.base import Generator
from posttrain.runs.ranks import Ranks, sum_over_ranks
from posttrain.types import TokenTree

LEAST = 16  # held-out prompts that are answered however short the training is


@dataclass
class Measures:
    """Evaluates a method on held-out data, shared out over the ranks.

    say: told what is about to take its time. trained: tokens of the whole training, of which answers may have a share. samples: the
    generations of the last exact match, as rows. scores: the single examples behind the last value of each metric that is a mean over
    examples, of all ranks.
    """

    config: Mapping[str, Any]
    prepared: Prepared
    tokenizer: PreTrainedTokenizerBase
    ranks: Ranks
    say: Callable[[str], None]
    trained: float = math.inf
    samples: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[str, Scores] = field(default_factory=dict)
    _generator: Generator | None = field(default=None, init=False, repr=False)

    def ready(self, method: Method) -> None:
        """Called before anything is measured or sampled, when the model is on its device; may be called again."""

    def loss(self, method: Method) -> dict[str, float]:
        """The method's validation metrics as `val/NAME`; nothing without validation data."""
        if self.prepared.val is None:
            return {}
        batches = self._batches()
        rows: list[Mapping[str, Tensor]] = []
        with method.sharding.gathered(method), self._precision(method):
            found = validate(method.validation_parts, self._held_out(method, batches), keep=rows.append)
        sums = sum_over_ranks(found, method.device, together=self.ranks.together)
        self._keep(method, batches.groups, rows)
        return {f"val/{name}": value for name, value in method.validation_summary(sums).items()}

    def outcomes(self, method: Method) -> dict[str, np.ndarray]:
        """The columns of the method's closing report, of all ranks' held-out examples; empty without validation data."""
        if self.prepared.val is None:
            return {}
        with method.sharding.gathered(method), self._precision(method):
            columns = [method.outcomes(tree) for tree in self._held_out(method, self._batches())]
        found = [{name: value.double().cpu().numpy() for name, value in column.items()} for column in columns]
        parts = [part for rank in gather(found) for part in rank]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _precision(self, method: Method) -> torch.autocast:
        """What training computes in."""
        return torch.autocast(method.device.type, torch.bfloat16, enabled=self.config["precision"] == "bf16")

    def _batches(self) -> EvaluationBatches:
        """This rank's micro-batches of the validation set."""
        assert self.prepared.val is not None
        limit = self.config["validate"]["max_examples"]
        return EvaluationBatches(
            self.prepared.val, max_tokens=self.config["max_tokens"], rank=self.ranks.reader, ranks=self.ranks.readers, limit=limit,
            stretch=self.ranks.stretch,
        )  # fmt: skip

    def _held_out(self, method: Method, batches: EvaluationBatches) -> Iterator[TokenTree]:
        """The micro-batches, on the method's device."""
        return (method.transfer_batch_to_device(tree, method.device, 0) for tree in batches)

    def _keep(self, method: Method, groups: Sequence[Sequence[int]], rows: Sequence[Mapping[str, Tensor]]) -> None:
        """The single examples of all ranks, in the order of the validation set. groups: this rank's examples, batch by batch, as `rows`."""
        assert self.prepared.val is not None
        mine = {  # what stands in for a batch without examples is none
            name: torch.cat([row[name][: len(group)].double().cpu() for group, row in zip(groups, rows, strict=True)])
            for name in (rows[0] if rows else {})
        }
        parts = gather(([int(index) for group in groups for index in group], mine))[:: self.ranks.together]
        chosen, place = np.unique([index for found, _ in parts for index in found], return_inverse=True)
        whole = {  # ranks that a row is cut over have each a part of an example
            name: torch.zeros(len(chosen), dtype=torch.float64).index_add_(
                0, torch.from_numpy(place), torch.cat([p[name] for _, p in parts])
            )
            for name in mine
        }
        names = np.array(names_of(content_of(self.prepared.val[int(index)]) for index in (chosen if whole else ())))
        for name, (value, weight) in method.validation_scores(whole).items():
            some = (weight > 0).numpy()
            self.scores[f"val/{name}"] = Scores(names[some].tolist(), value.numpy()[some], weight.numpy()[some])

    def answers(self, method: Method, when: str) -> dict[str, float]:
        """`eval/exact_match` of greedy answers to held-out prompts, if the evaluation asks for it at this time (before or after)."""
        wanted = self.config["evaluation"]["exact_match"]
        if wanted is None or not wanted[when] or not self.prepared.val_checkable:
            return {}
        every = spread(self.prepared.val_checkable, wanted["examples"])
        longest = wanted["max_new_tokens"] or self._longest_answer([example.example_index for example in every])
        chosen = spread(self.prepared.val_checkable, self._affordable(len(every), longest, times=wanted["before"] + wanted["after"]))
        mine = chosen[self.ranks.member :: self.ranks.members]
        self.say(f"{when} training: {answering(len(chosen), len(every), longest)}")
        if self._generator is None:
            self._generator = attached(method.model, self.tokenizer, cut=self.ranks.together > 1)
        with method.sharding.gathered(method), self._precision(method):
            found = exact_match(self._generator, self.tokenizer, mine, max_new_tokens=longest)
        whole: ExactMatch = merge(gather(found)[:: self.ranks.together])
        self.samples, self.scores["eval/exact_match"] = whole.rows, whole.scores
        return {"eval/exact_match": whole.accuracy}

    def _affordable(self, examples: int, longest: int, *, times: int) -> int:
        """How many of `examples` are answered, with at most `longest` tokens each and so many times, within the share that is allowed."""
        share = (self.config["evaluation"]["exact_match"] or {}).get("share")
        if share is None or math.isinf(self.trained):
            return examples
        return min(examples, max(LEAST, int(share * self.trained / (times * longest))))

    def _longest_answer(self, indices: Sequence[int]) -> int:
        """Half as much again as the longest reference answer: room to be wordy, none to ramble to the end of the context."""
        assert self.prepared.val is not None
        return int(1.5 * float(self.prepared.val.targets[list(indices)].max())) + 8


def answering(count: int, of: int, longest: int) -> str:
    """What is told of answers that are about to be made: `count`, where as many as `of` were asked for."""
    if count == of:
        return f"answering {count} held-out prompts (at most {longest} tokens each)"
    return f"answering {count} of {of} held-out prompts (at most {longest} tokens each; evaluation.exact_match.share=null for all of them)"
