"""Tree attention as a transformers attention function: a segment sees itself, causally, and its ancestors.

`register()` makes `attn_implementation="tree"` available; a model then takes `token_tree=Layout` as an extra keyword that reaches every
layer. Sliding windows, soft-capping and attention sinks are honoured; any other modifier a model asks for is refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from posttrain.models.attention import flex, gathered, ring, segments, ulysses, varlen
from posttrain.models.attention.layout import Layout, Scoring

NAME = "tree"
MOST_HEAD_DIM = 256  # that flash attention has kernels for

# Keywords that models hand to attention functions without changing the result.
HARMLESS = frozenset(
    {"position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states", "output_router_logits", "is_causal",
     "position_embeddings", "past_key_values", "logits_to_keep", "return_dict", "num_items_in_batch"}
)  # fmt: skip


class UnsupportedAttention(ValueError):
    """The model asks attention for something the tree layout does not implement."""


class Backend(Protocol):
    """q [1, H, T, D], k [1, G, T, D], v [1, G, T, E] -> [1, H, T, E]."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, scoring: Scoring) -> Tensor: ...


def _over_heads(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scoring: Scoring) -> Tensor:
    return ulysses.attention(q, k, v, layout, scoring, attend=BACKENDS[layout.within])


BACKENDS: dict[str, Backend] = {
    "sdpa": segments.attention,
    "flex": flex.attention,
    "varlen": varlen.attention,
    "ring": ring.attention,
    "ulysses": _over_heads,
    "torch": gathered.attention,
}


@torch.compiler.disable  # a layout is host data: traced, every micro-batch would be compiled anew
def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    token_tree: Layout | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls in every layer; returns ([1, T, H, E], None).

    Raises UnsupportedAttention for a keyword that would change the result and is not known, or without a layout.
    """
    if token_tree is None:
        raise UnsupportedAttention("tree attention needs token_tree=Layout in the model's call")
    strange = sorted(name for name, given in rest.items() if given is not None and name not in HARMLESS)
    if strange or attention_mask is not None:
        raise UnsupportedAttention(f"{type(module).__name__} asks attention for {', '.join(strange) or 'a mask'}")
    if torch.is_autocast_enabled(query.device.type):  # rotary embeddings and norms leave float32, which kernels of 16 bits refuse
        kind = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(kind), key.to(kind), value.to(kind)
    scoring = Scoring(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap, s_aux, dropout)
    out = BACKENDS[token_tree.backend](query, key, value, token_tree, scoring)
    return out.transpose(1, 2).contiguous(), None


def register() -> str:
    """Register the attention and its (absent) mask with transformers; returns the implementation's name."""
    no_mask: Callable[..., None] = lambda *_, **__: None  # noqa: E731
    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, no_mask)
    return NAME


def pick_backend(
    asked: str, device_type: str, *, shared: bool, plain: bool, head_dims: tuple[int, int], half: bool, dropout: bool = False
) -> str:
    """The backend for a micro-batch.

    asked: auto, sdpa, flex or varlen. shared: segments have parents. plain: no soft-capping and no sinks. head_dims: of a head's queries
    and keys, and of its values. half: compute in 16 bits. dropout: some attention weights are dropped.
    On CUDA `auto` takes varlen flash attention where nothing is shared and the kernel applies, SDPA under dropout, else FlexAttention;
    elsewhere SDPA. `varlen` takes FlexAttention for the micro-batches that share segments.
    Raises ValueError for flex or varlen without CUDA.
    """
    if device_type != "cuda" and asked not in ("auto", "sdpa"):
        raise ValueError(f"model.attention={asked} needs a CUDA device: use model.attention=auto")
    if asked == "sdpa" or device_type != "cuda" or (asked == "auto" and dropout):
        return "sdpa"
    fits_varlen = not shared and plain and half and head_dims[0] == head_dims[1] <= MOST_HEAD_DIM
    if asked in ("auto", "varlen") and fits_varlen:
        return "varlen"
    return "flex"
