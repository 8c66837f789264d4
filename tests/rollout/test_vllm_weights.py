"""rollout=vllm: weights and adapters reach the server, and it is noticed where they do not."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from vllm_cases import REQUESTS, free_port, same, tiny
from vllm_server import serving

from posttrain.errors import ConfigError
from posttrain.models.policy import PolicyModel
from posttrain.models.tokenizers import byte_tokenizer
from posttrain.rollout.remote import sync as syncing
from posttrain.rollout.remote.http import ServerError
from posttrain.rollout.remote.prints import Print, prints_of
from posttrain.rollout.remote.ranks import anybody, from_first
from posttrain.rollout.remote.weights import StaleWeightsError, check_arrival, compare, whole_state
from posttrain.rollout.serves import plain_logps
from posttrain.rollout.vllm import VLLMGenerator


def attached(policy: PolicyModel, url: str, folder: Path, **keys: Any) -> VLLMGenerator:
    generator = VLLMGenerator(url=url, folder=str(folder), **{"max_new_tokens": 8, "pause": 0.01, "retries": 1} | keys)
    generator.attach(policy, byte_tokenizer())
    return generator


@torch.no_grad()
def nudge(policy: PolicyModel, size: float = 0.1) -> None:
    """A step of all that is trained."""
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.add_(size * parameter.std().clamp_min(0.1) * torch.randn(parameter.shape, generator=generator))


def with_adapter(policy: PolicyModel, **keys: Any) -> PolicyModel:
    torch.manual_seed(2)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | keys)
    return PolicyModel(get_peft_model(policy.causal_lm, config), layout="tree", head=policy.head)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny().causal_lm.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@torch.no_grad()
def assert_from(policy: PolicyModel, generator: VLLMGenerator) -> Any:
    """Samples, and checks that they have the policy's log-probabilities."""
    found = generator.generate(REQUESTS)
    for request, answers in zip(REQUESTS, found, strict=True):
        np.testing.assert_allclose(answers[0].logps, plain_logps(policy.causal_lm.eval(), request.prompt, answers[0]), atol=5e-5)
    return found


# -- full weights ------------------------------------------------------------------------------------------------------------------------


def test_an_update_changes_what_is_sampled(base: Path, tmp_path: Path) -> None:
    policy = tiny()
    with serving(base, byte_tokenizer()) as (url, server):
        generator = attached(policy, url, tmp_path / "handover")
        generator.refresh()
        before = assert_from(policy, generator)
        generator.refresh()
        assert server.loads == server.resets == 1  # nothing had changed
        nudge(policy)
        generator.refresh()
        assert server.loads == server.resets == 2
        assert not same(before, assert_from(policy, generator))
        assert list((tmp_path / "handover").glob("*/*")) == []  # handed over and taken away
        assert policy.training


def test_writes_past_the_version_counter_are_seen(base: Path, tmp_path: Path) -> None:
    policy = tiny()
    with serving(base, byte_tokenizer()) as (url, server):
        generator = attached(policy, url, tmp_path / "handover")
        generator.refresh()
        weight = policy.causal_lm.model.layers[0].mlp.up_proj.weight
        weight.detach().numpy()[0, 0] += 0.5  # as a kernel of an optimizer may
        generator.refresh()
        assert server.loads == 2


def test_a_server_in_half_precision(base: Path, tmp_path: Path) -> None:
    policy = tiny()
    with serving(base, byte_tokenizer(), dtype=torch.bfloat16) as (url, _):
        generator = attached(policy, url, tmp_path / "handover", tolerance=0.5)
        generator.refresh()
        assert 0 < generator.measures()["sampler/mismatch"] < 0.5


@pytest.mark.parametrize(("checksum", "says"), [(True, "its parameters differ"), (False, "differ by .* nats a token")])
def test_stale_weights_are_caught(base: Path, tmp_path: Path, checksum: bool, says: str) -> None:
    policy = tiny()
    with serving(base, byte_tokenizer()) as (url, server):
        generator = attached(policy, url, tmp_path / "handover", checksum=checksum)
        generator.refresh()
        server.faults["stale"] = None
        nudge(policy)
        with pytest.raises(StaleWeightsError, match=says):
            generator.refresh()


def test_a_change_in_the_last_place_of_one_weight_is_caught(base: Path, tmp_path: Path) -> None:
    policy = tiny()
    with serving(base, byte_tokenizer()) as (url, server):
        generator = attached(policy, url, tmp_path / "handover")
        generator.refresh()
        server.faults["stale"] = None
        with torch.no_grad():
            weight = policy.causal_lm.model.layers[1].self_attn.k_proj.weight
            weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
        with pytest.raises(StaleWeightsError, match=r"1 of its parameters differ \(model\.layers\.1\.self_attn\.qkv_proj\.weight\)"):
            generator.refresh()


