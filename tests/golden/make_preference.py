"""Values and gradients of pair losses as TRL computes them, written to a JSON file beside this one.

Each version runs in a throw-away environment, from the root of the repository:

    python -m venv /tmp/golden && /tmp/golden/bin/pip install trl==0.28.0 "transformers==4.57.*" torch
    /tmp/golden/bin/python tests/golden/make_preference.py

trl 0.28.0 is the last version whose DPO losses can be called alone; CPO, SimPO and ORPO come from trl 1.16.0 (with transformers 5).
"""

from __future__ import annotations

import json
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


def main() -> None:
    given = inputs()
    cases = dpo(given) if hasattr(trl.DPOTrainer, "dpo_loss") else reference_free(given)
    made_with = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    written = {"made_with": made_with, "inputs": {name: row.tolist() for name, row in given.items()}, "cases": cases}
    path = Path(__file__).with_name(f"preference_trl_{trl.__version__}.json")
    path.write_text(json.dumps(written, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
