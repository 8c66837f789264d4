"""Losses, advantages and PPO's quantities as TRL, verl and torchtune compute them in float64, one JSON file a package beside this one.

In a throw-away environment, from the root of the repository (torchtune's package does not import beside today's torch and torchao, so
that its two files are loaded alone; verl needs no more than is named here):

    python -m venv /tmp/golden && /tmp/golden/bin/pip install trl==1.12.0 "transformers>=5.20,<6" torch==2.13.0 omegaconf codetiming \
        orjson ray tensordict && /tmp/golden/bin/pip install --no-deps verl==0.9.1 torchtune==0.6.1
    /tmp/golden/bin/python tests/golden/make_policy.py

trl 1.12.0 is the last version with PPO. What stands in the middle of its long methods (advantages, the sampler's correction, PPO's loop
over time) is run line by line as it stands there, see `excerpt`. The inputs are in policy_inputs.py, the other two in policy_peers.py.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import math
import textwrap
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from policy_inputs import LENGTHS, graded, inputs, rewards
from policy_peers import torchtune, verl_advantages, verl_losses, verl_rest
from torch import Tensor


def excerpt(function: Any, first: str, last: str, known: dict[str, Any]) -> dict[str, Any]:
    """Runs the lines of a function from the one that starts with `first` to before the one that starts with `last`; its variables."""
    lines = inspect.getsource(function).splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith(first))
    end = next(i for i, line in enumerate(lines) if i > start and line.strip().startswith(last))
    names = {**function.__globals__, **known}
    exec(textwrap.dedent("\n".join(lines[start:end])), names)
    return names


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