def test_a_small_update_that_the_server_ignores_is_caught_by_its_standing_still(base: Path, tmp_path: Path) -> None:
    policy = tiny()
    with serving(base, byte_tokenizer()) as (url, server):
        generator = attached(policy, url, tmp_path / "handover", checksum=False)
        generator.refresh()
        server.faults["stale"] = None
        nudge(policy, 0.003)
        with pytest.raises(StaleWeightsError, match="it still has the old weights"):
            generator.refresh()


@pytest.mark.parametrize("adapted", [False, True])
def test_a_failed_update_is_tried_again_at_the_next_refresh(base: Path, tmp_path: Path, adapted: bool) -> None:
    policy = with_adapter(tiny()) if adapted else tiny()
    with serving(base, byte_tokenizer(), lora_rank=16) as (url, server):
        generator = attached(policy, url, tmp_path / "handover")
        server.faults["error"] = 2
        with pytest.raises(ServerError, match="HTTP 500"):
            generator.refresh()
        generator.refresh()
        assert_from(policy, generator)
        nudge(policy)
        generator.refresh()
        assert_from(policy, generator)
        assert len(server.adapters) == adapted


# -- adapters ----------------------------------------------------------------------------------------------------------------------------


def test_adapters_go_by_a_new_name_for_each_version(base: Path, tmp_path: Path) -> None:
    policy = with_adapter(tiny())
    with serving(base, byte_tokenizer(), lora_rank=16) as (url, server):
        generator = attached(policy, url, tmp_path / "handover")
        generator.refresh()
        first = assert_from(policy, generator)
        (old,) = server.adapters
        nudge(policy)
        server.faults["cut"] = 1  # the reply to the digest, or to loading, is lost on its way: asked for again
        generator.refresh()
        assert not same(first, assert_from(policy, generator))
        (new,) = server.adapters
        assert (old[-2:], new[-2:]) == ("-1", "-2")
        assert server.seen[-1][1]["model"] == new
        assert server.loads == 0  # the base stays as it is
        generator.refresh()
        assert list(server.adapters) == [new]
        assert [folder.name for folder in (tmp_path / "handover").glob("*/*")] == ["000002"]


def test_a_lost_reply_to_loading_an_adapter_is_no_failure(base: Path, tmp_path: Path) -> None:
    policy = with_adapter(tiny())
    with serving(base, byte_tokenizer(), lora_rank=16) as (url, server):
        generator = attached(policy, url, tmp_path / "handover", checksum=False)
        server.faults["cut"] = 1
        generator.refresh()
        assert len(server.adapters) == 1


@pytest.mark.parametrize(("size", "says"), [(0.5, "differ by .* nats"), (0.02, "it still has the old weights")])
def test_stale_adapters_are_caught(base: Path, tmp_path: Path, size: float, says: str) -> None:
    policy = with_adapter(tiny())
    with serving(base, byte_tokenizer(), lora_rank=16) as (url, server):
        generator = attached(policy, url, tmp_path / "handover")
        generator.refresh()
        server.faults["stale"] = None
        nudge(policy, size)
        with pytest.raises(StaleWeightsError, match=says):
            generator.refresh()


