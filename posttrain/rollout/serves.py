"""Whether the native decoder is exact for a model's family: tried on a small random copy, against the family's own attention."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.models.policy import PolicyModel
from posttrain.models.probe import TOLERANCE, VOCABULARY, head_spec, quiet_transformers, shrink
from posttrain.rollout.base import Request, Sampling
from posttrain.rollout.native import Decoder
from posttrain.rollout.stops import Stops
from posttrain.types import Completion

ANSWER = 9  # tokens: with the prompts, more than the copy's sliding window


def serves(model: PreTrainedModel) -> str | None:
    """None where the native decoder's log-probabilities are those of separate, plain sequences; else why it is not used."""
    if getattr(model.config.get_text_config(), "attention_chunk_size", None) is not None:
        return f"{model.config.model_type}: attention in chunks"  # longer than the copy's sequences, so not noticed by it
    cpu = torch.device("cpu")
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]), torch.no_grad(), torch.autocast("cpu", enabled=False):
            torch.manual_seed(0)
            small = type(model)(shrink(model.config)).eval().to(cpu, torch.float32)
            small.set_attn_implementation("eager")  # the written-out form honours every modifier a family has
            policy = PolicyModel(small, layout="tree", head=head_spec(small, cpu))
            error = _error(policy)
    except (ValueError, TypeError, NotImplementedError, KeyError, AttributeError, RuntimeError, FloatingPointError) as reason:
        # Whatever a family raises under a decoder that it does not support rules the decoder out; the reason is reported.
        return f"{model.config.model_type}: {type(reason).__name__}: {reason}".splitlines()[0][:200]
    return None if error < TOLERANCE else f"{model.config.model_type}: relative error {error:.1e}"


def _error(policy: PolicyModel) -> float:
    """Largest relative error over prompts of several lengths, more than the cache holds at once."""
    rng = np.random.default_rng(0)
    requests = [Request(rng.integers(3, VOCABULARY, length), 2, seed) for seed, length in enumerate((9, 8, 3, 12))]
    model = policy.causal_lm
    # so warm that every answer goes its own way: the large weights make some families sure of one token
    temperature = float(model(input_ids=torch.from_numpy(requests[-1].prompt)[None], use_cache=False).logits.std())
    decoder = Decoder(policy, Sampling(max_new_tokens=ANSWER, temperature=temperature), Stops([]), cache_tokens=60)
    answered = zip(requests, decoder.run(requests), strict=True)
    pairs = [(torch.from_numpy(c.logps), plain_logps(model, r.prompt, c, temperature)) for r, group in answered for c in group]
    got, want = (torch.cat(part) for part in zip(*pairs, strict=True))
    return float((got - want).abs().max() / want.abs().max())


def plain_logps(model: PreTrainedModel, prompt: np.ndarray, answer: Completion, temperature: float = 1.0) -> Tensor:
    """Log-probabilities [L] of an answer's tokens by one plain forward of its sequence."""
    ids = torch.from_numpy(np.concatenate([prompt, answer.tokens]).astype(np.int64))[None]
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float() / temperature
    picked = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
    assert isinstance(picked, Tensor)
    return picked
