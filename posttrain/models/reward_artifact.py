"""Artifacts of reward models: what plain transformers loads as a classifier where it can, and `reward.json`, which names the head
and says how the conversations of its training were rendered.

* A scalar head: a sequence classifier with one label. Step labels: a token classifier with two.
* Any other head: the body alone (`AutoModel` loads it), and the head's weights in `head/`.

A body with adapters is written with them merged; the adapter lies beside it in `adapter/`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.models.artifact import ArtifactRecord, write_artifact
from posttrain.models.artifact_weights import compare, write_full
from posttrain.models.classifiers import REWARD, STEPS, as_classifier, check_classifier
from posttrain.models.heads.registry import RewardHead
from posttrain.models.heads.scalar import Scalar
from posttrain.models.integrity import REWARD_FILE
from posttrain.models.policy import causal_lm
from posttrain.models.vocabulary import write_special_ids
from posttrain.types import Rendering

HEAD_FOLDER = "head"
HEAD_WEIGHTS = "model.safetensors"
DEFAULT = Rendering()


def check_reward_artifact(model: PreTrainedModel, head: RewardHead) -> None:
    """Raises ConfigError, before training, where the artifact could not be what it has to be."""
    if isinstance(head, Scalar):
        check_classifier(model, REWARD, head.score)


def save_reward_artifact(
    model: nn.Module,
    head: RewardHead,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    record: ArtifactRecord,
    rendering: Rendering = DEFAULT,
) -> Path:
    """Write a reward model's artifact to `folder`; returns the folder. model: the causal LM, or a PEFT model around one. rendering: of the
    conversations it was trained on.

    Raises CorruptArtifactError when what was read back differs, OSError when the disk is full or not writable.
    """

    def write(body: PreTrainedModel, draft: Path) -> None:
        if isinstance(head, Scalar):
            write_full(as_classifier(body, REWARD, head.score), draft, None)
        else:
            write_full(body.base_model, draft, None)  # type: ignore[arg-type]
            _write_head(head, draft / HEAD_FOLDER)
        about = {"head": head.name, "hidden_size": head.hidden_size, "attributes": head.attributes, "options": head.options}
        _describe(draft, {"task": "reward", **about}, rendering)

    return _save(model, write, tokenizer, folder, record)


def save_step_artifact(
    model: nn.Module,
    head: nn.Linear,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    record: ArtifactRecord,
    rendering: Rendering = DEFAULT,
) -> Path:
    """The same for a process reward model: head maps states to logits of wrong and right."""

    def write(body: PreTrainedModel, draft: Path) -> None:
        write_full(as_classifier(body, STEPS, head), draft, None)
        _describe(draft, {"task": "steps"}, rendering)

    return _save(model, write, tokenizer, folder, record)


def _save(
    model: nn.Module,
    write: Callable[[PreTrainedModel, Path], None],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    record: ArtifactRecord,
) -> Path:
    write_special_ids(causal_lm(model), tokenizer)

    def write_all(draft: Path) -> dict[str, Any]:
        body, about = _merged(model, draft)
        write(body, draft)
        return about

    return write_artifact(write_all, tokenizer, folder, record=record)


def _merged(model: nn.Module, draft: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The causal LM with its adapters merged, and what the record says of its form; the adapter is written beside."""
    if isinstance(model, PreTrainedModel):
        return model, {"form": "full", "base": None, "quantised": None}
    from peft import PeftModel  # takes seconds to import

    from posttrain.models.adapter_artifact import ADAPTER_FOLDER, base_source, write_adapter
    from posttrain.models.peft import base_model, merge
    from posttrain.models.quantisation import quantisation_of

    assert isinstance(model, PeftModel)
    write_adapter(model, draft / ADAPTER_FOLDER, None)
    base = base_model(model)
    return merge(copy.deepcopy(model)), {"form": "merged", "base": base_source(base), "quantised": quantisation_of(base)}


def _write_head(head: RewardHead, folder: Path) -> None:
    folder.mkdir()
    weights = {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
    save_file(weights, folder / HEAD_WEIGHTS)
    compare(folder, weights)


def _describe(draft: Path, content: dict[str, Any], rendering: Rendering) -> None:
    about = content | {"rendering": asdict(rendering)}
    (draft / REWARD_FILE).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n", encoding="utf-8")