def test_a_folder_that_is_not_shared_is_named(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = with_adapter(tiny())
    monkeypatch.setattr(syncing, "sha256_of", lambda _: "of what the trainer wrote")
    with serving(base, byte_tokenizer(), lora_rank=16) as (url, _), pytest.raises(StaleWeightsError, match=r"rollout\.folder must be"):
        attached(policy, url, tmp_path / "handover").refresh()


@pytest.mark.parametrize(
    ("keys", "rank", "where"),
    [
        ({}, None, ["rollout.url"]),
        ({"r": 32}, 16, ["model.peft.r"]),
        ({"use_dora": True}, 16, ["model.peft.kind"]),
        ({"init_lora_weights": "pissa", "modules_to_save": ["norm"]}, 16, ["model.peft.kind", "model.peft.modules_to_save"]),
    ],
)
def test_adapters_that_cannot_be_served(base: Path, tmp_path: Path, keys: dict[str, Any], rank: int | None, where: list[str]) -> None:
    with serving(base, byte_tokenizer(), lora_rank=rank) as (url, _), pytest.raises(ConfigError) as raised:
        attached(with_adapter(tiny(), **keys), url, tmp_path)
    assert [problem.where for problem in raised.value.problems] == where


def test_the_command_for_adapters_names_a_base_without_them(tmp_path: Path) -> None:
    plain, policy = tiny(), with_adapter(tiny())
    generator = VLLMGenerator(url="http://127.0.0.1:9", wait=0.1, folder=str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve .*--enable-lora --max-loras 2 --max-lora-rank 16"
    ):
        generator.attach(policy, byte_tokenizer())
    written = type(plain.causal_lm).from_pretrained(tmp_path / "base")
    for name, tensor in plain.causal_lm.state_dict().items():
        assert torch.equal(tensor, written.state_dict()[name]), name


# -- fingerprints ------------------------------------------------------------------------------------------------------------------------


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.self_attn.q_proj.weight": (8, 6), "a.self_attn.k_proj.weight": (4, 6), "a.self_attn.v_proj.weight": (4, 6),
              "norm.weight": (6,), "embed_tokens.weight": (10, 6), "o_proj.weight": (6, 8)}  # fmt: skip
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def as_workers(tensors: dict[str, torch.Tensor], shards: int) -> list[dict[str, Print]]:
    """Tensor-parallel workers of vLLM: q, k, v fused and cut, the norm copied, the vocabulary padded and cut."""
    qkv = [tensors[f"a.self_attn.{x}_proj.weight"].chunk(shards) for x in "qkv"]
    vocabulary = torch.cat([tensors["embed_tokens.weight"], torch.zeros(6, 6)]).chunk(shards)
    return [
        prints_of({
            "a.self_attn.qkv_proj.weight": torch.cat([parts[rank] for parts in qkv]), "norm.weight": tensors["norm.weight"],
            "embed_tokens.weight": vocabulary[rank], "o_proj.weight": tensors["o_proj.weight"].chunk(shards, 1)[rank],
        }.items())
        for rank in range(shards)
    ]  # fmt: skip


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_shards_copies_and_padding_are_seen_through(shards: int) -> None:
    sent = weights()
    assert check_arrival(prints_of(sent.items()), as_workers(sent, shards)) == 1.0
    for name in sent:
        other = {**sent, name: sent[name] + 1e-5 * torch.ones_like(sent[name])}
        assert len(compare(prints_of(sent.items()), as_workers(other, shards)).wrong) == 1, name


def test_a_norm_in_another_order_has_another_digest() -> None:
    sent = weights()
    assert compare(prints_of(sent.items()), as_workers({**sent, "norm.weight": sent["norm.weight"].flip(0)}, 1)).wrong == ("norm.weight",)


def test_two_replicas_are_compared_and_strange_names_prove_nothing() -> None:
    sent = weights()
    assert check_arrival(prints_of(sent.items()), as_workers(sent, 2) * 2) == 1.0
    with pytest.raises(StaleWeightsError, match="only 0% of the weights"):
        check_arrival(prints_of(sent.items()), [prints_of({"other": torch.ones(3)}.items())])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.uint8])
def test_prints_survive_the_journey(dtype: torch.dtype) -> None:
    found = prints_of([("x", torch.arange(6).to(dtype)), ("bad", torch.tensor([float("nan"), 1.0]))])
    assert (found["x"].total, found["x"].magnitude, found["x"].numel) == (15.0, 15.0, 6)
    assert Print.unpacked(found["x"].packed()) == found["x"]
    assert np.isnan(Print.unpacked(found["bad"].packed()).total)


# -- ranks -------------------------------------------------------------------------------------------------------------------------------


def _rank(rank: int, port: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    said = [from_first(lambda: ("from", rank)), anybody(rank == 1), anybody(False)]

    def fail() -> None:
        raise StaleWeightsError(f"rank {rank}")

    with pytest.raises(StaleWeightsError, match="rank 0"):
        from_first(fail)
    assert (whole_state(nn.Linear(2, 2), keep=rank == 0) == {}) == (rank == 1)
    Path(folder, str(rank)).write_text(str(said))
    torch.distributed.destroy_process_group()


def test_the_first_rank_acts_and_all_learn_what_came_of_it(tmp_path: Path) -> None:
    port = free_port()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["posttrain.rollout.vllm"])
    ranks = [context.Process(target=_rank, args=(rank, port, str(tmp_path))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]
    assert {(tmp_path / str(rank)).read_text() for rank in range(2)} == {"[('from', 0), True, False]"}


def test_a_partitioned_model_is_refused() -> None:
    with pytest.raises(ValueError, match="ZeRO stage 3"):
        whole_state(nn.ParameterList([nn.Parameter(torch.empty(0))]), keep=True)
