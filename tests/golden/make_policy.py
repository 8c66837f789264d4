"""Losses, advantages and PPO's quantities as TRL, verl and torchtune compute them in float64, one JSON file a package beside this one.

In a throw-away environment, from the root of the repository (torchtune's package does not import beside today's torch and torchao, so
that its two files are loaded alone; verl needs no more than is named here):

    python -m venv /tmp/golden && /tmp/golden/bin/pip install trl==1.12.0 "transformers>=5.20,<6" torch==2.13.0 omegaconf codetiming ray \
        tensordict && /tmp/golden/bin/pip install --no-deps verl==0.9.1 torchtune==0.6.1
    /tmp/golden/bin/python tests/golden/make_policy.py

trl 1.12.0 is the last version with PPO, and the last whose `_compute_loss` takes plain log-probabilities. What stands in the middle of its
long methods (advantages, the sampler's correction, PPO's rewards and GAE) is run line by line as it stands there, see `excerpt`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import math
import sys
import textwrap
import types
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

NAN = float("nan")
LENGTHS = [6, 3, 1, 5]  # tokens of each answer, what a tool returned included


def numbers(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def drawn(*shape: int, seed: int, scale: float) -> Tensor:
    """Normal numbers with two decimals."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale * 100).round() / 100


def inputs() -> dict[str, Tensor]:
    """Four answers of up to six tokens [B, T]; every ratio from far below to far above 1, two tokens that a tool returned."""
    B, T = len(LENGTHS), max(LENGTHS)
    logps = -drawn(B, T, seed=1, scale=1.5).abs() - 0.25
    old = logps + drawn(B, T, seed=2, scale=0.6)
    old[1, 1], old[3, 0] = logps[1, 1] - 1.75, logps[3, 0] + 1.5  # a ratio of 5.75 where A < 0
    there = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
    mask = there.double()
    mask[0, 2], mask[0, 3] = 0.0, 0.0
    return {
        "logps": logps,
        "old": old,
        "reference": logps + drawn(B, T, seed=3, scale=0.8),
        "sampler": old + drawn(B, T, seed=4, scale=0.5),
        "advantages": numbers([1.25, -0.75, 0.5, -1.5]),
        "token_advantages": drawn(B, T, seed=5, scale=1.0),
        "there": there.double(),
        "mask": mask,
        "weights": (1 + drawn(B, T, seed=6, scale=0.3)).clamp(min=0.05),
        "scores": numbers([1.5, -0.5, 2.0, 0.25]),
        "values": drawn(B, T, seed=7, scale=1.0),
        "old_values": drawn(B, T, seed=8, scale=1.0),
        "returns": drawn(B, T, seed=9, scale=1.0),
    }


def rewards() -> dict[str, Tensor]:
    """Two components of five prompts with four answers each, [2, 5, 4], and their weights; one group without variance, one with gaps."""
    first = [[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.5, NAN, 1.0, 0.0], [NAN, 1.0, NAN, NAN]]
    second = [[0.25, 0.5, -1.0, 0.75], [2.0, 1.0, 0.0, 0.5], [0.5, 0.5, 0.5, 0.5], [1.0, NAN, NAN, 0.25], [NAN, 0.5, NAN, NAN]]
    return {"parts": numbers([first, second]), "weights_of_parts": numbers([1.0, 0.5])}


def graded(loss: Callable[[Tensor], Tensor], logps: Tensor) -> dict[str, Any]:
    """A loss and its gradient, [B, T]."""
    logps = logps.clone().requires_grad_()
    found = loss(logps)
    found.backward()
    assert logps.grad is not None
    return {"loss": found.item(), "gradient": logps.grad.tolist()}


def excerpt(function: Any, first: str, last: str, known: dict[str, Any]) -> dict[str, Any]:
    """Runs the lines of a function from the one that starts with `first` to before the one that starts with `last`; its variables."""
    lines = inspect.getsource(function).splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith(first))
    end = next(i for i, line in enumerate(lines) if i > start and line.strip().startswith(last))
    names = {**function.__globals__, **known}
    exec(textwrap.dedent("\n".join(lines[start:end])), names)
    return names


