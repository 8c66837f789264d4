"""Model configs as the command line would compose them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf"
Conf = Callable[..., dict[str, Any]]


def compose_model(option: str, /, *, peft: str | None = None, **overrides: Any) -> dict[str, Any]:
    """The `model` node of a named option, its adapters, and overrides of single keys."""
    parts = [OmegaConf.load(CONF / "model" / f"{part}.yaml") for part in ("_base", option)]
    node = OmegaConf.merge(*parts, overrides)
    del node["defaults"]
    if peft is not None:
        node["peft"] = OmegaConf.load(CONF / "model" / "peft" / f"{peft}.yaml")["peft"]
    return OmegaConf.to_container(node, resolve=True)  # type: ignore[return-value]


@pytest.fixture
def conf() -> Conf:
    return compose_model


@pytest.fixture
def ids() -> torch.Tensor:
    """Token ids [2, 40] of the byte tokenizer."""
    return torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model.eval()(input_ids=ids, use_cache=False).logits.float()


@pytest.fixture
def logits() -> Callable[[Any, torch.Tensor], torch.Tensor]:
    return logits_of
