"""An output head that is adapted, or trained in full beside its base, computes in a policy what it computes in its model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_model_artifact import trained
from test_reference import moved, pair_tree

from posttrain.data.tree import collate, tree_of
from posttrain.errors import ConfigError
from posttrain.functional.head import HeadSpec
from posttrain.models.build import build_policy
from posttrain.models.loading import build_model
from posttrain.models.peft import apply_peft
from posttrain.models.policy import PolicyModel, dense_head, head_bias
from posttrain.models.reference import AdaptersOff
from posttrain.types import StepShare

HEADS = {
    "full": {"kind": "lora", "modules_to_save": ["lm_head"]},
    "lora": {"kind": "lora", "targets": ["q_proj", "lm_head"]},
    "dora": {"kind": "dora", "targets": ["q_proj", "lm_head"]},
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("peft", HEADS.values(), ids=HEADS)
def test_the_policy_computes_what_the_model_does(conf, ids, peft, bias) -> None:
    base = build_model(conf("nano", architecture={"tie_word_embeddings": False}), dtype=torch.float32)
    if bias:
        base.lm_head.bias = torch.nn.Parameter(torch.randn(base.lm_head.out_features))
    model = moved(apply_peft(base, peft)).eval()
    tree = collate([tree_of([(ids[0].numpy(), np.ones(40))])], StepShare(39.0, 1, 1))
    policy = PolicyModel(model, layout="packed", head=HeadSpec(), attention="sdpa")
    head = policy.causal_lm.get_output_embeddings()

    def compare() -> torch.Tensor:
        hidden = policy.causal_lm.base_model(input_ids=ids[:1]).last_hidden_state[0]
        want = model(input_ids=ids[:1]).logits[0]
        got = policy.stats(hidden, tree).logps
        torch.testing.assert_close(got, want[:-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.nn.functional.linear(hidden, dense_head(head), head_bias(head)), want, atol=1e-4, rtol=1e-4)
        return got

    trained = compare()
    trained.sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if p.requires_grad and "lm_head" in name)
    with torch.no_grad(), model.disable_adapter():
        assert (compare() - trained).abs().max() > 1e-2


@pytest.mark.parametrize("peft", HEADS.values(), ids=HEADS)
def test_a_trained_head_is_no_part_of_the_reference(conf, peft) -> None:
    model = conf("nano", architecture={"tie_word_embeddings": False})
    policy = build_policy({**model, "peft": peft}, trained(conf)[1], precision="float32", seed=3, device=torch.device("cpu"))
    tree = pair_tree()
    with torch.no_grad():
        entering = policy.eval()(tree)[0].logps
        torch.testing.assert_close(AdaptersOff(moved(policy))(tree), entering, rtol=1e-6, atol=1e-6)
        assert (policy(tree)[0].logps - entering).abs().max() > 1e-2


def test_dropout_before_an_adapted_head_is_refused(conf) -> None:
    base = build_model(conf("nano", architecture={"tie_word_embeddings": False}), dtype=torch.float32)
    with pytest.raises(ConfigError, match=r"model\.peft\.dropout: .* the output head"):
        apply_peft(base, {**HEADS["lora"], "dropout": 0.1})
    apply_peft(base, {**HEADS["full"], "dropout": 0.1})  # a head that is trained in full has none
