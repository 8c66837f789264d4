"""Artifacts: whole or absent, loadable by plain transformers, equal to what was trained."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.errors import ConfigError
from posttrain.models import artifact as artifact_module
from posttrain.models.artifact import ArtifactRecord, load_artifact, save_artifact
from posttrain.models.artifact_weights import CorruptArtifactError
from posttrain.models.integrity import config_hash, verify, weights_digest
from posttrain.models.lineage import parents_of
from posttrain.models.loading import build_model
from posttrain.models.peft import apply_peft
from posttrain.models.tokenizers import byte_tokenizer, load_tokenizer
from posttrain.models.vocabulary import fit_to_tokenizer

RECORD = ArtifactRecord(
    method="sft",
    parent=None,
    data={"train.jsonl": "12ab"},
    config_hash=config_hash({"seed": 1}),
    metrics={"val/loss": 1.5},
    versions={"torch": torch.__version__},
)


def trained(conf, *, name: str = "nano", config=None, peft=None):
    """A model, its adapters moved away from their start, and its tokenizer."""
    config = conf(name) if config is None else config
    tokenizer = load_tokenizer(config)
    model = build_model(config, dtype=torch.float32, seed=2)
    fit_to_tokenizer(model, tokenizer, random_weights=config["weights"] == "random")
    if peft is not None:
        model = apply_peft(model, peft)
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model, tokenizer


@torch.no_grad()
def logits_of(model, ids: torch.Tensor) -> torch.Tensor:
    return model.eval()(input_ids=ids, use_cache=False).logits.float()


def record_of(folder: Path) -> dict:
    return json.loads((folder / "artifact.json").read_text())


@pytest.mark.parametrize("name", ["nano", "nano_moe", "nano_gemma", "better_ai_moe_tiny"])
def test_full_model(conf, tmp_path, ids, logits, name) -> None:
    model, tokenizer = trained(conf, name=name)
    folder = save_artifact(model, tokenizer, tmp_path / "artifact", record=RECORD)
    want = logits(model, ids)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder), ids), want)
    config = conf("hf", **load_artifact(folder))
    assert torch.equal(logits(build_model(config, dtype=torch.float32), ids), want)
    assert load_tokenizer(config).get_vocab() == tokenizer.get_vocab()
    assert record_of(folder)["form"] == "full"
    assert sorted(os.listdir(tmp_path)) == ["artifact"]


def test_the_record(conf, tmp_path) -> None:
    model, tokenizer = trained(conf)
    folder = save_artifact(model, tokenizer, tmp_path / "artifact", record=RECORD)
    record = record_of(folder)
    assert {key: record[key] for key in ("method", "parent", "data", "metrics")} == {
        "method": "sft",
        "parent": None,
        "data": {"train.jsonl": "12ab"},
        "metrics": {"val/loss": 1.5},
    }
    assert list(record["files"]) == ["model.safetensors"]
    assert len(record["files"]["model.safetensors"]) == 64
    assert config_hash({"a": 1, "b": [2.0]}) == config_hash({"b": [2.0], "a": 1}) != config_hash({"a": 1, "b": [2.5]})


def test_plain_generation_stops_at_the_end_of_the_turn(conf, tmp_path) -> None:
    tokenizer = byte_tokenizer()
    model = build_model(conf("nano"), dtype=torch.float32, seed=2)
    with torch.no_grad():  # the head answers every state with the end of turn
        model.model.norm.weight.zero_()
        model.model.norm.weight[0] = 1.0
        model.get_input_embeddings().weight[:, 0] = 0.0
        model.get_input_embeddings().weight[:, 1:] *= 0.01
        model.get_input_embeddings().weight[tokenizer.eos_token_id, 0] = 100.0
        model.get_input_embeddings().weight[ord("u"), 0] = 1.0
    folder = save_artifact(model, tokenizer, tmp_path / "artifact", record=RECORD)
    loaded, plain = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = plain("u", return_tensors="pt")
    out = loaded.generate(**prompt, max_new_tokens=20, do_sample=False)
    assert out[0].tolist() == [ord("u"), 259]
    assert loaded.generation_config.eos_token_id == [259, 257]


@pytest.mark.parametrize(
    "peft",
    [
        {"kind": "lora"},
        {"kind": "dora"},
        {"kind": "rslora", "modules_to_save": ["norm"]},
        {"kind": "pissa"},
        {"kind": "lora", "quantise": "nf4"},
    ],
    ids=["lora", "dora", "rslora", "pissa", "qlora"],
)
def test_adapters_on_random_weights_are_merged(conf, tmp_path, ids, logits, peft) -> None:
    model, tokenizer = trained(conf, peft=peft)
    want = logits(model, ids)
    folder = save_artifact(model, tokenizer, tmp_path / "artifact", record=RECORD)
    assert record_of(folder)["form"] == "merged"
    assert sorted(record_of(folder)["files"]) == ["adapter/adapter_model.safetensors", "model.safetensors"]
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(folder), ids), want, atol=1e-5, rtol=1e-4)
    assert torch.equal(logits(model, ids), want), "saving must not change the live model"


# adapter, the form it is saved in, whether plain transformers loads it exactly
ON_A_FOLDER = {
    "lora": ({"kind": "lora"}, "adapter", True),
    "pissa": ({"kind": "pissa"}, "adapter", True),
    "dora": ({"kind": "dora"}, "merged", True),
    "modules_to_save": ({"kind": "lora", "modules_to_save": ["model.norm"]}, "merged", True),
    "qlora": ({"kind": "lora", "quantise": "nf4"}, "adapter", False),
}


@pytest.mark.parametrize("case", ON_A_FOLDER)
@pytest.mark.parametrize("name", ["nano", "better_ai_moe_tiny"])
def test_adapters_on_a_folder(conf, tmp_path, ids, case, name) -> None:
    peft, form, plain = ON_A_FOLDER[case]
    if name != "nano" and peft["kind"] in {"dora", "pissa"}:
        peft = {**peft, "targets": ["q_proj", "v_proj"]}
    base, tokenizer = trained(conf, name=name)
    save_artifact(base, tokenizer, tmp_path / "base", record=RECORD)
    model, tokenizer = trained(conf, config=conf("hf", **load_artifact(tmp_path / "base")), peft=peft)
    want = logits_of(model, ids)
    folder = save_artifact(model, tokenizer, tmp_path / "artifact", record=RECORD)
    assert record_of(folder)["form"] == form
    assert record_of(folder)["base"] == str(tmp_path / "base")
    loaded = build_model(conf("hf", **load_artifact(folder)), dtype=torch.float32)
    torch.testing.assert_close(logits_of(loaded, ids), want, atol=2e-5, rtol=1e-4)
    by_transformers = logits_of(AutoModelForCausalLM.from_pretrained(folder), ids)
    assert torch.allclose(by_transformers, want, atol=2e-5, rtol=1e-4) == plain


def test_lora_on_a_lora_artifact(conf, tmp_path, ids, logits) -> None:
    base, tokenizer = trained(conf)
    save_artifact(base, tokenizer, tmp_path / "base", record=RECORD)
    first, tokenizer = trained(conf, config=conf("hf", **load_artifact(tmp_path / "base")), peft={"kind": "lora"})
    save_artifact(first, tokenizer, tmp_path / "first", record=RECORD)
    second, tokenizer = trained(conf, config=conf("hf", **load_artifact(tmp_path / "first")), peft={"kind": "lora", "r": 4})
    with second.disable_adapter():
        torch.testing.assert_close(logits(second, ids), logits(first, ids), atol=1e-5, rtol=1e-4)
    want = logits(second, ids)
    folder = save_artifact(second, tokenizer, tmp_path / "second", record=RECORD)
    assert record_of(folder)["form"] == "merged"
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(folder), ids), want, atol=1e-5, rtol=1e-4)


def test_a_grown_embedding_travels_with_the_adapter(conf, tmp_path, ids, logits) -> None:
    base, tokenizer = trained(conf)
    save_artifact(base, tokenizer, tmp_path / "base", record=RECORD)
    model = build_model(conf("hf", **load_artifact(tmp_path / "base")), dtype=torch.float32)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<new>"])
    fit_to_tokenizer(model, tokenizer, random_weights=False)
    folder = save_artifact(apply_peft(model, {"kind": "lora"}), tokenizer, tmp_path / "artifact", record=RECORD)
    assert record_of(folder)["form"] == "merged"
    assert AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight.shape[0] == 265


@pytest.mark.parametrize("harm", ["truncate", "flip", "delete"])
def test_a_damaged_weight_file_is_found(conf, tmp_path, harm) -> None:
    model, tokenizer = trained(conf)
    folder = save_artifact(model, tokenizer, tmp_path / "artifact", record=RECORD)
    file = folder / "model.safetensors"
    if harm == "truncate":
        os.truncate(file, file.stat().st_size - 1000)
    elif harm == "flip":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    for load in (lambda: load_artifact(folder), lambda: build_model(conf("hf", path=str(folder)), dtype=torch.float32)):
        with pytest.raises(ConfigError, match=r"model\.safetensors (does not match its checksum|is missing)"):
            load()


def test_a_damaged_adapter_is_found(conf, tmp_path) -> None:
    base, tokenizer = trained(conf)
    save_artifact(base, tokenizer, tmp_path / "base", record=RECORD)
    model, tokenizer = trained(conf, config=conf("hf", **load_artifact(tmp_path / "base")), peft={"kind": "lora"})
    folder = save_artifact(model, tokenizer, tmp_path / "artifact", record=RECORD)
    os.truncate(folder / "adapter_model.safetensors", 5000)
    with pytest.raises(ConfigError, match=r"adapter_model\.safetensors does not match"):
        build_model(conf("hf", path=str(folder)), dtype=torch.float32)


def test_a_record_cannot_point_outside(conf, tmp_path) -> None:
    model, tokenizer = trained(conf)
    folder = save_artifact(model, tokenizer, tmp_path / "artifact", record=RECORD)
    record = record_of(folder)
    record["files"] = {"../secret": "0"}
    (folder / "artifact.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="outside its folder"):
        verify(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 99}'])
def test_an_unreadable_record(tmp_path, content) -> None:
    (tmp_path / "artifact.json").write_text(content)
    with pytest.raises(ConfigError, match=r"artifact\.json"):
        verify(tmp_path)
    with pytest.raises(ConfigError, match="is not an artifact"):
        load_artifact(tmp_path / "absent")


def test_a_wrong_write_is_noticed_and_the_old_artifact_stays(conf, tmp_path, monkeypatch, ids, logits) -> None:
    old, tokenizer = trained(conf)
    folder = save_artifact(old, tokenizer, tmp_path / "artifact", record=RECORD)
    new = build_model(conf("nano"), dtype=torch.float32, seed=99)
    write = type(new).save_pretrained

    def write_wrongly(self, target, **keys) -> None:
        write(self, target, **keys)
        weights = load_file(Path(target) / "model.safetensors")
        weights["model.norm.weight"][3] += 1e-6
        save_file(weights, Path(target) / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(type(new), "save_pretrained", write_wrongly)
    with pytest.raises(CorruptArtifactError, match=r"model\.norm\.weight read back differs"):
        save_artifact(new, tokenizer, folder, record=RECORD)
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == ["artifact"]
    assert torch.equal(logits(build_model(conf("hf", **load_artifact(folder)), dtype=torch.float32), ids), logits(old, ids))


def test_a_weight_that_was_not_written_is_noticed(conf, tmp_path, monkeypatch) -> None:
    model, tokenizer = trained(conf)
    write = type(model).save_pretrained

    def write_less(self, target, **keys) -> None:
        write(self, target, **keys)
        weights = load_file(Path(target) / "model.safetensors")
        del weights["model.norm.weight"]
        save_file(weights, Path(target) / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(type(model), "save_pretrained", write_less)
    with pytest.raises(CorruptArtifactError, match=r"not written: model\.norm\.weight"):
        save_artifact(model, tokenizer, tmp_path / "artifact", record=RECORD)


def test_a_new_artifact_replaces_the_old_one_whole(conf, tmp_path, ids, logits) -> None:
    old, tokenizer = trained(conf, peft={"kind": "lora"})
    folder = save_artifact(old, tokenizer, tmp_path / "artifact", record=RECORD)
    new = build_model(conf("nano"), dtype=torch.float32, seed=99)
    fit_to_tokenizer(new, tokenizer, random_weights=True)
    save_artifact(new, tokenizer, folder, record=RECORD)
    assert not (folder / "adapter").exists()
    assert torch.equal(logits(build_model(conf("hf", **load_artifact(folder)), dtype=torch.float32), ids), logits(new, ids))


def test_a_crash_while_writing_leaves_the_old_artifact(conf, tmp_path, monkeypatch) -> None:
    model, tokenizer = trained(conf)
    folder = save_artifact(model, tokenizer, tmp_path / "artifact", record=RECORD)
    before = record_of(folder)

    def full_disk(*_, **__) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifact_module, "_write_record", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_artifact(model, tokenizer, folder, record=RECORD)
    assert record_of(folder) == before
    assert sorted(os.listdir(tmp_path)) == ["artifact"]


def test_weights_given_by_a_sharded_run(conf, tmp_path, ids, logits) -> None:
    model, tokenizer = trained(conf)
    gathered = {name: tensor + 1e-3 for name, tensor in model.state_dict().items()}
    gathered["lm_head.weight"] = gathered["model.embed_tokens.weight"]
    folder = save_artifact(model, tokenizer, tmp_path / "artifact", record=RECORD, state=gathered)
    model.load_state_dict(gathered)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder), ids), logits(model, ids))


SAMPLING = {"temperature": 0.6, "top_p": 0.9}


@pytest.mark.parametrize(
    ("given", "peft", "kept"),
    [
        (SAMPLING, None, SAMPLING | {"do_sample": True}),
        (SAMPLING, {"kind": "lora"}, SAMPLING | {"do_sample": True}),
        (SAMPLING | {"do_sample": False}, None, {"do_sample": False}),
        ({"temperature": 0.0}, None, {}),
    ],
)
def test_sampling_values_without_do_sample_can_be_saved_again(conf, tmp_path, given, peft, kept) -> None:
    base, tokenizer = trained(conf)
    save_artifact(base, tokenizer, tmp_path / "base", record=RECORD)
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(given))
    model, tokenizer = trained(conf, config=conf("hf", **load_artifact(tmp_path / "base")), peft=peft)
    folder = save_artifact(model, tokenizer, tmp_path / "artifact", record=RECORD)
    written = json.loads((folder / "generation_config.json").read_text())
    assert {name: value for name, value in written.items() if name in {"do_sample", *SAMPLING}} == kept


def test_an_adapter_is_not_put_on_a_base_that_was_replaced(conf, tmp_path, ids, logits) -> None:
    base, tokenizer = trained(conf)
    save_artifact(base, tokenizer, tmp_path / "base", record=RECORD)
    source = conf("hf", **load_artifact(tmp_path / "base"))
    model, tokenizer = trained(conf, config=source, peft={"kind": "lora"})
    parents = parents_of({"model": source, "method": {}})
    folder = save_artifact(model, tokenizer, tmp_path / "artifact", record=replace(RECORD, parents=parents))
    again = conf("hf", **load_artifact(folder))
    torch.testing.assert_close(logits(build_model(again, dtype=torch.float32), ids), logits(model, ids), atol=2e-5, rtol=1e-4)
    save_artifact(trained(conf, peft=None)[0].apply(_moved), tokenizer, tmp_path / "base", record=RECORD)
    with pytest.raises(ConfigError, match="was trained on other weights"):
        build_model(again, dtype=torch.float32)


def _moved(module: torch.nn.Module) -> None:
    if isinstance(module, torch.nn.Linear):
        module.weight.data += 0.1


def test_a_digest_of_the_weights_that_are_loaded_alone(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(1 << 18))
    before = weights_digest(tmp_path)
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "model.safetensors").write_bytes(b"1")
    (tmp_path / "training_args.bin").write_bytes(b"1")
    (tmp_path / "pytorch_model.bin").symlink_to(tmp_path / "gone")
    assert weights_digest(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(bytes([1]) * (1 << 18))
    assert weights_digest(tmp_path) != before
