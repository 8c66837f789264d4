"""A causal language model that reads token trees and answers with per-target statistics, never with logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from posttrain.functional.head import HeadSpec
from posttrain.functional.logprobs import token_stats
from posttrain.models.attention.backends import pick_backend
from posttrain.models.attention.layout import layout_of
from posttrain.models.attention.passing import ALONE, Ring
from posttrain.models.layouts import padded_hidden, unshared
from posttrain.types import TokenStats, TokenTree

LayoutName = Literal["tree", "packed", "padded"]


class PolicyModel(nn.Module):
    """Wraps a transformers causal LM (or a PEFT model around one) behind `forward(tree) -> TokenStats`.

    layout: `tree` computes shared segments once; `packed` repeats them, one row without padding; `padded` is the model's own batch
    layout. The three give the same numbers. attention: auto, sdpa, flex or varlen. head: how the model's logits come from its hidden
    states. aux_coefficient: weight of a mixture-of-experts' load-balancing loss, 0 where the family has none. base_with_adapters_off:
    whether switching its adapters off gives the model that they were put on. ring: the ranks that rows are cut over; a tree that is not
    cut is computed here alone. cut: the attention over rows that are: ring, ulysses or torch.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layout: LayoutName,
        head: HeadSpec,
        attention: str = "auto",
        aux_coefficient: float = 0.0,
        base_with_adapters_off: bool = False,
        ring: Ring = ALONE,
        cut: str = "ring",
    ) -> None:
        super().__init__()
        self.model = model
        self.layout = layout
        self.head = head
        self.attention = attention
        self.aux_coefficient = aux_coefficient
        self.base_with_adapters_off = base_with_adapters_off
        self.ring, self.cut = ring, cut

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model inside, without the adapter wrapper."""
        return causal_lm(self.model)

    def forward(
        self, tree: TokenTree, *, noise: float = 0.0, temperature: float = 1.0, slopes: Tensor | None = None, **asked: bool
    ) -> tuple[TokenStats, Tensor | None]:
        """Statistics at the tree's targets, and the auxiliary loss of a mixture of experts (None without one).

        noise: NEFTune's alpha; 0 for none. temperature: divides the logits. slopes: of the loss in the log-probabilities, if known up to a
        factor, see `token_stats`. asked: what that computes only when asked (entropy, mean_logps, correct, collision).
        """
        hidden, aux = self.hidden(tree, noise=noise)
        return self.stats(hidden, tree, temperature=temperature, slopes=slopes, **asked), aux

    def stats(
        self, hidden: Tensor, tree: TokenTree, *, temperature: float = 1.0, slopes: Tensor | None = None, **asked: bool
    ) -> TokenStats:
        """Statistics at a tree's targets from its hidden states [T, H]."""
        output = self.causal_lm.get_output_embeddings()
        assert isinstance(output, nn.Module)
        head = self.head if temperature == 1.0 else replace(self.head, temperature=self.head.temperature * temperature)
        weight, bias = dense_head(output), head_bias(output)
        return token_stats(hidden[tree.source], weight, tree.target, bias, head=head, slopes=slopes, **asked)

    def hidden(self, tree: TokenTree, *, noise: float = 0.0) -> tuple[Tensor, Tensor | None]:
        """Final hidden states [T, H] of a tree, and the auxiliary loss."""
        if self.layout == "padded":
            return padded_hidden(self, tree, noise)
        if self.layout == "packed":
            flat, home = unshared(tree)
            hidden, aux = self._row(flat, noise)
            return hidden[home], aux
        return self._row(tree, noise)

    def _row(self, tree: TokenTree, noise: float) -> tuple[Tensor, Tensor | None]:
        config = self.causal_lm.config
        layout = layout_of(tree, self._backend(tree), self.ring, self.cut)
        lengths = sequence_lengths(tree) if noise and self.training else None
        out = self.backbone(tree.ids[None], noise, lengths, position_ids=tree.positions[None], token_tree=layout)
        return out.last_hidden_state[0], self.auxiliary(out, config)

    def backbone(self, ids: Tensor, noise: float = 0.0, lengths: Tensor | None = None, **kwargs: Any) -> Any:
        """Run the model below its head on ids [B, L]; lengths [B, L] or [B, 1] scale the embedding noise."""
        body = self.causal_lm.base_model
        if self.aux_coefficient:
            kwargs["output_router_logits"] = True
        if noise and self.training and lengths is not None:
            embedded = neftune(self.causal_lm.get_input_embeddings()(ids), lengths, alpha=noise)
            return body(inputs_embeds=embedded, use_cache=False, **kwargs)
        return body(input_ids=ids, use_cache=False, **kwargs)

    def auxiliary(self, out: Any, config: Any, mask: Tensor | None = None) -> Tensor | None:
        """Load-balancing loss of this forward (Switch, arXiv:2101.03961, eq. 4), times its coefficient."""
        if not self.aux_coefficient:
            return None
        from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

        experts = getattr(config, "num_experts", None) or config.num_local_experts
        loss = load_balancing_loss_func(out.router_logits, experts, config.num_experts_per_tok, mask)
        assert isinstance(loss, Tensor)
        return self.aux_coefficient * loss

    def _backend(self, tree: TokenTree) -> str:
        config = self.causal_lm.config
        shared = bool((tree.segments[:, 2] >= 0).any()) and self.layout == "tree"
        plain = getattr(config, "attn_logit_softcapping", None) is None and "sinks" not in _leaf_names(self.causal_lm)
        device = tree.ids.device.type
        half = torch.is_autocast_enabled(device) or self.causal_lm.dtype in (torch.bfloat16, torch.float16)
        drops = self.training and bool(getattr(config, "attention_dropout", 0.0))
        about = dict(shared=shared, plain=plain, half=half, dropout=drops)
        return pick_backend(self.attention, device, head_dims=head_dims(config), **about)


