"""Preference methods: they start where policy and reference agree, and their curves do not depend on how a step is computed."""

import json
import math
from itertools import product

import numpy as np
import pytest
import torch

from posttrain.models.build import build_policy
from posttrain.models.flops import flop_model
from posttrain.runs.compose import compose
from posttrain.runs.inputs import load_inputs
from posttrain.runs.job import run_job
from tests.tiers import mostly_slow

DPO = ("method=dpo", "data=arithmetic_pairs", "optimizer.lr=1e-3")
ADAPTED = (*DPO, "model/peft=lora", "model.peft.dropout=0.0")
KTO = ("method=kto", "data=arithmetic_pairs", "optimizer.lr=1e-3")
WHOLE = {
    "aot": (*DPO, "method.loss=aot"),
    "aot_unpaired": (*DPO, "method.loss=aot_unpaired"),
    "bco": (*DPO, "method.loss=bco"),
    "kto": KTO,
    "bco_unpaired": (*KTO, "method.loss=bco_unpaired"),
    "wpo": (*DPO, "method.wpo=true", "method.tail_weight=0.5", "method.sft_weight=0.1"),
}
LIGHT = ("limit=100", "max_steps=4", "validate.every_steps=null", "validate.at_start=false", "validate.at_end=false")
LN2 = math.log(2)
START = {
    "sigmoid": LN2,
    "sigmoid_norm": LN2,
    "hinge": 1.0,
    "ipo": 25.0,
    "nca": 2 * LN2,
    "robust": LN2,
    "sppo": 50.0,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": (LN2 + 1) / 2,
    "exo": (math.log(0.5 / 0.999) + math.log(0.5 / 0.001)) / 2,
    "aot": LN2,
    "aot_unpaired": LN2,
    "bco": 2 * LN2,
    "weighted": 0.8 * LN2 + 0.2 * 2 * LN2,
}
OPTIONS = {"weighted": ("method.loss.terms={sigmoid:0.8,bco:0.2}",)}  # fmt: skip
SPLIT = [("many micro-batches", "aot"), ("many micro-batches", "kto"), ("two ranks", "kto"), ("two ranks", "bco")]
SAME = {
    "many micro-batches": ("max_tokens=128", "max_length=128"),
    "two ranks": ("hardware=2xcpu",),
    "prompts repeated": ("model.layout=packed",),
    "padded": ("model.layout=padded",),
}


def assert_same(ours, theirs):
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            # rewards are beta = 0.1 times differences of sums over an answer: their rounding is that of the sums
            slack = 2e-6 if "rewards" in name else 2e-5 if name in ("ratio", "baseline") else 1e-9
            assert math.isclose(a[name], b[name], rel_tol=1e-5, abs_tol=slack), (a["step"], name, a[name], b[name])


@pytest.mark.parametrize("loss", START)
def test_training_starts_where_policy_and_reference_agree(curve, loss):
    first, *_, last = [row for row in curve(*DPO, f"method.loss={loss}", *LIGHT, *OPTIONS.get(loss, ())) if "loss" in row]
    assert first["loss"] == pytest.approx(START[loss], rel=1e-6)
    assert first["rewards/accuracy"] == 0.5
    assert last["rewards/margin"] > 0
    assert last["rewards/accuracy"] > 0.9


@pytest.mark.parametrize("method", ["simpo", "cpo", "orpo"])
def test_methods_without_a_reference_learn_to_prefer(curve, method):
    rows = [row for row in curve(f"method={method}", "data=arithmetic_pairs", "optimizer.lr=3e-3", "max_steps=12") if "val/loss" in row]
    assert rows[-1]["val/loss"] < rows[0]["val/loss"]
    assert rows[-1]["val/rewards/margin"] > rows[0]["val/rewards/margin"]


@pytest.mark.parametrize("loss", ["kto", "bco_unpaired", "apo_zero_unpaired"])
def test_judged_answers_start_at_the_reference_and_part(curve, loss):
    first, *_, last = [row for row in curve(*KTO, f"method.loss={loss}", *LIGHT) if "loss" in row]
    assert first["loss"] == pytest.approx(LN2 if loss == "bco_unpaired" else 0.5, rel=1e-6)
    assert first["baseline"] == 0.0
    assert last["rewards/margin"] > 0.1
    assert last["loss"] < first["loss"]


@pytest.mark.parametrize("divergence", ["forward_kl", "jensen_shannon", "alpha"])
def test_other_divergences_start_and_learn_alike(curve, divergence):
    first, *_, last = [row for row in curve(*DPO, f"method.divergence={divergence}", *LIGHT) if "loss" in row]
    assert first["loss"] == pytest.approx(LN2, rel=1e-6)
    assert last["rewards/accuracy"] > 0.9


@pytest.mark.parametrize("name", SAME)
def test_the_curve_does_not_depend_on_the_split_or_the_layout(curve, name):
    assert_same(curve(*DPO, *SAME[name]), curve(*DPO))


@pytest.mark.parametrize(("name", "method"), mostly_slow(product(("many micro-batches", "two ranks"), WHOLE), but=SPLIT))
def test_what_a_loss_knows_of_its_step_does_not_depend_on_the_split(curve, name, method):
    assert_same(curve(*WHOLE[method], *LIGHT, *SAME[name]), curve(*WHOLE[method], *LIGHT))


