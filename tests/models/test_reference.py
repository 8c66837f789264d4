"""The reference policy is the model that entered the stage, whatever that model is made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_model_artifact import RECORD, trained

from posttrain.data.tree import collate, tree_of
from posttrain.models.artifact import load_artifact, save_artifact
from posttrain.models.build import build_policy
from posttrain.models.reference import AdaptersOff, Cached, FrozenCopy, ReferencePolicy
from posttrain.types import StepShare


def pair_tree():
    prompt, one, other = np.arange(10, 30), np.arange(40, 52), np.arange(60, 65)
    trained_part = lambda answer: (np.concatenate([prompt, answer]), np.repeat([0.0, 1.0], [len(prompt), len(answer)]))  # noqa: E731
    return collate([tree_of([trained_part(one), trained_part(other)])], StepShare(17.0, 1, 1))


def policy_of(model: dict, tokenizer):
    return build_policy(model, tokenizer, precision="float32", seed=3, device=torch.device("cpu"))


def moved(policy):
    """The policy after training: its adapters are somewhere else."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.mark.parametrize("quantise", [None, "nf4"])
@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_adapters_on_adapters_refer_to_the_first_stage(conf, tmp_path, form, quantise) -> None:
    """Stage one trains a LoRA, stage two another on top: with its own switched off, stage two is stage one's result."""
    first = conf("nano")
    if form == "adapter":  # a base that is in a folder of its own can be found again, so that the adapter travels alone
        base, tokenizer = trained(conf)
        save_artifact(base, tokenizer, tmp_path / "base", record=RECORD)
        first = {**first, **load_artifact(tmp_path / "base"), "architecture": None}
    model, tokenizer = trained(conf, config=first, peft={"kind": "lora"})
    folder = save_artifact(model, tokenizer, tmp_path / "first", record=RECORD)
    assert (folder / "adapter_config.json").is_file() == (form == "adapter")
    second = {**conf("nano", peft="lora"), **load_artifact(folder), "architecture": None}
    second["peft"] = {**second["peft"], "dropout": 0.1, "quantise": quantise}
    policy = policy_of(second, tokenizer)
    tree = pair_tree()
    with torch.no_grad():
        entering = policy.eval()(tree)[0].logps
    assert policy.base_with_adapters_off
    moved(policy).train()
    off, copy = AdaptersOff(policy)(tree), FrozenCopy(policy_of(second, tokenizer))(tree)
    torch.testing.assert_close(off, entering, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(copy, entering, rtol=1e-6, atol=1e-6)
    assert policy.training  # as it was
    if quantise is None:  # and this is what plain weights of stage one say
        plain = policy_of({**conf("nano"), **load_artifact(folder), "architecture": None, "peft": None}, tokenizer).eval()
        torch.testing.assert_close(off, plain(tree)[0].logps.detach(), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert (policy.eval()(tree)[0].logps - off).abs().max() > 1e-2


def test_a_moving_reference_moves_only_what_is_trained_and_when_it_is_time(conf) -> None:
    model, tokenizer = conf("nano"), trained(conf)[1]
    policy = policy_of(model, tokenizer)
    reference = ReferencePolicy("copy", update_every=2, update_mix=0.25)
    reference.build(policy, lambda: policy_of(model, tokenizer))
    assert isinstance(reference.source, FrozenCopy)
    name, start = next((name, value.detach().clone()) for name, value in policy.named_parameters())
    moved(policy)
    for step in (0, 1):
        reference.advance(step, policy)
    here = dict(reference.source.policy.named_parameters())
    torch.testing.assert_close(here[name], start)
    reference.advance(2, policy)
    torch.testing.assert_close(here[name], start + 0.25 * (dict(policy.named_parameters())[name] - start))
    assert not any(parameter.requires_grad for parameter in reference.parameters())


def test_auto_takes_the_cheapest_that_is_right(conf) -> None:
    tokenizer = trained(conf)[1]
    plain, adapted = (policy_of(conf("nano", peft=peft), tokenizer) for peft in (None, "lora"))
    kinds = {"full": (plain, None, FrozenCopy), "lora": (adapted, None, AdaptersOff), "moving": (adapted, 5, FrozenCopy)}
    for policy, every, expected in kinds.values():
        reference = ReferencePolicy("auto", update_every=every)
        reference.build(policy, lambda p=policy: p)
        assert isinstance(reference.source, expected)


def test_a_cached_reference_is_what_the_tree_carries() -> None:
    tree = pair_tree()
    with pytest.raises(RuntimeError, match="no log-probabilities"):
        Cached()(tree)
    known = torch.randn(len(tree.target))
    assert Cached()(replace(tree, reference=known)) is known
