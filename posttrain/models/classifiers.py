"""A reward model as plain transformers knows it: a sequence classifier, or for the steps of an answer a token classifier."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto as auto

from posttrain.errors import ConfigError, Problem


@dataclass(frozen=True)
class Task:
    """A kind of classifier. auto: the name of transformers' class for it. labels: by number. hint: for families that have none."""

    auto: str
    mapping: Any  # config class -> model class, filled by transformers as it is asked
    labels: tuple[str, ...]
    hint: str


REWARD = Task(
    "AutoModelForSequenceClassification",
    auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    ("reward",),
    "choose method.head=quantile or branch",
)
STEPS = Task("AutoModelForTokenClassification", auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, ("wrong", "right"), "choose another model")


def check_classifier(model: PreTrainedModel, task: Task, head: nn.Linear) -> None:
    """Raises ConfigError where the model's family has no such class, or one that computes something else than our head."""
    shell = _shell(model, task)
    names = _linear_names(shell)
    same_body = type(shell.base_model) is type(model.base_model)
    if not same_body or len(names) != 1 or (getattr(shell, names[0]).bias is None) != (head.bias is None):
        message = f"{type(shell).__name__} is not {type(model.base_model).__name__} with one linear map"
        raise ConfigError(Problem("model", f"{message}, so {task.auto} could not load the artifact", task.hint))


def as_classifier(model: PreTrainedModel, task: Task, head: nn.Linear) -> PreTrainedModel:
    """A classifier of the model's body and a head; it shares their weights."""
    shell = _shell(model, task)
    setattr(shell, shell.base_model_prefix, model.base_model)
    setattr(shell, _linear_names(shell)[0], head)
    return shell


def parts_of(classifier: PreTrainedModel, folder: Path) -> tuple[PreTrainedModel, nn.Linear]:
    """The body and the head of a classifier that was loaded from `folder`; the head in float32, as it is stored.

    transformers rounds a whole model to one type, and a head is kept in float32 over a body of bfloat16.
    """
    (name,) = _linear_names(classifier)
    body, head = classifier.base_model, getattr(classifier, name).float()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            for key in {f"{name}.weight", f"{name}.bias"} & set(stored.keys()):
                head.get_parameter(key.removeprefix(f"{name}.")).data.copy_(stored.get_tensor(key))
    return body, head  # type: ignore[return-value]


def _shell(model: PreTrainedModel, task: Task) -> PreTrainedModel:
    """The family's classifier without weights. Raises ConfigError where there is none."""
    config = copy.deepcopy(model.config)
    if type(config) not in task.mapping:
        family = f"transformers has no {task.auto} for {config.model_type}"
        raise ConfigError(Problem("model", f"{family}, so the artifact could not be loaded", task.hint))
    config.num_labels = len(task.labels)
    config.id2label = dict(enumerate(task.labels))
    config.label2id = {label: number for number, label in config.id2label.items()}
    config._attn_implementation = "eager"
    with torch.device("meta"):
        shell: PreTrainedModel = task.mapping[type(config)](config)
    return shell


def _linear_names(shell: PreTrainedModel) -> list[str]:
    return [name for name, module in shell.named_children() if isinstance(module, nn.Linear)]
