"""Adapters: start at the base, train alone, merge to the same function."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain.errors import ConfigError
from posttrain.models.loading import build_model
from posttrain.models.peft import apply_peft, disabling_restores_base, merge
from posttrain.models.peft_options import peft_options
from posttrain.models.peft_targets import find_targets

KINDS = ["lora", "dora", "rslora", "pissa"]


def adapted(conf, kind: str, name: str = "nano", dtype=torch.float32, **overrides):
    model = conf(name, peft=kind)
    base = build_model(model, dtype=dtype)
    return copy.deepcopy(base), apply_peft(base, {**model["peft"], **overrides}, seed=1)


def train(model, ids, steps: int = 12) -> list[float]:
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", KINDS)
def test_starts_at_the_base_trains_and_merges(conf, ids, logits, kind) -> None:
    base, model = adapted(conf, kind)
    torch.testing.assert_close(logits(model, ids), logits(base, ids), atol=3e-6, rtol=1e-5)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    losses = train(model, ids)
    assert losses[-1] < losses[0] - 1.0
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    want = logits(model, ids)
    assert (want - logits(base, ids)).abs().max() > 0.1
    merged = merge(model)
    assert not [name for name, _ in merged.named_modules() if "lora" in name]
    torch.testing.assert_close(logits(merged, ids), want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["nano_moe", "better_ai_moe_tiny"])
def test_experts_get_adapters_that_train_and_merge(conf, ids, logits, name) -> None:
    _, model = adapted(conf, "lora", name)
    trained = {n: p.clone() for n, p in model.named_parameters() if p.requires_grad}
    assert any(".experts." in n for n in trained)
    assert any("shared_expert" in n for n in trained) == (name != "nano_moe")
    assert not any(".gate." in n for n in trained), "the router must stay as it is"
    train(model, ids, steps=3)
    assert all(not torch.equal(p, trained[n]) for n, p in model.named_parameters() if n in trained and "lora_B" in n)
    want = logits(model, ids)
    torch.testing.assert_close(logits(merge(model), ids), want, atol=2e-5, rtol=1e-4)


def test_scales(conf) -> None:
    for kind, want in (("lora", 32 / 4), ("rslora", 32 / 2)):
        _, model = adapted(conf, kind, r=4)
        layer = model.get_base_model().model.layers[0].self_attn.q_proj
        assert layer.scaling["default"] == want


def test_adapters_are_a_function_of_the_seed_and_float32(conf) -> None:
    torch.manual_seed(1)
    _, first = adapted(conf, "lora", dtype=torch.bfloat16)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    _, second = adapted(conf, "lora", dtype=torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.dtype == (torch.float32 if one.requires_grad else torch.bfloat16)


@pytest.mark.parametrize("kind", KINDS)
def test_disabled_adapters_are_the_base_where_we_say_so(conf, ids, logits, kind) -> None:
    base, model = adapted(conf, kind)
    with model.disable_adapter():
        equal = torch.allclose(logits(model, ids), logits(base, ids), atol=1e-6)
    assert equal == disabling_restores_base({"kind": kind})


def test_modules_to_save_train_in_full(conf, ids) -> None:
    _, model = adapted(conf, "lora", modules_to_save=["norm"])
    names = [name for name, p in model.named_parameters() if p.requires_grad and "lora" not in name]
    assert names == ["base_model.model.model.norm.modules_to_save.default.weight"], "not the norms inside attention"
    before = model.get_parameter(names[0]).clone()
    train(model, ids, steps=2)
    assert not torch.equal(model.get_parameter(names[0]), before)


def test_listed_targets(conf) -> None:
    _, model = adapted(conf, "lora", targets=["q_proj", "v_proj"])
    assert {name.split(".")[-4] for name, p in model.named_parameters() if p.requires_grad} == {"q_proj", "v_proj"}


def test_targets_that_match_nothing_list_what_there_is(conf) -> None:
    model = conf("nano_moe", peft="lora")
    wrong = {**model["peft"], "targets": ["qq_proj"], "target_parameters": ["experts.up"], "modules_to_save": ["heads"]}
    with pytest.raises(ConfigError) as caught:
        apply_peft(build_model(model, dtype=torch.float32), wrong)
    targets, parameters, modules = map(str, caught.value.problems)
    assert "k_proj, lm_head, o_proj, q_proj, v_proj" in targets
    assert "experts.down_proj, experts.gate_up_proj" in parameters
    assert "model.peft.modules_to_save" in modules


@pytest.mark.parametrize(
    ("keys", "problems"),
    [
        ({"target_parameters": ["q_proj.weight"]}, ["'q_proj.weight' has adapters by targets already"]),
        ({"targets": ["q_proj"], "target_parameters": ["norm.weight"]}, ["'norm.weight' cannot have adapters: it is no matrix"]),
        (
            {"targets": ["q_proj", "v_proj"], "modules_to_save": ["v_proj", "layers"]},
            ["'layers' is a list of modules", "'q_proj' is also", "'v_proj' is also"],
        ),
        (
            {"targets": ["q_proj"], "target_parameters": ["v_proj.weight"], "modules_to_save": ["v_proj"]},
            ["'v_proj.weight' is also trained"],
        ),
        ({"modules_to_save": ["self_attn", "mlp"]}, ["every linear layer is trained in full"]),
    ],
)
def test_what_cannot_be_adapted_is_told_before_peft_sees_it(conf, keys, problems) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_peft(build_model(conf("nano"), dtype=torch.float32), {"kind": "lora", **keys})
    assert len(caught.value.problems) == len(problems)
    for problem, words in zip(caught.value.problems, problems, strict=True):
        assert words in str(problem)


def test_a_layer_may_be_trained_in_full_beside_adapters_on_all_others(conf) -> None:
    model = apply_peft(build_model(conf("nano"), dtype=torch.float32), {"kind": "lora", "modules_to_save": ["q_proj"]})
    trained = [name for name, p in model.named_parameters() if p.requires_grad and "q_proj" in name]
    assert trained
    assert not any("lora" in name for name in trained)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_ends_that_share_one_weight_are_not_adapted(conf, target) -> None:
    model = conf("nano", peft="lora")
    base = build_model(model, dtype=torch.float32)
    assert base.config.tie_word_embeddings
    with pytest.raises(ConfigError, match=rf"model\.peft\.targets: '{target}' cannot be adapted.*share one weight"):
        apply_peft(base, {**model["peft"], "targets": ["q_proj", target]})
    with pytest.raises(ConfigError, match=r"model\.peft\.target_parameters"):
        apply_peft(base, {**model["peft"], "target_parameters": [f"{target}.weight"]})


@pytest.mark.parametrize(
    ("tied", "keys"),
    [
        (False, {"targets": ["q_proj", "lm_head", "embed_tokens"]}),
        (True, {"modules_to_save": ["lm_head"]}),
        (True, {"modules_to_save": ["embed_tokens"]}),
    ],
)
def test_adapted_ends_merge_to_the_same_function_and_are_saved_as_such(conf, ids, logits, tmp_path, keys, tied) -> None:
    base = build_model(conf("nano", architecture={"tie_word_embeddings": tied}), dtype=torch.float32)
    model = apply_peft(base, {"kind": "lora", **keys})
    train(model, ids, steps=3)
    want = logits(model, ids)
    merged = merge(model)
    torch.testing.assert_close(logits(merged, ids), want, atol=1e-5, rtol=1e-4)
    merged.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path), ids), want, atol=1e-5, rtol=1e-4)


def test_unknown_keys_and_wrong_types_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        peft_options({"kind": "lra", "alfa": 3, "r": "x"})
    text = str(caught.value)
    assert "model.peft.kind: Input should be 'lora', 'dora', 'rslora' or 'pissa'" in text
    assert "did you mean alpha?" in text
    assert "model.peft.r" in text


@pytest.mark.parametrize(
    ("name", "wrong", "where"),
    [
        ("nano_moe", {"kind": "dora"}, "model.peft.kind"),
        ("nano_moe", {"kind": "lora", "dropout": 0.1}, "model.peft.dropout"),
        ("nano", {"kind": "pissa", "quantise": "nf4"}, "model.peft.quantise"),
    ],
)
def test_combinations_that_cannot_be(conf, name, wrong, where) -> None:
    with pytest.raises(ConfigError, match=where.replace(".", r"\.")):
        apply_peft(build_model(conf(name), dtype=torch.float32), wrong)


def test_the_way_out_that_the_error_names_works(conf) -> None:
    attention = {"kind": "dora", "targets": ["q_proj", "k_proj", "v_proj", "o_proj"], "dropout": 0.1}
    model = apply_peft(build_model(conf("better_ai_moe_tiny"), dtype=torch.float32), attention)
    assert all("self_attn" in name for name, p in model.named_parameters() if p.requires_grad)


def test_all_linear_of_a_dense_model_is_left_to_peft(conf) -> None:
    targets = find_targets(peft_options({"kind": "lora"}), build_model(conf("nano"), dtype=torch.float32))
    assert (targets.modules, targets.parameters, targets.kept) == ("all-linear", [], frozenset())


@pytest.mark.parametrize(("source", "commit"), [("owner/name", "1" * 40), (".", None)])
def test_an_adapter_names_the_commit_of_its_base(conf, source, commit):
    """A branch of the hub moves, and then the adapter would lie on other weights; a folder has no commits."""
    model = conf("nano", peft="lora")
    base = build_model(model, dtype=torch.float32)
    base.config.name_or_path, base.config._commit_hash = source, "1" * 40
    adapted = apply_peft(base, model["peft"])
    assert adapted.peft_config["default"].revision == commit