def head_dims(config: PreTrainedConfig) -> tuple[int, int]:
    """Of a head's queries and keys, and of its values, which latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1) has apart."""
    usual = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    latent = getattr(config, "qk_nope_head_dim", None)
    return (usual if latent is None else latent + config.qk_rope_head_dim), getattr(config, "v_head_dim", None) or usual


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    inner = model if isinstance(model, PreTrainedModel) else model.get_base_model()  # type: ignore[operator]
    assert isinstance(inner, PreTrainedModel)
    return inner


def neftune(embedded: Tensor, lengths: Tensor, *, alpha: float) -> Tensor:
    """Add uniform noise of magnitude alpha / sqrt(L d) to embeddings [B, L, d] (NEFTune, arXiv:2310.05914, section 2).

    lengths: [B, L] or [B, 1], tokens of the sequence each token belongs to, so that packing does not change the noise.
    """
    magnitude = alpha / (lengths * embedded.shape[-1]).sqrt()
    return embedded + torch.empty_like(embedded).uniform_(-1, 1) * magnitude[..., None].to(embedded.dtype)


def sequence_lengths(tree: TokenTree) -> Tensor:
    """Tokens from the root to the end of every token's segment, [1, T]."""
    ends = tree.segments[:, 1]
    last = tree.positions[(ends - 1).to(tree.positions.device)] + 1
    return torch.repeat_interleave(last, (ends - tree.segments[:, 0]).to(last.device))[None].float()


def _leaf_names(model: nn.Module) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name, _ in model.named_parameters()}


def head_in_use(output: nn.Module) -> nn.Module:
    """The head that computes now: of one that is trained in full beside its base, the copy, or the base while adapters are off."""
    from peft.utils.other import ModulesToSaveWrapper

    if not isinstance(output, ModulesToSaveWrapper):
        return output
    chosen = output.original_module if output.disable_adapters else output.modules_to_save[output.active_adapters[0]]
    assert isinstance(chosen, nn.Module)
    return head_in_use(chosen)


def dense_head(output: nn.Module) -> Tensor:
    """The weight [V, H] of the head in use; adapters on it are folded in, differentiably.

    Adapters' dropout cannot be folded in: `peft.checked_targets` refuses it there.
    """
    if isinstance(output, nn.Linear):
        return output.weight
    from peft.tuners.lora import LoraLayer

    output = head_in_use(output)
    if not isinstance(output, LoraLayer):
        assert isinstance(output.weight, Tensor)
        return output.weight
    weight = output.get_base_layer().weight
    assert isinstance(weight, Tensor)
    if output.disable_adapters:
        return weight
    deltas: list[Tensor] = [output.get_delta_weight(name) for name in output.active_adapters]  # type: ignore[operator]
    weight = weight + torch.stack(deltas).sum(0)
    for name in output.active_adapters:
        if name in output.lora_magnitude_vector:
            magnitude = output.lora_magnitude_vector[name].weight
            assert isinstance(magnitude, Tensor)
            weight = weight * _dora_scale(magnitude, weight)
    return weight


def head_bias(output: nn.Module) -> Tensor | None:
    """The bias [V] of the head in use, None without one. Adapters leave it as it is."""
    if isinstance(output, nn.Linear):
        return output.bias
    from peft.tuners.lora import LoraLayer

    output = head_in_use(output)
    base = output.get_base_layer() if isinstance(output, LoraLayer) else output
    bias = base.bias if isinstance(base, nn.Linear) else None
    assert bias is None or isinstance(bias, Tensor)
    return bias


def _dora_scale(magnitude: Tensor, adapted: Tensor) -> Tensor:
    """[V, 1]: DoRA's magnitude over the norm of each row, which counts as a constant (arXiv:2402.09353, section 4.3)."""
    return (magnitude / torch.linalg.norm(adapted.detach(), dim=1))[:, None]
