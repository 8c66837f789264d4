"""Floating-point operations of training, counted from the layers' shapes (a multiply-add is two)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from posttrain.models.counts import logical_numel
from posttrain.models.policy import PolicyModel


@dataclass(frozen=True)
class FlopModel:
    """weights: matmul weights a token passes through (active experts only), without embedding and head. trained: those with gradients.
    head: weights of the output head. attention: operations for one (query, key) pair over all layers.
    """

    weights: float
    trained: float
    head: float
    attention: float

    def training(self, *, tokens: float, targets: float, pairs: float) -> float:
        """Forward and backward of `tokens` tokens with `targets` predicted ones, attending to `pairs` (query, key) pairs.

        The head is computed once more in the backward pass instead of being stored; attention's backward costs 2.5 forwards.
        """
        layers = tokens * (4 * self.weights + 2 * self.trained)
        return layers + 8 * self.head * targets + 3.5 * self.attention * pairs

    def forward(self, *, tokens: float, targets: float, pairs: float) -> float:
        """A forward pass of the same."""
        return 2 * self.weights * tokens + 2 * self.head * targets + self.attention * pairs


def flop_model(policy: PolicyModel) -> FlopModel:
    """Count a policy's operations from its parameters."""
    config = policy.causal_lm.config.get_text_config()
    ends = {id(p) for end in (policy.causal_lm.get_input_embeddings(), policy.causal_lm.get_output_embeddings()) for p in end.parameters()}
    matrices = [(name, p) for name, p in policy.named_parameters() if p.dim() >= 2 and id(p) not in ends]
    active = {name: _active_share(name, config) * logical_numel(p) for name, p in matrices}
    output = policy.causal_lm.get_output_embeddings()
    assert isinstance(output, nn.Module)
    assert isinstance(output.weight, nn.Parameter)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return FlopModel(
        weights=sum(active.values()),
        trained=sum(active[name] for name, p in matrices if p.requires_grad),
        head=float(output.weight.shape[0] * config.hidden_size),
        attention=4.0 * config.num_hidden_layers * config.num_attention_heads * head_dim,
    )


def _active_share(name: str, config: object) -> float:
    """Share of a weight that one token uses: the routed part of a layer of experts, all of any other."""
    experts = (
        getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or getattr(config, "n_routed_experts", None)
    )
    if not experts or ".experts." not in name:
        return 1.0
    return float(getattr(config, "num_experts_per_tok", experts)) / float(experts)


def causal_pairs(lengths: np.ndarray) -> float:
    """(query, key) pairs of causal sequences of these lengths."""
    exact = lengths.astype(np.float64)
    return float((exact * (exact + 1) / 2).sum())
