"""RMS norms (arXiv:1910.07467) as PyTorch's own operation instead of the half dozen that a family writes them with.

`torch.nn.functional.rms_norm` is one kernel on a device, forward and backward, and fewer passes on a CPU. A family's norm is replaced only
where it is seen to compute the same on random numbers when a model is built: by Qwen's and Llama's rule, x / rms(x) * w, or by Gemma's,
x / rms(x) * (1 + w). Anything else, and a norm without weights, stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

EPSILONS = ("variance_epsilon", "eps")


@dataclass(frozen=True)
class Rule:
    """How a class of norms computes. epsilon: the attribute that holds it. shift: what is added to the weights. widens: whether the result
    has the weights' type where that is wider than x's, instead of x's."""

    epsilon: str
    shift: float
    widens: bool

    def __call__(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """x [..., D], weight [D] -> [..., D]; computed in the wider type of the two, with shifted weights at least in float32."""
        wider = torch.promote_types(x.dtype, weight.dtype)
        kind = torch.promote_types(wider, torch.float32) if self.shift else wider
        scale = weight.to(kind)
        out = F.rms_norm(x.to(kind), weight.shape, scale + self.shift if self.shift else scale, epsilon)
        return out.to(wider if self.widens else x.dtype)


def fuse_norms(model: nn.Module) -> int:
    """Have the RMS norms of `model` that are known to compute so use the one operation; returns their number.

    Their class becomes a subclass of its own with the same name: weights, hooks, and what is asked of the class stay as they were.
    """
    rules: dict[tuple[type[nn.Module], int], Rule | None] = {}
    found = 0
    for module in [module for module in model.modules() if _candidate(module)]:
        key = (type(module), len(module.weight))  # type: ignore[arg-type]
        if key not in rules:
            rules[key] = rule_of(module)
        rule = rules[key]
        if rule is not None:
            module.__class__ = _fused(type(module), rule)
            found += 1
    return found


def rule_of(module: nn.Module) -> Rule | None:
    """The rule by which an RMS norm computes, in value and in the type of the result; None for one that is not known."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    epsilon = next((name for name in EPSILONS if isinstance(getattr(module, name, None), float)), None)
    if epsilon is None or weight.device.type == "meta":
        return None
    made = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(*size, generator=made, device="cpu")  # noqa: E731  # whatever the default device is
    # small numbers, too: the epsilon is to be told from another
    x = (draw(4, len(weight)) * torch.tensor([[1.0], [30.0], [1e-3], [1e-4]], device="cpu")).to(weight.device)
    w = draw(len(weight)).to(weight.device)
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        try:
            want, half = (functional_call(module, {"weight": w}, (given,)) for given in (x, x.to(torch.bfloat16)))
        except (RuntimeError, TypeError):  # it wants more than x: no such norm
            return None
        for rule in (Rule(epsilon, shift, widens) for shift in (0.0, 1.0) for widens in (True, False)):
            ours = rule(x, w, getattr(module, epsilon))
            same = isinstance(want, Tensor) and want.shape == ours.shape and torch.allclose(ours, want, rtol=1e-5, atol=1e-6)
            if same and half.dtype == rule(x.to(torch.bfloat16), w, getattr(module, epsilon)).dtype:
                return rule
    return None


def _candidate(module: nn.Module) -> bool:
    """Whether a module may be an RMS norm as its class made it: one vector of weights and nothing else."""
    named = type(module).__name__.endswith("Norm") and "forward" not in vars(module) and type(module) not in _made.values()
    weights = dict(module.named_parameters()) if named else {}
    vector = set(weights) == {"weight"} and type(weights["weight"]) is nn.Parameter and weights["weight"].dim() == 1
    return vector and not any(True for _ in module.children()) and not any(True for _ in module.buffers())


_made: dict[tuple[type[nn.Module], Rule], type[nn.Module]] = {}


def _fused(kind: type[nn.Module], rule: Rule) -> type[nn.Module]:
    """`kind` with a forward by the rule, always the same class."""

    def forward(self: nn.Module, hidden_states: Tensor) -> Tensor:
        weight = self.weight
        assert isinstance(weight, Tensor)
        return rule(hidden_states, weight, getattr(self, rule.epsilon))

    if (kind, rule) not in _made:
        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
        _made[kind, rule] = type(kind.__name__, (kind,), {"forward": forward, **names})
    return _made[kind, rule]
