"""Exports load with plain transformers and compute what the artifact computes; nothing is overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM

from posttrain.errors import ConfigError
from posttrain.evaluation.reward import load_reward_model
from posttrain.models.artifact import ArtifactRecord, save_artifact
from posttrain.models.heads import make
from posttrain.models.loading import build_model
from posttrain.models.quantisation import quantise
from posttrain.models.reward_artifact import save_reward_artifact
from posttrain.runs import export as module
from posttrain.runs.export import MERGED_TOLERANCE, ExportError, main, probe_logits
from posttrain.runs.loaded import load_beside

RECORD = ArtifactRecord(method="sft", parent=None, data={}, config_hash="0", metrics={}, versions={})


def adapted(base: Qwen3ForCausalLM) -> torch.nn.Module:
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.eval()


@pytest.fixture
def base_dir(random_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    random_model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter_run(base_dir: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A run whose artifact is an adapter on a local base, and the logits of the two together."""
    model = adapted(build_model({"weights": "pretrained", "path": str(base_dir)}, dtype=torch.float32))
    save_artifact(model, tokenizer, tmp_path / "run" / "artifact", record=RECORD)
    return tmp_path / "run", probe_logits(model)


def test_full_artifact(
    random_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_artifact(random_model, tokenizer, tmp_path / "run" / "artifact", record=RECORD)
    assert main({"run": str(tmp_path / "run"), "to": str(tmp_path / "out")}) == 0
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(probe_logits(plain), probe_logits(random_model))
    chat = [{"role": "user", "content": "hi"}]
    assert AutoTokenizer.from_pretrained(tmp_path / "out").apply_chat_template(chat) == tokenizer.apply_chat_template(chat)
    assert not (tmp_path / "out" / "artifact.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out"}
    assert str(tmp_path / "out") in capsys.readouterr().out


def test_bfloat16_stays_bfloat16(random_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    save_artifact(random_model.to(torch.bfloat16), tokenizer, tmp_path / "run" / "artifact", record=RECORD)
    assert main({"run": str(tmp_path / "run"), "to": str(tmp_path / "out")}) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16


def test_adapter_merged(adapter_run: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    run, expected = adapter_run
    assert main({"run": str(run), "to": str(tmp_path / "out"), "merge": "true"}) == 0
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert torch.allclose(probe_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), expected, rtol=1e-4, atol=1e-5)


def test_adapter_as_it_is(adapter_run: tuple[Path, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, expected = adapter_run
    assert main({"run": str(run), "to": str(tmp_path / "out")}) == 0
    assert (tmp_path / "out" / "adapter_config.json").exists()
    monkeypatch.chdir("/")
    assert torch.allclose(probe_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_an_adapter_on_a_rounded_base_as_it_is(
    base_dir: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, capsys: pytest.CaptureFixture, kind: str
) -> None:
    """The copy is compared on the base that it was trained on, and said to compute something else on the unrounded one."""
    pytest.importorskip("bitsandbytes")
    model = adapted(quantise(build_model({"weights": "pretrained", "path": str(base_dir)}, dtype=torch.float32), kind=kind))
    folder = save_artifact(model, tokenizer, tmp_path / "run" / "artifact", record=RECORD)
    expected = probe_logits(load_beside(folder))
    assert main({"run": str(tmp_path / "run"), "to": str(tmp_path / "out")}) == 0
    said = capsys.readouterr().out
    assert f"trained on a base rounded to {kind}" in said
    assert "merge=true" in said
    off = (probe_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")) - expected).abs().max() / expected.abs().max()
    assert off > MERGED_TOLERANCE
    assert f"{float(off):.1%}" in said
    assert main({"run": str(tmp_path / "run"), "to": str(tmp_path / "merged"), "merge": "true"}) == 0
    merged = probe_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    assert torch.allclose(merged, expected, rtol=1e-3, atol=1e-4)


def test_a_damaged_copy_of_an_adapter_on_a_rounded_base_is_found(
    base_dir: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    model = adapted(quantise(build_model({"weights": "pretrained", "path": str(base_dir)}, dtype=torch.float32), kind="nf4"))
    save_artifact(model, tokenizer, tmp_path / "run" / "artifact", record=RECORD)
    copy = module._copy

    def damaging_copy(folder: Path, draft: Path) -> None:
        copy(folder, draft)
        weights = load_file(draft / "adapter_model.safetensors")
        save_file({name: 1.1 * tensor for name, tensor in weights.items()}, draft / "adapter_model.safetensors")

    monkeypatch.setattr(module, "_copy", damaging_copy)
    with pytest.raises(ExportError, match="other logits"):
        main({"run": str(tmp_path / "run"), "to": str(tmp_path / "out")})
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="not empty"):
        main({"run": str(run_dir), "to": str(tmp_path / "full")})
    with pytest.raises(ConfigError, match="is a file"):
        main({"run": str(run_dir), "to": str(tmp_path / "full" / "mine.txt")})
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep"
    (tmp_path / "empty").mkdir()
    assert main({"run": str(run_dir), "to": str(tmp_path / "empty")}) == 0


def test_a_wrong_export_is_found_and_removed(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaging_copy(folder: Path, draft: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight[0, 0] += 1.0
        model.save_pretrained(draft)
        AutoTokenizer.from_pretrained(folder).save_pretrained(draft)

    monkeypatch.setattr(module, "_copy", damaging_copy)
    with pytest.raises(ExportError, match="other logits"):
        main({"run": str(run_dir), "to": str(tmp_path / "out")})
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments(tmp_path: Path, run_dir: Path) -> None:
    with pytest.raises(ConfigError) as error:
        main({"run": str(run_dir), "too": "x", "merge": "perhaps"})
    text = str(error.value)
    assert "did you mean to?" in text
    assert "merge=perhaps: expected true or false" in text
    assert "to: is needed" in text
    (tmp_path / "config.yaml").write_text("a: 1")
    (tmp_path / "result.json").write_text('{"status": "stopped"}')
    with pytest.raises(ConfigError, match=r"has no artifact \(the run is stopped\).*resumes"):
        main({"run": str(tmp_path), "to": str(tmp_path / "out")})


def test_a_merge_that_changes_the_function_is_found(
    adapter_run: tuple[Path, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.models.adapters.merge_adapter", lambda model: model.unload())
    with pytest.raises(ExportError, match="other logits"):
        main({"run": str(adapter_run[0]), "to": str(tmp_path / "out"), "merge": "true"})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["scalar", "quantile"])
def test_an_exported_reward_model_judges_as_before(
    random_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, kind: str
) -> None:
    head = make(kind, random_model.config.hidden_size, (), {} if kind == "scalar" else {"quantiles": 5})
    artifact = save_reward_artifact(random_model, head, tokenizer, tmp_path / "run" / "artifact", record=RECORD)
    assert main({"run": str(tmp_path / "run"), "to": str(tmp_path / "out")}) == 0
    chat = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]]
    before, after = (load_reward_model(folder)(chat) for folder in (artifact, tmp_path / "out"))
    assert torch.equal(before, after)
