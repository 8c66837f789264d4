"""The cases of verl and torchtune, for make_policy.py."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from policy_inputs import LENGTHS, graded
from torch import Tensor


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