# --- TRL ---------------------------------------------------------------------------------------------------------------------------


def trl_stub(given: dict[str, Tensor], **options: Any) -> SimpleNamespace:
    """What GRPOTrainer._compute_loss reads of its trainer."""
    accelerator = SimpleNamespace(num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x)
    args = SimpleNamespace(
        delta=options.get("delta"), use_bias_correction_kl=options.get("unbiased", False), steps_per_generation=1,
        sapo_temperature_pos=1.0, sapo_temperature_neg=1.05,
    )  # fmt: skip
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda model, *_, **__: (model, torch.zeros_like(model), None),
        args=args, accelerator=accelerator, model=SimpleNamespace(training=False), _metrics={"eval": defaultdict(list)},
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1, max_completion_length=8, beta=options.get("beta", 0.0),
        epsilon_low=options.get("clip", 0.2), epsilon_high=options.get("high", options.get("clip", 0.2)),
        importance_sampling_level=options.get("level", "token"), loss_type=options["loss_type"],
        use_vllm=options.get("corrected", False), vllm_importance_sampling_correction=True,
    )  # fmt: skip


def trl_case(trainer: Any, given: dict[str, Tensor], **options: Any) -> dict[str, Any]:
    mask = given["mask"]
    prompt = torch.zeros(len(mask), 1)
    batch = {
        "prompt_ids": prompt, "prompt_mask": prompt, "completion_ids": mask, "completion_mask": mask, "num_items_in_batch": mask.sum(),
        "advantages": given["advantages"], "old_per_token_logps": given["old"], "ref_per_token_logps": given["reference"],
        "importance_sampling_ratio": given["weights"], "old_logps": (given["old"] * mask).sum(1),
    }  # fmt: skip
    return graded(lambda logps: trainer._compute_loss(trl_stub(given, **options), logps, batch), given["logps"])


def trl_losses(given: dict[str, Tensor]) -> dict[str, Any]:
    """The cases of GRPOTrainer._compute_loss, of its GSPO-token child, and of RLOOTrainer's."""
    from trl import GRPOTrainer, RLOOTrainer
    from trl.experimental.gspo_token.grpo_trainer import GRPOTrainer as TokenTrainer

    def case(loss_type: str, **options: Any) -> dict[str, Any]:
        return trl_case(GRPOTrainer, given, loss_type=loss_type, **options)

    return {
        "grpo": case("grpo"),
        "bnpo": case("bnpo"),
        "dr_grpo": case("dr_grpo"),
        "dapo": case("dapo", high=0.28),
        "two_sided": case("grpo", delta=3.0),
        "gspo": case("grpo", level="sequence"),
        "luspo": case("luspo", level="sequence"),
        "gspo_token": trl_case(TokenTrainer, given, loss_type="grpo", level="sequence_token"),
        "cispo": case("cispo", high=2.0),
        "sapo": case("sapo"),
        "corrected": case("dapo", corrected=True),
        "corrected_gspo": case("grpo", level="sequence", corrected=True),
        "with_kl": case("grpo", beta=0.25),
        "with_unbiased_kl": case("dapo", beta=0.25, unbiased=True, corrected=True),
        "rloo": trl_case(RLOOTrainer, given, loss_type="rloo"),
    }