def test_sorted_losses_sort_the_whole_step(curve):
    """Pair by pair, sorting does nothing: the curve would be that of the sigmoid loss."""
    split = SAME["many micro-batches"]
    ours, theirs = (
        [row["loss"] for row in rows if "loss" in row]
        for rows in (curve(*WHOLE["aot_unpaired"], *LIGHT, *split), curve(*DPO, *LIGHT, *split))
    )
    assert abs(ours[1] - theirs[1]) > 1e-4


def test_a_reference_that_follows_comes_to_the_policy(curve):
    rows = curve(*DPO, *LIGHT, "method.reference_update_every=1", "method.reference_update_mix=1.0")
    steps = [row for row in rows if "loss" in row]
    # every step begins with a reference that is the policy
    assert all(row["loss"] == pytest.approx(LN2, rel=1e-6) and row["drift/kl"] == 0.0 for row in steps)
    assert steps[0]["logps/chosen"] != steps[-1]["logps/chosen"]


def test_beta_follows_its_schedule(curve):
    """With a learning rate of 0 the policy stays the reference, and SPPO's loss is 1 / (2 beta^2)."""
    still = (*DPO[:-1], "optimizer.lr=0", "method.loss=sppo", "method.loss.beta=0.5", "method.beta_schedule=linear")
    steps = [row["loss"] for row in curve(*still, *LIGHT, "method.beta_schedule.end=0.2") if "loss" in row]
    assert steps == pytest.approx([0.5 / (0.5 * factor) ** 2 for factor in (1.0, 0.8, 0.6, 0.4)], rel=1e-6)


def test_tokens_beyond_the_shorter_answer_count_as_told(curve):
    """With a tail weight of 0 both answers count as many tokens, so the longer one is no less likely for its length."""
    whole, cut = (curve(*DPO, f"method.tail_weight={weight}")[0] for weight in (1.0, 0.0))
    assert cut["val/logps/chosen"] > whole["val/logps/chosen"]
    assert cut["val/logps/rejected"] == pytest.approx(whole["val/logps/rejected"])  # the shorter ones


def test_adapters_switched_off_are_the_frozen_copy(curve):
    assert_same(curve(*ADAPTED, "method.reference=copy"), curve(*ADAPTED, "method.reference=adapters"))


@pytest.mark.parametrize("options", [DPO, ADAPTED, (*DPO, "hardware=2xcpu")], ids=["copy", "adapters", "two ranks"])
def test_a_reference_computed_before_training_is_the_live_one(curve, options):
    assert_same(curve(*options, "method.reference=cached"), curve(*options))


def test_a_cached_reference_of_another_model_is_refused(tmp_path, monkeypatch):
    cached = [
        *DPO,
        *LIGHT,
        "model=nano",
        "tracking=none",
        "evaluation=none",
        "method.reference=cached",
        f"method.reference_cache={tmp_path}/r",
    ]
    assert run_job(compose([*cached, "max_steps=1", f"output_dir={tmp_path}/one"])) == 0
    told = []
    monkeypatch.setattr("posttrain.runs.job.report.show", lambda problems, **_: told.extend(problems))
    assert run_job(compose([*cached, "max_steps=1", "seed=1", f"output_dir={tmp_path}/two"])) == 2
    assert [problem.where for problem in told] == ["method.reference_cache"]
    assert "stale" in told[0].message
    assert "another model" in told[0].message


def test_the_likelihood_term_raises_the_chosen_answers(curve):
    with_term, without = (curve(*DPO, f"method.sft_weight={weight}")[-1] for weight in (5.0, 0.0))
    assert with_term["val/logps/chosen"] > without["val/logps/chosen"]


@pytest.mark.parametrize("hardware", ["cpu", "2xcpu"])
def test_the_operations_of_a_cached_reference_are_charged_to_every_run_that_uses_it(tmp_path, hardware):
    line = [*DPO, *LIGHT[1:], "model=nano", "tracking=none", "evaluation=none", "method.reference=cached", "max_steps=1", "limit=40"]
    config = compose([*line, f"hardware={hardware}", f"method.reference_cache={tmp_path}/r", f"output_dir={tmp_path}/one"])
    flops = []
    for name in ("one", "two"):
        assert run_job({**config, "output_dir": str(tmp_path / name)}) == 0
        flops.append(json.loads((tmp_path / name / "result.json").read_text())["flops"])
    tokenizer, prepared = load_inputs(config)
    policy = build_policy(config["model"], tokenizer, precision="float32", seed=0, device=torch.device("cpu"))
    parts = [examples for examples in (prepared.train, prepared.val) if examples is not None]
    lengths, targets = (np.concatenate([getattr(part, name) for part in parts]) for name in ("lengths", "targets"))
    pairs = sum(part.attended.sum() for part in parts)
    once = flop_model(policy).forward(tokens=float(lengths.sum()), targets=float(targets.sum()), pairs=float(pairs))
    assert flops[0] == flops[1]
    assert flops[0] > once
