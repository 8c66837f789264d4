"""The model as a scorer of token trees, outside training: the layout is probed, and everything on the model is put back at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from posttrain.data.tree import collate, to_device
from posttrain.models.attention import backends
from posttrain.models.decoding import plain_attention
from posttrain.models.policy import PolicyModel, causal_lm
from posttrain.models.probe import probe
from posttrain.types import StepShare, TokenizedExample, TokenStats, TokenTree


@contextmanager
def scorer(model: nn.Module) -> Iterator[Callable[[TokenTree], TokenStats]]:
    """A function from a token tree on the host to its targets' `logps` and `correct`, in evaluation mode and without gradients.

    model: a transformers causal LM, or a PEFT model around one. Raises LayoutError if no layout is exact for its family.
    """
    core = causal_lm(model)
    device = next(model.parameters()).device
    usual, training = core.config._attn_implementation, {module: module.training for module in model.modules()}
    try:
        model.eval()
        core.set_attn_implementation(plain_attention(core))  # the probe compares with the model's own attention
        found = probe(core, device=device)
        policy = PolicyModel(model, layout=found.layout, head=found.head)
        if found.layout != "padded":
            core.set_attn_implementation(backends.register())

        def score(tree: TokenTree) -> TokenStats:
            with torch.no_grad():
                stats: TokenStats = policy(to_device(tree, device), correct=True)[0]
            return stats

        yield score
    finally:
        core.set_attn_implementation(usual)
        for module, mode in training.items():
            module.training = mode


def micro_batches(examples: Iterable[TokenizedExample], *, max_tokens: int) -> Iterator[TokenTree]:
    """Examples in order, collated into rows of at most `max_tokens`; one example is always taken."""
    held: list[TokenizedExample] = []
    size = 0
    for example in examples:
        if held and size + len(example.ids) > max_tokens:
            yield _row(held)
            held, size = [], 0
        held.append(example)
        size += len(example.ids)
    if held:
        yield _row(held)


def _row(examples: Sequence[TokenizedExample]) -> TokenTree:
    weight = float(sum(example.weights.sum() for example in examples))
    return collate(examples, StepShare(weight, len(examples), 1))
