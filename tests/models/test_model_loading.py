"""Loading and random initialisation: deterministic, safe, complete."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from posttrain.errors import ConfigError
from posttrain.models import hub
from posttrain.models.loading import build_model, seeded, weights_dtype

NANOS = ["nano", "nano_moe", "nano_gemma"]


def saved_nano(conf, folder, name: str = "nano"):
    model = build_model(conf(name), dtype=torch.float32, seed=3)
    model.save_pretrained(folder)
    return model, conf("hf", path=str(folder))


def same_weights(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", NANOS)
def test_random_weights_are_a_function_of_the_seed(conf, name) -> None:
    torch.manual_seed(1)
    first = build_model(conf(name), dtype=torch.float32, seed=5)
    torch.manual_seed(2)
    second = build_model(conf(name), dtype=torch.float32, seed=5)
    other = build_model(conf(name), dtype=torch.float32, seed=6)
    assert same_weights(first, second)
    assert not same_weights(first, other)


def test_random_weights_leave_the_global_state_alone(conf) -> None:
    torch.manual_seed(1)
    want = torch.rand(3)
    torch.manual_seed(1)
    build_model(conf("nano"), dtype=torch.float32, seed=5)
    assert torch.equal(torch.rand(3), want)
    torch.manual_seed(1)
    with seeded(7):
        torch.rand(10)
    assert torch.equal(torch.rand(3), want)


def test_no_row_of_a_random_embedding_is_frozen_as_padding(conf) -> None:
    model = build_model(conf("nano_gemma"), dtype=torch.float32)
    assert model.get_input_embeddings().padding_idx is None
    model(input_ids=torch.zeros(1, 4, dtype=torch.long)).logits.sum().backward()
    assert model.get_input_embeddings().weight.grad[0].abs().sum() > 0


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bf16", torch.float32), ("bf16_true", torch.bfloat16)])
def test_weights_have_the_dtype_of_the_precision(conf, precision, dtype) -> None:
    model = build_model(conf("nano"), dtype=weights_dtype(precision))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize("name", NANOS)
def test_saved_and_loaded_is_equal(conf, tmp_path, ids, logits, name) -> None:
    model, config = saved_nano(conf, tmp_path, name)
    loaded = build_model(config, dtype=torch.float32)
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    assert loaded.config.name_or_path == str(tmp_path)


def test_random_weights_from_a_local_config(conf, tmp_path) -> None:
    model, config = saved_nano(conf, tmp_path)
    random = build_model({**config, "weights": "random"}, dtype=torch.float32, seed=3)
    assert same_weights(random, model)


def test_the_home_folder_may_be_written_as_a_tilde(conf, tmp_path, monkeypatch) -> None:
    model, _ = saved_nano(conf, tmp_path / "saved")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert same_weights(build_model(conf("hf", path="~/saved"), dtype=torch.float32), model)


def test_a_missing_weight_is_an_error_not_a_random_number(conf, tmp_path) -> None:
    _, config = saved_nano(conf, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks the weight model\.layers\.1\.mlp\.up_proj\.weight"):
        build_model(config, dtype=torch.float32)


def test_a_truncated_file_is_a_clear_error(conf, tmp_path) -> None:
    _, config = saved_nano(conf, tmp_path)
    file = tmp_path / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(ConfigError, match="is damaged"):
        build_model(config, dtype=torch.float32)


def test_a_torch_file_of_tensors_loads(conf, tmp_path, ids, logits) -> None:
    model, config = saved_nano(conf, tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert torch.equal(logits(build_model(config, dtype=torch.float32), ids), logits(model, ids))


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, target) -> None:
        self.target = str(target)

    def __reduce__(self):
        return (os.mkdir, (self.target,))


def test_a_malicious_pickle_is_refused_and_does_nothing(conf, tmp_path) -> None:
    _, config = saved_nano(conf, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Malicious(tmp_path / "owned")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="holds more than tensors"):
        build_model(config, dtype=torch.float32)
    assert not (tmp_path / "owned").exists()
    pickle.loads(pickle.dumps(Malicious(tmp_path / "owned")))
    assert (tmp_path / "owned").exists(), "the payload of this test does nothing"


def test_code_in_a_model_folder_does_not_run(conf, tmp_path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "own", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}'
    )
    (tmp_path / "code.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'owned')!r})\n")
    with pytest.raises(ConfigError, match="trust_remote_code"):
        build_model(conf("hf", path=str(tmp_path)), dtype=torch.float32)
    assert not (tmp_path / "owned").exists()


def test_an_empty_folder_and_an_unreachable_hub(conf, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(hub, "hub_reachable", lambda: False)
    with pytest.raises(ConfigError, match=r"model\.path"):
        build_model(conf("hf", path=str(tmp_path)), dtype=torch.float32)
    with pytest.raises(ConfigError, match=r"Qwen/Qwen3-0\.6B is not in the local cache"):
        build_model(conf("qwen3_0_6b"), dtype=torch.float32)


def test_a_revision_of_a_local_folder_is_refused(conf, tmp_path) -> None:
    _, config = saved_nano(conf, tmp_path)
    with pytest.raises(ConfigError, match=r"model\.revision"):
        build_model({**config, "revision": "main"}, dtype=torch.float32)


def foreign_adapter(conf, folder, config, *, rows: int | None = None):
    """An adapter that peft alone wrote into `folder` / adapter, on a nano in `folder` / base; and the model of the two."""
    saved_nano(conf, folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    if rows is not None:
        base.resize_token_embeddings(rows)
    model = get_peft_model(base, config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder / "adapter")
    return model


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_on_one_end_of_a_tied_model_leaves_the_other(conf, tmp_path, ids, logits, target) -> None:
    model = foreign_adapter(conf, tmp_path, LoraConfig(r=4, target_modules=["q_proj", target], task_type="CAUSAL_LM"))
    want = logits(model, ids)
    loaded = build_model(conf("hf", path=str(tmp_path / "adapter")), dtype=torch.float32)
    torch.testing.assert_close(logits(loaded, ids), want, atol=2e-5, rtol=1e-4)
    loaded.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), ids), want, atol=2e-5, rtol=1e-4)


def test_what_an_adapter_is_merged_into_is_a_start_like_any_other(conf, tmp_path) -> None:
    foreign_adapter(conf, tmp_path, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    loaded = build_model(conf("hf", path=str(tmp_path / "adapter")), dtype=torch.float32)
    assert all(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("harm", ["renamed", "half"])
def test_an_adapter_that_does_not_match_its_base_is_refused(conf, tmp_path, harm) -> None:
    foreign_adapter(conf, tmp_path, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    renamed = {name.replace("model.layers", "model.language_model.layers"): weight for name, weight in weights.items()}
    half = {name: weight for name, weight in weights.items() if "layers.1." not in name}
    save_file({"renamed": renamed, "half": half}[harm], file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks .*layers\.\d\.self_attn\.q_proj") as caught:
        build_model(conf("hf", path=str(tmp_path / "adapter")), dtype=torch.float32)
    assert ("for which the base has no place" in str(caught.value)) == (harm == "renamed")


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_a_learnt_prompt_is_refused(conf, tmp_path, kind) -> None:
    foreign_adapter(conf, tmp_path, kind(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(ConfigError, match="is a learnt prompt"):
        build_model(conf("hf", path=str(tmp_path / "adapter")), dtype=torch.float32)


def test_an_adapter_on_a_resized_embedding_says_what_to_do(conf, tmp_path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"], task_type="CAUSAL_LM")
    foreign_adapter(conf, tmp_path, config, rows=272)
    with pytest.raises(ConfigError, match=r"base of other sizes.*resized embedding"):
        build_model(conf("hf", path=str(tmp_path / "adapter")), dtype=torch.float32)