def trl_advantages(given: dict[str, Tensor]) -> dict[str, Any]:
    """The block of `_generate_and_score_completions` that makes advantages of rewards, [P, G]."""
    from trl import GRPOTrainer, RLOOTrainer

    parts, shape = given["parts"], given["parts"].shape[1:]
    per_function = parts.flatten(1).T.contiguous()

    def case(trainer: Any, last: str, **options: Any) -> list[list[float]]:
        stub = SimpleNamespace(reward_weights=given["weights_of_parts"], reward_funcs=[None, None], **options)
        known = {"self": stub, "rewards_per_func": per_function.clone(), "num_generations": shape[1], "device": "cpu"}
        names = excerpt(trainer._generate_and_score_completions, "unscorable_mask =", last, known | {"inputs": None})
        return names["advantages"].view(shape).tolist()

    def grpo(scale: str, how: str = "sum_then_normalize") -> list[list[float]]:
        return case(GRPOTrainer, "# Slice to keep", scale_rewards=scale, multi_objective_aggregation=how)

    def rloo(normalise: bool) -> list[list[float]]:
        return case(
            RLOOTrainer, "# Slice to keep", normalize_advantages=normalise, reward_clip_range=None, beta=0.0, accelerator=None
        )  # fmt: skip

    return {
        "group": grpo("group"),
        "batch": grpo("batch"),
        "none": grpo("none"),
        "decoupled": grpo("group", "normalize_then_sum"),
        "leave_one_out": rloo(False),
        "leave_one_out_normalised": rloo(True),
    }


def trl_correction(given: dict[str, Tensor]) -> dict[str, Any]:
    """The block of `_generate_and_score_completions` that makes the sampler's correction, [B, T]."""
    from trl import GRPOTrainer

    def case(mode: str, most: float | None, least: float | None) -> list[list[float]]:
        stub = SimpleNamespace(
            use_vllm=True, vllm_importance_sampling_correction=True, vllm_importance_sampling_mode=mode,
            vllm_importance_sampling_clip_max=most, vllm_importance_sampling_clip_min=least,
        )  # fmt: skip
        known = {
            "self": stub, "completion_mask": given["there"], "tool_mask": None, "old_per_token_logps": given["old"],
            "sampling_per_token_logps": given["sampler"], "math": math,
        }  # fmt: skip
        first = "if self.use_vllm and self.vllm_importance_sampling_correction:"
        names = excerpt(GRPOTrainer._generate_and_score_completions, first, "# Compute the per-token log probabilities", known)
        return names["vllm_importance_sampling_ratio"].expand_as(given["old"]).tolist()

    return {
        f"{level}_{mode}": case(f"{level}_{mode}", 1.5, least)
        for level in ("token", "sequence")
        for mode, least in (("truncate", None), ("mask", 0.5))
    }


def trl_ppo(given: dict[str, Tensor]) -> dict[str, Any]:
    """The masked functions of PPO, and its loop over time."""
    from trl.experimental.ppo import ppo_trainer

    there = given["there"].bool()
    values, per_token = given["values"] * there, given["returns"] * there
    known = {"args": SimpleNamespace(gamma=0.9, lam=0.8), "responses": there, "values": values, "rewards": per_token}
    names = excerpt(ppo_trainer.PPOTrainer.train, "lastgaelam = 0", "advantages = masked_whiten", known)
    return {
        "mean": ppo_trainer.masked_mean(given["values"], there).item(),
        "variance": ppo_trainer.masked_var(given["values"], there).item(),
        "whitened": (ppo_trainer.masked_whiten(given["values"], there) * there).tolist(),
        "whitened_in_place": (ppo_trainer.masked_whiten(given["values"], there, shift_mean=False) * there).tolist(),
        "advantages": (names["advantages"] * there).tolist(),
        "returns": (names["returns"] * there).tolist(),
    }


# --- verl --------------------------------------------------------------------------------------------------------------------------


