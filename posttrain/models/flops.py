"""Floating-point operations of training, counted from the layers' shapes (a multiply-add is two).

Matrix products are counted, as torch's FlopCounterMode does; looking up embeddings and what is done element by element are not.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from posttrain.functional.ahead import pays
from posttrain.functional.logprobs import computed_again
from posttrain.models.counts import logical_numel
from posttrain.models.policy import PolicyModel
from posttrain.types import Work


@dataclass(frozen=True)
class FlopModel:
    """weights: matmul weights a token passes through (active experts only), without embedding and head. trained: those with gradients.
    adapters: those of adapters. untouched: those whose inputs need no gradient, since nothing below them is trained. head: weights of
    the output head, [vocabulary, H]; head_trained: whether they have gradients. attention: operations of one (query, key) product over
    all layers. checkpointing: whether the layers are computed once more in the backward pass, but for `last`, the weights they end with,
    whose product it does not need. device: its kind. kept: whether attention keeps its probabilities for the backward pass, instead of
    computing them again. ahead: whether the head's gradients are made in the forward pass, where its logits are there.
    """

    weights: float
    trained: float
    head: float
    attention: float
    untouched: float = 0.0
    adapters: float = 0.0
    vocabulary: int = 1
    head_trained: bool = True
    checkpointing: bool = False
    last: float = 0.0
    device: str = "cpu"
    kept: bool = True
    ahead: bool = False

    def training(self, *, tokens: float, targets: float, pairs: float, again: float = 0.0) -> float:
        """Forward and backward of `tokens` tokens with `targets` predicted ones, attending by `pairs` (query, key) products.

        again: logits computed once more in the backward pass, see `computed_again`.
        """
        width = self.head / self.vocabulary
        attention = self.attention * pairs * (3 if self.kept else 3.5)
        layers = tokens * (4 * self.weights - 2 * self.untouched + 2 * self.trained) + attention
        if self.checkpointing:
            layers += 2 * (self.weights - self.last) * tokens + self.attention * pairs
        return layers + (6 if self.head_trained else 4) * self.head * targets + 2 * width * again

    def forward(self, *, tokens: float, targets: float, pairs: float) -> float:
        """A forward pass of the same."""
        return 2 * self.weights * tokens + 2 * self.head * targets + self.attention * pairs

    def again(self, targets: int) -> int:
        """Logits that the backward pass of a micro-batch with so many targets computes once more."""
        return 0 if self.ahead else computed_again(targets, self.vocabulary, self.device)

    def of(self, work: Work, *, passes: float = 0.0, bare: float = 0.0, heads: bool = True) -> float:
        """Of a step. passes: over all that is trained on, without a backward one; bare: of these, those without adapters. heads: whether
        the output head is used."""
        seen = float(heads)
        again = seen * sum(map(self.again, work.batches))
        amounts = {"tokens": work.computed, "targets": seen * work.targets, "pairs": work.pairs}
        ahead = self.forward(tokens=work.forward_tokens, targets=seen * work.forward_targets, pairs=work.forward_pairs)
        left_out = 2 * self.adapters * (bare * work.computed + work.bare_tokens)
        return self.training(**amounts, again=again) + passes * self.forward(**amounts) + ahead + work.beside - left_out


def flop_model(policy: PolicyModel, *, device: str | None = None, half: bool = False, knows_slopes: bool = False) -> FlopModel:
    """Count a policy's operations from its parameters. device: the kind that it computes on, by default where its
    weights are. half: whether in 16 bits. knows_slopes: whether the loss's slopes are known to the head, see `token_stats`."""
    model = policy.causal_lm
    output = model.get_output_embeddings()
    assert isinstance(output, nn.Module)
    assert isinstance(output.weight, nn.Parameter)
    matrices, kind = _matrices(policy, model), device or output.weight.device.type
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    usable = pays(kind, half=half, softcap=softcap, bias=getattr(output, "bias", None) is not None)
    active = {name: _active_share(name, model.config.get_text_config()) * logical_numel(p) for name, p in matrices}
    return FlopModel(
        weights=sum(active.values()),
        trained=sum(active[name] for name, p in matrices if p.requires_grad),
        adapters=sum(active[name] for name, _ in matrices if ".lora_" in name),
        untouched=sum(active[name] for name, _ in matrices if _needs_no_input_gradient(name, policy)),
        head=float(logical_numel(output.weight)),
        vocabulary=int(output.weight.shape[0]),
        head_trained=output.weight.requires_grad,
        attention=_attention(model),
        checkpointing=bool(getattr(model, "is_gradient_checkpointing", False)),
        last=sum(active[name] for name, _ in matrices if ".down_proj" in name),
        device=kind,
        kept=kind == "cpu" and not half,  # the blocks of posttrain.models.attention.blocked
        ahead=knows_slopes and usable and output.weight.requires_grad,
    )


def body_flops(model: PreTrainedModel, *, tokens: float, pairs: float) -> float:
    """Operations of a forward pass below the head, of a model that is only read from. pairs: (query, key) products."""
    config = model.config.get_text_config()
    weights = sum(_active_share(name, config) * logical_numel(p) for name, p in _matrices(model, model))
    return FlopModel(weights, 0.0, 0.0, _attention(model)).forward(tokens=tokens, targets=0.0, pairs=pairs)


def _matrices(whole: nn.Module, model: PreTrainedModel) -> list[tuple[str, nn.Parameter]]:
    """The weights of `whole` that every token is multiplied with, but for the ends of the transformers model within."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    left_out = {id(p) for end in ends if isinstance(end, nn.Module) for p in end.parameters()}
    return [(name, p) for name, p in whole.named_parameters() if p.dim() >= 2 and id(p) not in left_out]


def _attention(model: PreTrainedModel) -> float:
    """Operations of one (query, key) product over all layers."""
    config = model.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 4.0 * config.num_hidden_layers * config.num_attention_heads * head_dim


FIRST = (".layers.0.self_attn.q_proj", ".layers.0.self_attn.k_proj", ".layers.0.self_attn.v_proj")


def _needs_no_input_gradient(name: str, policy: PolicyModel) -> bool:
    """Whether a weight reads the embeddings, and nothing that is trained lies before it: the first projections over frozen ones."""
    frozen = not any(p.requires_grad for p in policy.causal_lm.get_input_embeddings().parameters())
    return frozen and any(part in name for part in FIRST) and "lora_B" not in name


def _active_share(name: str, config: object) -> float:
    """Share of a weight that one token uses: the routed part of a layer of experts, all of any other."""
    experts = (
        getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or getattr(config, "n_routed_experts", None)
    )
    if not experts or ".experts." not in name:
        return 1.0
    return float(getattr(config, "num_experts_per_tok", experts)) / float(experts)
