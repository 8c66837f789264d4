"""Reward models: what training computes on token trees, and what an artifact computes on token sequences."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification, PreTrainedModel

from posttrain.errors import ConfigError, Problem
from posttrain.models.classifiers import parts_of
from posttrain.models.flops import body_flops
from posttrain.models.heads.registry import RewardHead, make
from posttrain.models.heads.scalar import Scalar
from posttrain.models.integrity import REWARD_FILE, verify
from posttrain.models.loading import seeded
from posttrain.models.policy import PolicyModel
from posttrain.models.reward_artifact import DEFAULT, HEAD_FOLDER, HEAD_WEIGHTS
from posttrain.types import Judged, Rendering

SMALL = 8


def probe_head(head: Callable[[int, Sequence[str]], RewardHead], attributes: Sequence[str]) -> RewardHead:
    """A small head of the same kind, to ask about its options. Raises ConfigError where it refuses them."""
    with seeded(0):
        return head(SMALL, attributes)


def hidden_size(policy: PolicyModel) -> int:
    """Width of the states that a head reads."""
    return int(policy.causal_lm.config.get_text_config().hidden_size)


def freeze_output(policy: PolicyModel) -> None:
    """Take the output head, which nothing reads, out of training; a tied one stays, as the embedding it is."""
    model = policy.causal_lm
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if isinstance(output, nn.Module) and output.weight is not embedding.weight:
        output.requires_grad_(False)


def judge_states(head: RewardHead, hidden: Tensor, places: Tensor) -> Judged:
    """What the head says of the states at `places` [A] of hidden states [T, H], in float32.

    A tree without answers keeps the head in the graph: ranks that have nothing to do still meet in its gradients.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden[places].float())


def logits_at(head: nn.Linear, hidden: Tensor, places: Tensor) -> Tensor:
    """A linear head's float32 logits [M, C] of the states at `places` [M] of hidden states [T, H]."""
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden[places].float())


class Judge:
    """A reward model on token sequences: the body of a transformers model and a head. load_judge makes one.

    rendering: of the conversations it was trained on. operations: floating-point ones of the body so far.
    """

    def __init__(self, body: PreTrainedModel, head: RewardHead, rendering: Rendering = DEFAULT) -> None:
        self.body = body.eval()
        self.head = head.eval()
        self.rendering = rendering
        self.operations = 0.0

    @torch.no_grad()
    def __call__(self, sequences: Sequence[np.ndarray], *, max_tokens: int = 8192) -> Judged:
        """What the head says of token sequences, int [L] each, in their order, on the CPU. Raises ValueError for none, or an empty one.

        max_tokens: of a batch, padding included.
        """
        if not sequences or not all(map(len, sequences)):
            raise ValueError("a reward model judges one sequence at least, and none that is empty")
        order = sorted(range(len(sequences)), key=lambda place: len(sequences[place]))
        parts = [self._batch([sequences[place] for place in batch]) for batch in _batches(order, sequences, max_tokens)]
        back = torch.tensor(order).argsort()
        return Judged(
            torch.cat([part.reward for part in parts]).cpu()[back],
            _joined([part.attributes for part in parts], back),
            _joined([part.quantiles for part in parts], back),
            None if parts[0].levels is None else parts[0].levels.cpu(),
        )

    def _batch(self, sequences: Sequence[np.ndarray]) -> Judged:
        device = self.body.device
        ids, mask = padded(sequences, device)
        self.operations += body_flops(self.body, tokens=ids.numel(), pairs=ids.numel() * ids.shape[1])
        hidden = self.body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return judge_states(self.head, hidden.flatten(0, 1), torch.arange(len(ids), device=device) * ids.shape[1] + mask.sum(1) - 1)


def _joined(parts: Sequence[Tensor | None], back: Tensor) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.cat(found).cpu()[back] if found else None


def padded(sequences: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, L] of sequences, padded on the right."""
    ids = pad_sequence([torch.from_numpy(sequence.astype(np.int64)) for sequence in sequences], batch_first=True)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return ids.to(device), (torch.arange(ids.shape[1])[None] < lengths[:, None]).long().to(device)


def _batches(order: Sequence[int], sequences: Sequence[np.ndarray], max_tokens: int) -> Iterator[list[int]]:
    """Places in ascending order of length, in batches of at most `max_tokens` padded tokens, one sequence at least."""
    batch: list[int] = []
    for place in order:
        if batch and (len(batch) + 1) * len(sequences[place]) > max_tokens:
            yield batch
            batch = []
        batch.append(place)
    yield batch


def load_judge(folder: Path, *, device: torch.device, dtype: torch.dtype | None = None) -> Judge:
    """The reward model of an artifact, with any head. dtype: of the body; None for the one its weights are stored in.

    Raises ConfigError where the folder is no reward model's artifact, or its files are damaged.
    """
    about = describe(folder, task="reward")
    kind: Any = AutoModelForSequenceClassification if about["head"] == Scalar.name else AutoModel
    loaded = kind.from_pretrained(str(folder), dtype=dtype or "auto")
    with seeded(0):
        head = make(about["head"], about["hidden_size"], about["attributes"], about["options"])
    if isinstance(head, Scalar):
        body, head.score = parts_of(loaded, folder)
    else:
        body = loaded
        head.load_state_dict(load_file(folder / HEAD_FOLDER / HEAD_WEIGHTS))
    return Judge(nn.Module.to(body, device), head.to(device), rendering_of(about))


class StepJudge:
    """A process reward model on token sequences: a body and a linear map to the logits of wrong and right. Attributes: as of a Judge."""

    def __init__(self, body: PreTrainedModel, head: nn.Linear, rendering: Rendering = DEFAULT) -> None:
        self.body = body.eval()
        self.head = head
        self.rendering = rendering
        self.operations = 0.0

    @torch.no_grad()
    def __call__(self, ids: np.ndarray, places: np.ndarray) -> Tensor:
        """Probability, float32 [M] on the CPU, that the steps which end at `places` [M] of one sequence `ids` [T] are right."""
        device = self.body.device
        self.operations += body_flops(self.body, tokens=len(ids), pairs=len(ids) ** 2)
        hidden = self.body(input_ids=torch.from_numpy(ids).long().to(device)[None], use_cache=False).last_hidden_state[0]
        return logits_at(self.head, hidden, torch.from_numpy(places).long().to(device)).softmax(-1)[:, 1].cpu()


def load_step_judge(folder: Path, *, device: torch.device, dtype: torch.dtype | None = None) -> StepJudge:
    """The process reward model of an artifact, as `load_judge`."""
    about = describe(folder, task="steps")
    loaded: Any = AutoModelForTokenClassification.from_pretrained(str(folder), dtype=dtype or "auto")
    body, head = parts_of(loaded, folder)
    return StepJudge(nn.Module.to(body, device), head.to(device), rendering_of(about))


def rendering_of(about: Mapping[str, Any]) -> Rendering:
    """How the conversations of the training were rendered; about: what `describe` read."""
    return Rendering(**about.get("rendering", {}))


def describe(folder: Path, *, task: str) -> dict[str, Any]:
    """The content of `reward.json`, after checking the artifact's files. Raises ConfigError."""
    verify(folder)
    path = folder / REWARD_FILE
    if not path.is_file():
        raise ConfigError(Problem("reward model", f"{folder} is no reward model: it has no {REWARD_FILE}", "give the artifact of one"))
    about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if about["task"] != task:
        raise ConfigError(Problem("reward model", f"{folder} judges {about['task']}, not {task}", "load it with the other function"))
    return about