def verl_losses(given: dict[str, Tensor]) -> dict[str, Any]:
    from verl.trainer.ppo import core_algos
    from verl.workers.config import ActorConfig

    def case(function: Any, mode: str, advantages: str = "advantages", weights: bool = False, **options: Any) -> dict[str, Any]:
        config = ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, **options)
        object.__setattr__(config, "global_batch_info", {"loss_scale_factor": 8} if mode.endswith("norm") else {})
        spread = given[advantages] if given[advantages].dim() == 2 else given[advantages][:, None].expand_as(given["old"])
        return graded(
            lambda logps: function(
                given["old"], logps, spread, given["mask"], mode, config, rollout_is_weights=given["weights"] if weights else None
            )[0],
            given["logps"],
        )

    vanilla = core_algos.compute_policy_loss_vanilla
    far = {"clip_ratio": 0.2, "clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "clip_ratio_c": 3.0}
    none = {"clip_ratio": 0.2, "clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "clip_ratio_c": 1e6}
    return {
        "ppo": case(vanilla, "token-mean", "token_advantages", **none),
        "dual_clip": case(vanilla, "token-mean", **far),
        "dual_clip_token_advantages": case(vanilla, "seq-mean-token-mean", "token_advantages", **far),
        "grpo": case(vanilla, "seq-mean-token-mean", **none),
        "sequence_sum": case(vanilla, "seq-mean-token-sum", **none),
        "dr_grpo": case(vanilla, "seq-mean-token-sum-norm", **none),
        "corrected": case(vanilla, "token-mean", weights=True, **far),
        "gspo": case(core_algos.compute_policy_loss_gspo, "seq-mean-token-mean", **none),
        "gspo_token_advantages": case(core_algos.compute_policy_loss_gspo, "seq-mean-token-mean", "token_advantages", **none),
        "sapo": case(core_algos.compute_policy_loss_sapo, "seq-mean-token-mean", tau_pos=1.0, tau_neg=1.05),
        "cispo": case(core_algos.compute_policy_loss_cispo, "token-mean", clip_ratio_low=0.3, clip_ratio_high=1.0),
        "reinforce": case(core_algos.compute_policy_loss_reinforce, "seq-mean-token-sum"),
    }


def verl_advantages(given: dict[str, Tensor]) -> dict[str, Any]:
    """Of the three groups without gaps, as answers of a single token: verl weighs answers by their tokens where it whitens."""
    from verl.trainer.ppo import core_algos

    total = (given["parts"] * given["weights_of_parts"][:, None, None]).sum(0)[:3]
    flat, mask = total.reshape(-1, 1), torch.ones(total.numel(), 1, dtype=torch.float64)
    index = np.repeat(np.arange(3), total.shape[1])
    config = SimpleNamespace(gamma=1.0)
    found = {
        "group": core_algos.compute_grpo_outcome_advantage(flat.clone(), mask, index, epsilon=1e-6),
        "none": core_algos.compute_grpo_outcome_advantage(flat.clone(), mask, index, norm_adv_by_std_in_grpo=False),
        "leave_one_out": core_algos.compute_rloo_outcome_advantage(flat.clone(), mask, index),
        "reinforce_plus_plus": core_algos.compute_reinforce_plus_plus_outcome_advantage(flat.clone(), mask, config),
        "reinforce_plus_plus_baseline": core_algos.compute_reinforce_plus_plus_baseline_outcome_advantage(flat.clone(), mask, index),
    }
    return {name: advantages[:, 0].view_as(total).tolist() for name, (advantages, _) in found.items()}


def verl_rest(given: dict[str, Tensor]) -> dict[str, Any]:
    from verl.trainer.ppo import core_algos, rollout_corr_helper

    there = given["there"]

    def value(predicted: Tensor) -> Tensor:
        return core_algos.compute_value_loss(predicted, given["returns"], given["old_values"], there, 0.2)[0]

    advantages, returns = core_algos.compute_gae_advantage_return(given["returns"] * there, given["values"] * there, there, 0.9, 0.8)
    weights = {
        f"{level}_{mode}": rollout_corr_helper.compute_rollout_correction_weights(
            given["old"] - given["sampler"], there, rollout_is=level, rollout_is_threshold=threshold
        )[0].tolist()
        for level in ("token", "sequence")
        for mode, threshold in (("truncate", 1.5), ("mask", "0.5_1.5"))
    }
    controller = core_algos.AdaptiveKLController(0.05, 6.0, 10000)
    coefficients = []
    for kl in (9.0, 6.5, 1.0):
        controller.update(kl, 256)
        coefficients.append(controller.value)
    return {
        "kl": {name: core_algos.kl_penalty(given["logps"], given["reference"], name).tolist() for name in ("k1", "k2", "k3")},
        "value_loss": graded(value, given["values"]),
        "gae": {"whitened": (advantages * there).tolist(), "returns": (returns * there).tolist()},
        "correction": weights,
        "adaptive": [float(coefficient) for coefficient in coefficients],
    }


# --- torchtune ---------------------------------------------------------------------------------------------------------------------


def torchtune_files() -> tuple[Any, Any]:
    """Its modules of rewards and of PPO's loss, without the package around them."""
    spec = importlib.util.find_spec("torchtune")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    for name, place in (("torchtune", folder), ("torchtune.rlhf", folder / "rlhf")):
        module = types.ModuleType(name)
        module.__path__ = [str(place)]
        sys.modules[name] = module
    rlhf = sys.modules["torchtune"].rlhf = sys.modules["torchtune.rlhf"]  # type: ignore[attr-defined]
    found = importlib.import_module("torchtune.rlhf.rewards")
    rlhf.masked_mean = found.masked_mean  # type: ignore[attr-defined]
    loss = importlib.util.spec_from_file_location("torchtune_ppo", folder / "rlhf" / "loss" / "ppo.py")
    assert loss is not None
    assert loss.loader is not None
    ppo = importlib.util.module_from_spec(loss)
    loss.loader.exec_module(ppo)
    return found, ppo


def torchtune(given: dict[str, Tensor]) -> dict[str, Any]:
    functions, ppo = torchtune_files()
    there = given["there"].bool()
    loss = ppo.PPOLoss(epsilon=0.2, value_clip_range=0.2, value_coeff=1.0)  # policy's plus value's, which come without a gradient too

    def policy(logps: Tensor) -> Tensor:
        values = given["old_values"], given["values"], given["returns"]
        total, _, of_values, *_ = loss(given["old"], logps, given["token_advantages"], *values, there, there)
        return total - of_values

    def value(values: Tensor) -> Tensor:
        policies = given["old"], given["logps"], given["token_advantages"]
        total, of_policy, *_ = loss(*policies, given["old_values"], values, given["returns"], there, there)
        return total - of_policy

    last = torch.tensor(LENGTHS) - 1
    total, _, _ = functions.get_rewards_ppo(given["scores"], given["old"], given["reference"], 0.05, last)
    advantages, returns = functions.estimate_advantages(given["values"] * there, given["returns"] * there, 0.9, 0.8, there)
    return {
        "ppo": graded(policy, given["logps"]),
        "value_loss": graded(value, given["values"]),
        "rewards": (total * there).tolist(),
        "advantages_with_their_mean": advantages.tolist(),  # its shift_mean adds the mean back where TRL's does not
        "returns": (returns * there).tolist(),
    }


def written(package: str, given: dict[str, Tensor], scored: dict[str, Tensor], cases: dict[str, Any]) -> None:
    versions = {name: importlib.metadata.version(name) for name in (package, "torch")}
    plain = {name: table.tolist() for name, table in (given | scored).items()}
    content = {"made_with": versions, "inputs": plain, "lengths": LENGTHS} | cases
    path = Path(__file__).with_name(f"policy_{package}_{versions[package]}.json")
    path.write_text(json.dumps(content) + "\n")
    print(path)


def main() -> None:
    given, scored = inputs(), rewards()
    trl = {"losses": trl_losses(given), "advantages": trl_advantages(scored), "correction": trl_correction(given), "ppo": trl_ppo(given)}
    written("trl", given, scored, trl)
    written("verl", given, scored, {"losses": verl_losses(given), "advantages": verl_advantages(scored)} | verl_rest(given))
    written("torchtune", given, scored, torchtune(given))


if __name__ == "__main__":
    main()
