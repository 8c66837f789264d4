"""Values and gradients of losses on pairs, on judged answers and on rewards as TRL computes them, written to a JSON file beside this one.

Each version runs in a throw-away environment, from the root of the repository:

    python -m venv /tmp/golden && /tmp/golden/bin/pip install trl==0.28.0 "transformers==4.57.*" torch
    /tmp/golden/bin/python tests/golden/make_preference.py

trl 0.28.0 is the last version whose DPO, KTO and BCO losses can be called alone; CPO, SimPO and ORPO come from trl 1.16.0 (with
transformers 5), and so do the reward model's loss, LD-DPO and WPO, whose masks 0.28.0 counts from the prompt and shifts by a token.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
import trl

Sums = dict[str, torch.Tensor]


def inputs() -> Sums:
    """Log-probabilities of six pairs, float64: ordinary ones, equal ones, and margins far to both sides."""
    rows = {
        "chosen": [-12.5, -40.25, -3.0, -8.0, -90.0, -0.75],
        "rejected": [-14.0, -38.5, -3.0, -30.0, -20.0, -0.5],
        "reference_chosen": [-13.0, -39.0, -3.5, -15.0, -60.0, -1.0],
        "reference_rejected": [-13.5, -39.5, -2.5, -18.0, -45.0, -0.25],
    }
    return {name: torch.tensor(row, dtype=torch.float64) for name, row in rows.items()}


def graded(loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], given: Sums) -> dict[str, list[float]]:
    """Losses [P], and the gradients of their sum."""
    chosen, rejected = given["chosen"].clone().requires_grad_(), given["rejected"].clone().requires_grad_()
    losses = loss(chosen, rejected)
    losses.sum().backward()
    return {"losses": losses.tolist(), "d_chosen": _list(chosen.grad), "d_rejected": _list(rejected.grad)}


def _list(tensor: torch.Tensor | None) -> list[float]:
    assert tensor is not None
    return tensor.tolist()


def dpo(given: Sums) -> dict[str, Any]:
    """The cases of DPOTrainer.dpo_loss: {name: {options, losses, gradients}}."""
    from trl.trainer.dpo_config import FDivergenceConstants, FDivergenceType
    from trl.trainer.utils import RunningMoments

    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, num_processes=1)

    def case(loss_type: str, *, beta: float, smoothing: float = 0.0, tau: float = 0.05, divergence: str = "reverse_kl", alpha: float = 1.0):
        running = SimpleNamespace(mean=0.125, update=lambda _: None) if loss_type == "bco_pair" else RunningMoments(accelerator)
        stub = SimpleNamespace(
            accelerator=accelerator, reference_free=False, beta=beta, label_smoothing=smoothing, running=running,
            f_divergence_type=FDivergenceType(divergence),
            f_divergence_params={FDivergenceConstants.ALPHA_DIVERGENCE_COEF_KEY: alpha}, args=SimpleNamespace(discopop_tau=tau),
        )  # fmt: skip

        def loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
            reference = given["reference_chosen"], given["reference_rejected"]
            return trl.DPOTrainer.dpo_loss(stub, chosen, rejected, *reference, loss_type=loss_type)[0]

        return graded(loss, given)

    return {
        "sigmoid": case("sigmoid", beta=0.1),
        "cdpo": case("sigmoid", beta=0.3, smoothing=0.2),
        "hinge": case("hinge", beta=0.2),
        "ipo_summed": case("ipo", beta=0.1),
        "exo": case("exo_pair", beta=0.1, smoothing=1e-3),
        "nca": case("nca_pair", beta=0.1),
        "robust": case("robust", beta=0.1, smoothing=0.1),
        "bco": case("bco_pair", beta=0.1),
        "sppo": case("sppo_hard", beta=0.1),
        "aot": case("aot", beta=0.1, smoothing=0.1),
        "aot_unpaired": case("aot_unpaired", beta=0.1),
        "apo_zero": case("apo_zero", beta=0.1),
        "apo_down": case("apo_down", beta=0.1),
        "discopop": case("discopop", beta=0.1, tau=0.05),
        "js": case("sigmoid", beta=0.1, divergence="js_divergence"),
        # 0.28 writes (1 - u^-a) / a, which is ours with alpha = 1 - a
        "alpha": case("sigmoid", beta=0.1, divergence="alpha_divergence", alpha=0.25),
    }


def reference_free(given: Sums) -> dict[str, Any]:
    """The cases of CPOTrainer.cpo_loss and ORPOTrainer.odds_ratio_loss, on log-probabilities per token (a tenth of the sums)."""
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    accelerator = SimpleNamespace(device="cpu")

    def cpo(loss_type: str, *, beta: float, gamma: float = 0.0, smoothing: float = 0.0, alpha: float = 0.0):
        stub = SimpleNamespace(
            accelerator=accelerator, beta=beta, label_smoothing=smoothing, loss_type=loss_type, simpo_gamma=gamma, alpha=alpha
        )
        return lambda chosen, rejected: CPOTrainer.cpo_loss(stub, chosen, rejected)[0]

    def per_token(loss: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda chosen, rejected: loss(chosen / 10, rejected / 10)

    odds = SimpleNamespace(accelerator=accelerator, beta=0.1)
    return {
        "cpo": graded(cpo("sigmoid", beta=0.1, smoothing=0.1), given),
        "simpo": graded(per_token(cpo("simpo", beta=2.0, gamma=0.5)), given),
        "alpha_po": graded(per_token(cpo("simpo", beta=2.0, gamma=0.5, alpha=0.25)), given),
        # trl computes in float32 and negates the term where it is used
        "orpo": graded(per_token(lambda chosen, rejected: -ORPOTrainer.odds_ratio_loss(odds, chosen, rejected)[0]), given),
    }


def judged() -> Sums:
    """Log-probabilities of four desirable and three undesirable answers, and of answers to other prompts, float64."""
    rows = {
        "desirable": [-12.5, -40.25, -3.0, -90.0],
        "undesirable": [-14.0, -38.5, -0.75],
        "elsewhere": [-20.0, -31.5, -8.25, -15.0, -60.0, -44.0, -9.5],
        "reference_desirable": [-13.0, -39.0, -3.5, -60.0],
        "reference_undesirable": [-13.5, -55.0, -0.25],
        "reference_elsewhere": [-22.5, -31.0, -12.0, -18.0, -58.5, -50.0, -9.0],
    }
    return {name: torch.tensor(row, dtype=torch.float64) for name, row in rows.items()}


def feedback(given: Sums) -> dict[str, Any]:
    """The cases of KTOTrainer.kto_loss and BCOTrainer.bco_loss; `baseline` is what they subtract."""
    from trl.experimental.bco import BCOTrainer
    from trl.experimental.kto import KTOTrainer
    from trl.trainer.utils import RunningMoments

    accelerator = SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x, use_distributed=False)
    reference = given["reference_desirable"], given["reference_undesirable"]

    def graded_on(loss: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]) -> dict[str, Any]:
        good, bad = given["desirable"].clone().requires_grad_(), given["undesirable"].clone().requires_grad_()
        losses, baseline = loss(good, bad)
        losses.sum().backward()
        return {"baseline": baseline.item(), "losses": losses.tolist(), "d_logps": _list(good.grad) + _list(bad.grad)}

    def kto(loss_type: str, *, beta: float, desirable: float = 1.0, undesirable: float = 1.0, swapped: bool = False) -> dict[str, Any]:
        stub = SimpleNamespace(
            accelerator=accelerator, beta=beta, loss_type=loss_type, calculate_KL=loss_type == "kto",
            desirable_weight=desirable, undesirable_weight=undesirable,
        )  # fmt: skip
        elsewhere, known = (given[name] for name in ("elsewhere", "reference_elsewhere")[:: -1 if swapped else 1])

        def loss(good: torch.Tensor, bad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            losses, _, _, kl = KTOTrainer.kto_loss(stub, good, bad, elsewhere, *reference, known)
            return losses, kl

        return graded_on(loss)

    def bco(*, beta: float) -> dict[str, Any]:
        running = RunningMoments(accelerator)
        running.update(torch.tensor([0.5, -1.25, 2.0], dtype=torch.float64))  # an earlier step's rewards
        stub = SimpleNamespace(accelerator=accelerator, beta=beta, running=running, match_underlying_distribution=False)

        def loss(good: torch.Tensor, bad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            losses, _, _, delta = BCOTrainer.bco_loss(stub, good, bad, *reference, None, None)
            return losses, delta

        return graded_on(loss)

    return {
        "kto": kto("kto", beta=0.1),
        "kto_weighted": kto("kto", beta=0.3, desirable=1.5, undesirable=0.75),
        "kto_below_zero": kto("kto", beta=0.1, swapped=True),
        "apo_zero_unpaired": kto("apo_zero_unpaired", beta=0.1, desirable=1.5, undesirable=0.75),
        "bco_unpaired": bco(beta=0.1),
    }


def tokens() -> dict[str, Any]:
    """Three pairs token by token: the policy's logits [T][V] and the answer's ids [T], chosen and rejected in turn; the reference's
    log-probabilities [T]."""
    generator = torch.Generator().manual_seed(0)
    lengths = [2, 4, 3, 1, 3, 3]
    logits = [torch.randn(length, 4, generator=generator).mul(100).round() / 100 for length in lengths]
    return {
        "logits": [table.tolist() for table in logits],
        "ids": [table.argsort(1)[:, 1].tolist() for table in logits],  # unlikely ones, so that no weight of a pair passes 1
        "reference": [(-torch.rand(length, generator=generator).mul(300).round() / 100).tolist() for length in lengths],
    }


def token_by_token(given: dict[str, Any]) -> dict[str, Any]:
    """The cases of DPOTrainer._compute_loss: {name: {losses [P], d_logits [answers][T][V]}}."""

    def case(*, ld_alpha: float | None = None, wpo: bool = False, loss_type: str = "sigmoid") -> dict[str, Any]:
        logits = [torch.tensor(table, dtype=torch.float64, requires_grad=True) for table in given["logits"]]
        losses = [_trl_loss(given, logits, pair, ld_alpha=ld_alpha, wpo=wpo, loss_type=loss_type) for pair in range(len(logits) // 2)]
        torch.stack(losses).sum().backward()
        return {"losses": torch.stack(losses).tolist(), "d_logits": [_list(table.grad) for table in logits]}

    return {
        "ld_dpo": case(ld_alpha=0.4),
        "wpo": case(wpo=True),
        "ld_wpo_ipo": case(ld_alpha=0.25, wpo=True, loss_type="ipo"),
        "sigmoid_norm": case(loss_type="sigmoid_norm"),
        "ipo": case(loss_type="ipo"),
    }


def _trl_loss(given: dict[str, Any], logits: list[torch.Tensor], pair: int, **options: Any) -> torch.Tensor:
    """What DPOTrainer makes of one pair behind a prompt of two tokens, padded on the right, and a model that has these logits."""
    both = [2 * pair, 2 * pair + 1]
    longest = max(len(logits[row]) for row in both)

    def padded(rows: list[torch.Tensor], before: int) -> torch.Tensor:
        return torch.stack([torch.nn.functional.pad(row, (before, longest - len(row))) for row in rows])

    ids = [torch.tensor(given["ids"][row]) for row in both]
    logps = [logits[row].log_softmax(-1) for row in both]
    picked = padded([table.gather(1, row[:, None])[:, 0] for table, row in zip(logps, ids, strict=True)], 1)
    squares = padded([(2 * table).logsumexp(-1) for table in logps], 1)
    known = padded([torch.tensor(given["reference"][row], dtype=torch.float64) for row in both], 1)
    zeros = torch.zeros_like(picked)

    def model(found: torch.Tensor) -> Callable[..., SimpleNamespace]:
        rest = {"entropy": zeros, "mean_logits": zeros, "is_top1": zeros.bool()}
        return lambda **_: SimpleNamespace(log_probs=found, log_sum_sq_probs=squares, **rest)

    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    stub = SimpleNamespace(
        accelerator=accelerator, model=SimpleNamespace(training=True, is_gradient_checkpointing=False), ref_model=model(known),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=0.05), aux_loss_enabled=False, precompute_ref_logps=False,
        f_divergence_type="reverse_kl", f_alpha_divergence_coef=1.0, beta=0.3, label_smoothing=0.0, loss_types=[options["loss_type"]],
        loss_weights=[1.0], ld_alpha=options["ld_alpha"], use_weighting=options["wpo"],
        _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    mask = padded([torch.ones_like(row) for row in ids], 2)
    inputs = {"input_ids": padded(ids, 2), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    found = trl.DPOTrainer._compute_loss(stub, model(picked), inputs, False)
    assert isinstance(found, torch.Tensor)
    return found


def rewards() -> dict[str, list[float]]:
    """Rewards and rating gaps of five pairs: ordinary ones, a tie, and margins far to both sides."""
    return {"chosen": [1.5, -0.25, 0.75, 12.0, -9.0], "rejected": [0.5, 0.5, 0.75, -8.0, 6.0], "gap": [1.0, 0.0, 2.5, 0.5, -1.0]}


def reward_models(given: dict[str, list[float]]) -> dict[str, Any]:
    """The cases of RewardTrainer.compute_loss: {name: {options, loss of the mean, gradients}}."""

    def case(margin: bool, centre: float | None) -> dict[str, Any]:
        chosen, rejected = (torch.tensor(given[name], dtype=torch.float64).requires_grad_() for name in ("chosen", "rejected"))
        outputs = SimpleNamespace(logits=torch.cat([chosen, rejected])[:, None])
        stub = SimpleNamespace(
            model=SimpleNamespace(training=False), args=SimpleNamespace(center_rewards_coefficient=centre), _total_train_tokens=0,
            _metrics=defaultdict(lambda: defaultdict(list)),
            accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        )  # fmt: skip
        inputs: dict[str, Any] = {"margin": torch.tensor(given["gap"], dtype=torch.float64)} if margin else {}
        loss = trl.RewardTrainer.compute_loss(stub, lambda **_: outputs, inputs)
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        options = {"margin_scale": float(margin), "centre": centre or 0.0}
        return {"options": options, "loss": loss.item(), "d_chosen": _list(chosen.grad), "d_rejected": _list(rejected.grad)}

    return {f"margin={margin} centre={centre}": case(margin, centre) for margin in (False, True) for centre in (None, 0.01)}


def main() -> None:
    given = inputs()
    written: dict[str, Any] = {
        "made_with": {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__},
        "inputs": {name: row.tolist() for name, row in given.items()},
    }
    if hasattr(trl.DPOTrainer, "dpo_loss"):
        answers = {name: row.tolist() for name, row in judged().items()}
        written |= {"cases": dpo(given), "feedback": {"inputs": answers, "cases": feedback(judged())}}
    else:
        written |= {"cases": reference_free(given), "tokens": {"inputs": tokens(), "cases": token_by_token(tokens())}}
        written |= {"rewards": {"inputs": rewards(), "cases": reward_models(rewards())}}
    path = Path(__file__).with_name(f"preference_trl_{trl.__version__}.json")
    path.write_text(json.dumps(written, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
