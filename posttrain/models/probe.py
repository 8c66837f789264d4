"""Find out, before training, which layout is exact for a model's family and how its head makes logits.

The probe builds a small random copy of the model (few layers, short windows, weights large enough that a missing soft-cap shows) and
compares each layout with plain, separate sequences. On CUDA through plain attention: a fused kernel takes long to compile, and compares
itself with plain attention when it is first used (see `attention.flex`).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from posttrain.data.tree import collate, to_device, tree_of
from posttrain.functional.head import HeadSpec
from posttrain.functional.logprobs import token_stats
from posttrain.models.attention import backends
from posttrain.models.policy import LayoutName, PolicyModel
from posttrain.types import StepShare, TokenTree

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # relative, float32; a leak or a missing soft-cap is above 1e-2
LAYOUTS: tuple[LayoutName, ...] = ("tree", "packed", "padded")
VOCABULARY, WINDOW = 96, 5


@dataclass(frozen=True)
class Probe:
    """layout: the fastest exact one. head: how logits come from hidden states. errors: layout -> relative error or the reason it fails."""

    layout: LayoutName
    head: HeadSpec
    errors: dict[str, float | str]


class LayoutError(ValueError):
    """No layout, or not the one asked for, is exact for the model."""


def probe(model: PreTrainedModel, *, asked: str = "auto", attention: str = "auto", device: torch.device | None = None) -> Probe:
    """Probe a model's family.

    asked: auto, or one layout that must then be exact. Raises LayoutError if none is, or if the head is not a linear map with scaling
    and soft-capping.
    """
    device = device or torch.device("cpu")
    with quiet_transformers(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(0)
        small = type(model)(shrink(model.config)).eval()
        small.to(device, torch.float32)
        if small.base_model is small:
            raise LayoutError(f"{model.config.model_type}: its layers cannot be run without its head")
        usual = small.config._attn_implementation
        small.set_attn_implementation("eager")  # the written-out form honours every modifier a family has
        head = head_spec(small, device)
        tree = _sample(device)
        want = _separate(small, tree)
        small.set_attn_implementation(usual)
        errors: dict[str, float | str] = {}
        attention = "sdpa" if device.type == "cuda" else attention
        for layout in LAYOUTS if asked == "auto" else (asked,):
            errors[layout] = _error(small, layout, attention, head, tree, want)
            found = errors[layout]
            if isinstance(found, float) and found < TOLERANCE:
                return Probe(layout, head, errors)  # type: ignore[arg-type]
    tried = "; ".join(f"{name}: {value if isinstance(value, str) else f'error {value:.1e}'}" for name, value in errors.items())
    raise LayoutError(f"{model.config.model_type}: no exact layout ({tried})")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' remarks about the shrunken copy (odd special tokens) off the user's terminal."""
    usual = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(usual)


def shrink(config: PretrainedConfig) -> PretrainedConfig:
    """A configuration of the same family with few layers, experts and tokens, short windows and large weights."""
    small = copy.deepcopy(config)
    layers = _layers_needed(config)
    for name, value in list(small.to_dict().items()):
        if isinstance(value, (list, tuple)) and len(value) == config.num_hidden_layers:
            setattr(small, name, list(value)[:layers])
    wanted = {
        "num_hidden_layers": layers, "vocab_size": VOCABULARY, "initializer_range": 3.0 / config.hidden_size**0.5,
        "sliding_window": WINDOW, "attention_chunk_size": WINDOW, "attention_dropout": 0.0,
        "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    for name, value in wanted.items():
        if name in ("pad_token_id", "bos_token_id", "eos_token_id") or getattr(config, name, None) is not None:
            setattr(small, name, value)
    for name, most in (("intermediate_size", 256), ("moe_intermediate_size", 64)):
        if isinstance(getattr(config, name, None), int):
            setattr(small, name, min(getattr(config, name), most))
    return small


def _layers_needed(config: PretrainedConfig) -> int:
    """The fewest leading layers (at least two) that hold every kind of layer the model has."""
    kinds = [value for value in config.to_dict().values() if isinstance(value, list) and len(value) == config.num_hidden_layers]
    rows = list(zip(*kinds, strict=True)) if kinds else []
    first_seen = [rows.index(kind) for kind in set(rows)]
    dense_first = getattr(config, "first_k_dense_replace", 0) or 0
    return min(config.num_hidden_layers, max([1, dense_first, *first_seen]) + 1)


def head_spec(model: PreTrainedModel, device: torch.device) -> HeadSpec:
    """How the model's own logits come from its hidden states. Raises LayoutError if no known head reproduces them."""
    ids = torch.randint(3, VOCABULARY, (1, 12), device=device)
    logits = model(input_ids=ids, use_cache=False).logits[0].float()
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    output = model.get_output_embeddings()
    assert isinstance(output, nn.Module)
    assert isinstance(output.weight, nn.Parameter)
    config = model.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    scales = [1.0]
    for name in ("logit_scale", "logits_scaling"):
        if isinstance(getattr(config, name, None), (int, float)):
            scales += [float(getattr(config, name)), 1.0 / float(getattr(config, name))]
    target = torch.randint(3, VOCABULARY, (12,), device=device)  # not the inputs: a tied model is sure of those
    want = logits.log_softmax(-1).gather(1, target[:, None])[:, 0]
    for scale in scales:
        head = HeadSpec(scale=scale, softcap=softcap)
        got = token_stats(hidden, output.weight, target, output.bias if isinstance(output, nn.Linear) else None, head=head).logps
        if _relative(got, want) < TOLERANCE:
            return head
    raise LayoutError(f"{model.config.model_type}: its head is not a linear map with scaling and soft-capping")


def _sample(device: torch.device) -> TokenTree:
    """Two answers to one prompt, longer than the probe's window, and a stranger."""
    rng = np.random.default_rng(0)
    prompt, first, second, other = (rng.integers(3, VOCABULARY, size) for size in (9, 7, 6, 8))

    def answered(answer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate([prompt, answer]), np.repeat([0.0, 1.0], [len(prompt), len(answer)])

    pair, alone = tree_of([answered(first), answered(second)]), tree_of([(other, np.ones(len(other)))])
    tree = collate([pair, alone], StepShare(1.0, 2, 1))
    return to_device(tree, device)


def _separate(model: PreTrainedModel, tree: TokenTree) -> Tensor:
    """Hidden states [T, H] from one plain forward a sequence."""
    spans, parents = tree.segments[:, :2].tolist(), tree.segments[:, 2].tolist()
    out: list[Tensor] = []
    for (start, end), parent in zip(spans, parents, strict=True):
        before = tree.ids[spans[parent][0] : spans[parent][1]] if parent >= 0 else tree.ids[:0]
        ids = torch.cat([before, tree.ids[start:end]])
        out.append(model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0, len(before) :])
    return torch.cat(out)


def _error(small: PreTrainedModel, layout: str, attention: str, head: HeadSpec, tree: TokenTree, want: Tensor) -> float | str:
    usual = small.config._attn_implementation
    try:
        small.set_attn_implementation(usual if layout == "padded" else backends.register())
        got, _ = PolicyModel(small, layout=layout, head=head, attention=attention).hidden(tree)  # type: ignore[arg-type]
    except (ValueError, TypeError, NotImplementedError, KeyError, AttributeError, RuntimeError) as reason:
        # Whatever a family raises under a layout it does not support rules that layout out; the reason is reported.
        return f"{type(reason).__name__}: {reason}".splitlines()[0][:200]
    finally:
        small.set_attn_implementation(usual)
    return _relative(got, want)


def _relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max().clamp_min(1e-12))
