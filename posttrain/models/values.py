"""The value head: a linear map, in float32, from the policy's own states to what is still to come. It travels with the artifact.

An artifact holds it as `value_head/model.safetensors` (`weight` [1, H], `bias` [1]), and `artifact.json` names that file under
`value_head`. It lies in a folder of its own so that what loads the model, transformers or a server, does not see it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posttrain.errors import ConfigError, Problem
from posttrain.models.artifact_weights import compare
from posttrain.models.heads.scalar import Scalar
from posttrain.models.integrity import REWARD_FILE, verify
from posttrain.models.loading import seeded
from posttrain.models.reward import describe, logits_at

VALUE_FOLDER, VALUE_WEIGHTS = "value_head", "model.safetensors"


def value_head(width: int, start: Path | None = None) -> nn.Linear:
    """A head for states of `width`: one that knows nothing and says 0, or that of the artifact `start`, see `load_value_head`."""
    head = load_value_head(start) if start is not None else _zero(width)
    if head.in_features != width:
        message = f"{start} reads states of {head.in_features}, the model has {width}"
        raise ConfigError(Problem("method.value_from", message, "name an artifact of the same model"))
    return head


def values_at(head: nn.Linear, hidden: Tensor, places: Tensor) -> Tensor:
    """Values, float32 [N], of the states at `places` [N] of hidden states [T, H]."""
    return logits_at(head, hidden, places)[:, 0]


def write_value_head(head: nn.Linear, draft: Path) -> dict[str, Any]:
    """Write a head into an artifact's folder; returns what the record says of it. Raises CorruptArtifactError where it reads back else."""
    folder = draft / VALUE_FOLDER
    folder.mkdir()
    weights = {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
    save_file(weights, folder / VALUE_WEIGHTS)
    compare(folder, weights)
    return {"value_head": f"{VALUE_FOLDER}/{VALUE_WEIGHTS}"}


def load_value_head(folder: Path) -> nn.Linear:
    """The value head of an artifact, or the head of a scalar reward model's. Raises ConfigError where there is neither."""
    folder = folder.expanduser().absolute()
    record = verify(folder)
    if (folder / REWARD_FILE).is_file():
        weights = _reward_weights(folder)
    elif "value_head" in record:
        weights = load_file(folder / record["value_head"])
    else:
        raise ConfigError(Problem("method.value_from", f"{folder} has no value head", "the artifact of method=ppo or of a reward model"))
    head = _zero(weights["weight"].shape[1])
    head.load_state_dict(weights)
    return head


def _reward_weights(folder: Path) -> dict[str, Tensor]:
    """A reward head as a value head: its map, and no constant."""
    about = describe(folder, task="reward")
    if about["head"] != Scalar.name:
        raise ConfigError(Problem("method.value_from", f"the head {about['head']!r} is no linear map", "a reward model with head=scalar"))
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (not a dict)
                if name.count(".") == 1 and stored.get_slice(name).get_shape() == [1, about["hidden_size"]]:
                    return {"weight": stored.get_tensor(name).float(), "bias": torch.zeros(1)}
    raise ConfigError(Problem("method.value_from", f"{folder} has no weights of a reward head", "copy the artifact again"))


def _zero(width: int) -> nn.Linear:
    with seeded(0):  # what it draws and then forgets is no concern of the caller's
        head = nn.Linear(width, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
