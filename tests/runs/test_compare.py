"""`posttrain compare` on the folders of finished runs: what it says, what it writes, what it refuses."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison_runs import METRIC, make_arm, make_run, rewrite

from posttrain.errors import ConfigError
from posttrain.evaluation.scores import Scores
from posttrain.evaluation.scores import names_of as names_of_examples
from posttrain.runs.commands.compare import run as command
from posttrain.runs.commands.table import Call
from posttrain.runs.comparison.analyse import analyse
from posttrain.runs.comparison.arms import names_of
from posttrain.runs.comparison.bounds import bounds_of
from posttrain.runs.comparison.command import compare
from posttrain.runs.comparison.costs import curve_of
from posttrain.runs.comparison.direction import lower_is_better
from posttrain.runs.comparison.ink import labels
from posttrain.runs.comparison.metric import Measured
from posttrain.runs.comparison.pictures import files_of
from posttrain.runs.comparison.read import read_run
from posttrain.runs.comparison.report import as_json
from posttrain.runs.comparison.verdict import between, verdicts
from posttrain.runs.kept_scores import keep_scores


def compared(home: Path, *groups: list[Path], **options: Any) -> dict[str, Any]:
    """What compare.json holds."""
    folders = [str(folder) for group in groups for folder in group]
    made = compare(runs=folders, to=str(home / "report"), **options)
    found = json.loads((home / "report" / "compare.json").read_text())
    assert found == json.loads(json.dumps(as_json(made), default=str))
    return found


def test_a_better_arm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compared(tmp_path, make_arm(tmp_path, "sft", gain=0.0), make_arm(tmp_path, "grpo", gain=0.1))
    (pair,) = found["pairs"]
    assert re.match(r"method=grpo is better than method=sft by 0\.0958 \(95 % interval .*, p 0\.00\d+\)\.$", found["verdict"][0])
    assert (found["reference"], found["examples"], found["metric"]) == ("method=grpo", 200, METRIC)
    assert -0.14 < pair["low"] < pair["difference"] < pair["high"] < -0.06
    assert pair["holm"] < 0.01
    assert set(pair["tests"]) >= {"sign flip of examples", "exchange of seeds", "paired t over seeds", "hierarchical bootstrap"}
    assert found["arms"][0]["cost"] == {"flops": 4e12, "tokens": 400.0, "generated": 0.0}
    assert found["arms"][0]["runs"][0]["folder"] == "sft-1"
    times = {"name": "method=sft", "hours": 0.01, "device_hours": 0.02, "peak_bytes": 2.0**30}
    assert (found["measured"]["folder"], found["measured"]["arms"][0]) == (str(tmp_path), times)
    shown = capsys.readouterr().out
    for words in ("method=sft", "different", "1.00 GiB", found["verdict"][0], "compare.html"):
        assert words in shown


def test_equal_arms_are_equivalent_where_that_can_be_seen(tmp_path: Path) -> None:
    arms = make_arm(tmp_path, "sft", gain=0.0), make_arm(tmp_path, "dpo", gain=0.0)
    found = compared(tmp_path, *arms, smallest=0.1)
    assert found["verdict"][0].startswith(("method=sft and method=dpo are equivalent within 0.1", "method=dpo and method=sft are equi"))
    assert found["pairs"][0]["power"] > 0.9
    close = compared(tmp_path, *arms, smallest=0.01)
    assert re.search(r"^Inconclusive: .*; about \d+ seeds an arm would have shown a difference of 0.01 ", close["verdict"][0])


def test_seeds_cannot_make_up_for_examples(tmp_path: Path) -> None:
    draws = np.random.default_rng(1)
    arms = [
        [make_run(tmp_path / f"{name}{seed}", seed=seed, scores=score, config={"method": {"name": name}}) for seed in (1, 2, 3)]
        for name, score in (("sft", draws.normal(size=40)), ("dpo", draws.normal(size=40)))
    ]
    found = compared(tmp_path, *arms)
    assert "not even 200 seeds an arm on 40 examples" in found["verdict"][0]


def test_arms_without_any_spread_are_not_certain(tmp_path: Path) -> None:
    for count, verdict in ((12, "inconclusive"), (400, "equivalent")):
        home = tmp_path / str(count)
        wrong = [
            [make_run(home / f"{name}{seed}", seed=seed, scores=np.zeros(count), config={"method": {"name": name}}) for seed in (1, 2)]
            for name in ("sft", "dpo")
        ]
        found = compared(home, *wrong)
        assert found["pairs"][0]["verdict"] == verdict, "twelve wrong answers could hide a difference of 0.01, four hundred could not"
        assert found["pairs"][0]["equivalence_p"] == pytest.approx(0.99**count)
        assert (found["arms"][0]["low"], found["arms"][0]["high"]) == (0.0, pytest.approx(1 - 0.025 ** (1 / count)))
        for group in wrong:
            for folder in group:
                shutil.rmtree(folder / "eval")
        assert compared(home, *wrong)["verdict"][0].startswith("No verdict:")


@pytest.mark.parametrize("kept", [False, True])
def test_values_that_are_equal_but_for_rounding_have_no_spread(kept: bool) -> None:
    arms = tuple(np.full((3, 40), value) for value in (0.1, 0.3))
    scores = {"scores": arms, "examples": tuple(map(str, range(40)))} if kept else {}
    data = Measured("val/reward", tuple(arm.mean(-1) for arm in arms), **scores)
    found = analyse(["one", "other"], [(1, 2, 3)] * 2, data, lower=False, smallest=0.01, baseline=None)
    assert verdicts(found)[0].startswith("No verdict: other and one differ by 0.2")
    (pair,) = found.pairs
    assert math.isinf(pair.effect)
    assert all(map(math.isnan, (pair.low, pair.high, pair.p, pair.holm, *(end for arm in found.arms for end in (arm.low, arm.high)))))
    assert set(pair.tests) <= {"sign flip of examples", "exchange of seeds"}


def test_one_seed_speaks_of_these_models_only(tmp_path: Path) -> None:
    arms = make_arm(tmp_path, "sft", gain=0.0, seeds=1), make_arm(tmp_path, "grpo", gain=0.2, seeds=2)
    found = compared(tmp_path, *arms)
    assert found["pairs"][0]["scope"] == "models"
    assert "is better than method=sft" in found["verdict"][0]
    assert "nothing is known about another training run" in found["verdict"][0]


def test_older_runs_are_compared_by_their_seeds(tmp_path: Path) -> None:
    arms = make_arm(tmp_path, "sft", gain=0.0), make_arm(tmp_path, "grpo", gain=0.2)
    shutil.rmtree(arms[0][0] / "eval")
    found = compared(tmp_path, *arms)
    assert found["examples"] is None
    assert any("not all of them kept the scores of single examples" in note for note in found["notes"])
    assert found["pairs"][0]["p"] == pytest.approx(found["pairs"][0]["tests"]["Welch's t over seeds"])
    single = compared(tmp_path, arms[0][:1], arms[1][:1])
    assert single["verdict"][0].startswith("No verdict:")
    assert single["arms"][0]["low"] is None


def test_three_arms_and_a_baseline(tmp_path: Path) -> None:
    arms = [make_arm(tmp_path, name, gain=gain) for name, gain in (("sft", 0.0), ("dpo", 0.002), ("grpo", 0.2))]
    free = compared(tmp_path, *arms)
    assert len(free["pairs"]) == 3, "the best is known from the same numbers, so that every pair counts"
    assert free["verdict"][0] == "method=grpo is better than every other arm."
    for pair in free["pairs"]:
        assert pair["holm"] >= pair["p"]
    for baseline in ("method=sft", str(arms[0][1])):
        found = compared(tmp_path, *arms, baseline=baseline)
        assert (found["reference"], found["is_baseline"], len(found["pairs"])) == ("method=sft", True, 2)
    lower = compared(tmp_path, *arms, better="lower")
    assert lower["reference"] in ("method=sft", "method=dpo")


def test_names_with_brackets_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = [make_arm(tmp_path, name, gain=0.0, seeds=1, config={"betas": [0.9, beta]}) for name, beta in (("a", 0.9), ("b", 0.99))]
    for folder in (group[0] for group in groups):
        rewritten = (folder / "config.yaml").read_text().replace("name: a\n", "name: sft\n").replace("name: b\n", "name: sft\n")
        (folder / "config.yaml").write_text(rewritten)
    compared(tmp_path, *groups)
    assert "betas=[0.9, 0.99]  1" in capsys.readouterr().out


def test_losses_are_weighted_by_their_tokens(tmp_path: Path) -> None:
    tokens, draws, arms = np.array([1.0, 5.0, 2.0, 8.0]), np.random.default_rng(2), []
    for name in ("sft", "dpo"):
        for seed in (1, 2):
            losses = draws.random(4)
            metrics = {"val/loss": float(np.average(losses, weights=tokens))}
            folder = make_run(tmp_path / f"{name}{seed}", seed=seed, metrics=metrics, config={"method": {"name": name}})
            keep_scores(folder, {"val/loss": Scores(["a", "b", "c", "d"], losses, tokens)})
            arms.append(folder)
    found = compared(tmp_path, arms, metric="val/loss")
    assert (found["metric"], found["better"], found["examples"]) == ("val/loss", "lower", 4)
    for arm in found["arms"]:
        assert arm["mean"] == pytest.approx(np.mean(arm["values"]))
    (caution,) = found["cautions"]
    assert caution.startswith("val/loss is not the same quantity in all arms (method.name is sft or dpo), so the verdict compares")
    assert caution in (tmp_path / "report" / "compare.html").read_text()


def test_a_sweeps_folder_and_a_later_evaluation(tmp_path: Path) -> None:
    for place, folder in enumerate([*make_arm(tmp_path / "sweep", "sft", gain=0.0), *make_arm(tmp_path / "sweep", "dpo", gain=0.3)]):
        scores = Scores([f"{number}-0" for number in range(30)], np.full(30, 0.1 * place))
        path = keep_scores(folder, {"accuracy": scores}, "choice")
        assert path.name == "choice.examples.parquet"
        (folder / "eval" / "choice.json").write_text(json.dumps({"metrics": {"accuracy": 0.1 * place}, "settings": {}, "details": {}}))
    found = compared(tmp_path, [tmp_path / "sweep"], metric="eval/choice/accuracy")
    assert [arm["seeds"] for arm in found["arms"]] == [[1, 2, 3]] * 2
    assert found["examples"] == 30


class Page(HTMLParser):
    """Tags that are open, and what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value and not value.startswith("#")]
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    compared(tmp_path, make_arm(tmp_path, "sft<1>", gain=0.0), make_arm(tmp_path, "grpo", gain=0.1))
    text = (tmp_path / "report" / "compare.html").read_text()
    page = Page()
    page.feed(text)
    assert (page.open, page.fetched) == ([], [])
    assert text.count("<svg") > 5
    assert "<script" not in text
    assert "sft&lt;1&gt;" in text
    for words in ("FLOPs", "peak memory", "sign flip of examples", "method.name", "Smallest difference that matters"):
        assert words in text


def test_quality_over_cost(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", seed=1, scores=np.array([1.0, 0.0]))
    curve = curve_of(read_run(folder), METRIC)
    assert curve.values == (0.1, 0.2, 0.5)
    assert curve.flops == (0.0, 2e12, 4e12)
    assert curve.hours == pytest.approx((0.0, 0.005, 0.01))


def test_names_are_short_and_tell_arms_apart() -> None:
    sft, dpo = (
        {"method.name": "sft", "optimizer.lr": 1, "method.loss": "nll"},
        {"method.name": "dpo", "optimizer.lr": 2, "method.loss": "x"},
    )
    assert names_of([sft, dpo]) == ["method=sft", "method=dpo"]
    assert names_of([sft, {**sft, "optimizer.lr": 3}, dpo]) == [
        "method=sft, optimizer.lr=1",
        "method=sft, optimizer.lr=3",
        "method=dpo, optimizer.lr=2",
    ]
    assert names_of([{"model.peft": None}, {"model.peft": {"r": 8}}]) == ["model.peft=null", 'model.peft={"r": 8}']


@pytest.mark.parametrize(
    ("metric", "lower"), [("val/loss", True), ("eval/exact_match", False), ("eval/quick/t/word_perplexity", True), ("val/reward", False)]
)
def test_the_direction_of_a_metric(metric: str, lower: bool) -> None:
    assert lower_is_better(metric) is lower


@pytest.mark.parametrize(
    ("metric", "values", "bounds"),
    [
        ("eval/exact_match", [0.5, 1.0], (0, 1)),
        ("eval/harness/gsm8k/exact_match/strict-match", [0.25], (0, 1)),
        ("eval/harness/squad/exact_match", [55.0], (-math.inf, math.inf)),
        ("eval/sampled/pass_at_8", [0.125], (0, 1)),
        ("val/win_rate/judge", [0.4], (0, 1)),
        ("val/perplexity", [3.5], (1, math.inf)),
        ("val/loss", [0.5], (-math.inf, math.inf)),
        ("eval/own/solved", [0.0, 1.0, 1.0], (0, 1)),
    ],
)
def test_between_what_a_metric_lies(metric: str, values: list[float], bounds: tuple[float, float]) -> None:
    assert bounds_of(metric, [np.array([values])]) == bounds


def test_no_interval_says_what_cannot_be() -> None:
    right = np.ones((2, 2, 60))
    right[0, :, :3] = right[1, 1, :50] = 0
    scores = (right[0], right[1])
    data = Measured(METRIC, tuple(arm.mean(-1) for arm in scores), scores, None, tuple(map(str, range(60))))
    found = analyse(["one", "other"], [(1, 2)] * 2, data, lower=False, smallest=0.1, baseline=None)
    calm, wild = found.arms
    assert 0.7 < calm.low < 0.88, "it reaches farther towards 1/2"
    assert 0.95 < calm.high < 1
    assert (wild.low, wild.high) == (0, 1), "the seeds disagree in nearly everything"
    assert (found.pairs[0].low, found.pairs[0].high) == (-1, 1)


def test_among_several_arms_more_seeds_are_asked_for() -> None:
    """Power at the level that Holm may ask of a pair, not at 5 %."""
    draws = np.random.default_rng(0)
    values = tuple(0.5 + 0.02 * draws.standard_normal(4) for _ in range(3))
    of_two, of_three = (
        analyse(
            list("abc")[:count], [(1, 2, 3, 4)] * count, Measured("val/reward", values[:count]), lower=False, smallest=0.02, baseline=None
        )
        for count in (2, 3)
    )
    two, three = of_two.pairs[0], of_three.between(0, 1)
    assert three is not None
    assert three.power < two.power - 0.1
    assert two.seeds_needed is not None
    assert three.seeds_needed is not None
    assert three.seeds_needed > two.seeds_needed
    assert "with 80% probability (" in verdicts(of_two)[0]
    assert "with 80% probability, as one of 3 pairs (" in "".join(verdicts(of_three)[1:])


def test_names_that_cannot_be_drawn_are_letters_beside_an_axis() -> None:
    assert labels(["baseline", "\u03b2=0.1, \u00f1"]) == ["baseline", "\u03b2=0.1, \u00f1"]
    for name in ("\u57fa\u7ebf", "\u0639\u0631\u0628", "a$b$"):
        assert labels(["sft", name]) == ["A", "B"]


def test_each_metric_has_a_picture_of_its_own() -> None:
    metrics = ["eval/MMLU/acc", "eval/ARC/acc", "eval/arc/acc", "a/b", "a_b", "a/b_2", "eval/MMLU/acc"]
    assert list(files_of(metrics).values()) == ["eval_mmlu_acc", "eval_arc_acc", "eval_arc_acc_2", "a_b", "a_b_2", "a_b_2_2"]


def refused(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        command(Call(arguments=arguments))
    return "\n".join(map(str, caught.value.problems))


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    stopped = make_run(tmp_path / "stopped", seed=1, status="stopped")
    broken = make_run(tmp_path / "broken", seed=1)
    (broken / "result.json").write_text("{")
    replaced = make_run(tmp_path / "replaced", seed=1, scores=np.array([0.0, 1.0]))
    rewrite(replaced, "result.json", metrics={METRIC: 0.75})
    open_one = make_run(tmp_path / "open", seed=1)
    (open_one / "result.json").unlink()
    folders = [tmp_path / "empty", tmp_path / "none", stopped, broken, replaced, open_one, stopped]
    told = refused(f"runs=[{','.join(map(str, folders))}]")
    for words in (
        "empty: is no run's folder", "none: no such folder", "stopped: the run is stopped (run the same command again", "named twice",
        "broken: its files are broken", "eval/exact_match is 0.75, but the examples kept in eval/ make 0.5", "open: the run is not finished",
    ):  # fmt: skip
        assert words in told


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    sft, dpo = make_arm(tmp_path, "sft", gain=0.0, seeds=2), make_arm(tmp_path, "dpo", gain=0.0, seeds=2)
    both = f"runs=[{','.join(map(str, [*sft, *dpo]))}]"
    assert "one arm; a comparison needs two" in refused(f"runs=[{','.join(map(str, sft))}]")
    again = make_run(tmp_path / "again", seed=1, scores=np.zeros(3), config={"method": {"name": "sft"}})
    assert "seed 1 of method=sft is there more than once" in refused(f"runs=[{','.join(map(str, [*sft, *dpo, again]))}]")
    assert "did you mean eval/exact_match" in refused(both, "metric=eval/exact_macth")
    assert "is neither an arm nor one of the runs" in refused(both, "baseline=kto")
    assert "expected a number above 0" in refused(both, "smallest=0")
    assert "did you mean smallest" in refused(both, "smalest=1")
    assert "runs: is needed, or study" in refused()
    lacking = make_run(tmp_path / "lacking", seed=1, config={"method": {"name": "ppo"}})
    assert "no metric in common" in refused(f"runs=[{sft[0]},{lacking}]")


def test_other_evaluation_data(tmp_path: Path) -> None:
    sft = make_arm(tmp_path, "sft", gain=0.0, seeds=1)
    dpo = make_arm(tmp_path, "dpo", gain=0.0, seeds=1, prompts="another")
    assert "200 examples, of which 0 are among the 200 of" in refused(f"runs=[{sft[0]},{dpo[0]}]")
    for folder, digest in ((sft[0], "aa"), (dpo[0], "bb")):
        shutil.rmtree(folder / "eval")
        (folder / "artifact").mkdir()
        (folder / "artifact" / "artifact.json").write_text(json.dumps({"data": {"gsm8k": digest, f"own-{digest}": digest}}))
    assert "other data than in" in refused(f"runs=[{sft[0]},{dpo[0]}]")


def test_runs_that_answered_fewer_are_compared_on_what_all_answered(tmp_path: Path) -> None:
    """As where a short training may answer only some prompts; the first 150 here are those with the good scores."""
    few, all_right = np.r_[np.ones(75), np.zeros(75)], np.r_[np.ones(150), np.zeros(50)]
    made = [
        [make_run(tmp_path / f"{name}{seed}", seed=seed, scores=scores, config={"method": {"name": name}}) for seed in (1, 2)]
        for name, scores in (("sft", few), ("grpo", all_right))
    ]
    found = compared(tmp_path, *made)
    assert (found["examples"], found["examples_at_most"]) == (150, 200)
    assert [arm["mean"] for arm in found["arms"]] == [0.5, 1.0]
    assert "150 examples, the same for all runs, of up to 200 that some were measured on; means are of these alone" in found["notes"][0]


def test_a_few_examples_may_be_missing_anywhere(tmp_path: Path) -> None:
    """As where a judge's words could not be read."""
    scores = np.linspace(0.0, 1.0, 200)
    sft, dpo = (make_run(tmp_path / name, seed=1, scores=scores, config={"method": {"name": name}}) for name in ("sft", "dpo"))
    names = names_of_examples(f"question {number}" for number in range(200))

    def without(folder: Path, missing: slice) -> None:
        kept = np.delete(np.arange(200), missing)
        keep_scores(folder, {METRIC: Scores([names[place] for place in kept], scores[kept])})
        result = json.loads((folder / "result.json").read_text())
        rewrite(folder, "result.json", metrics={**result["metrics"], METRIC: float(scores[kept].mean())})

    without(sft, slice(0, 3)), without(dpo, slice(100, 105))
    found = compared(tmp_path, [sft], [dpo])
    assert (found["examples"], found["examples_at_most"]) == (192, 197)
    assert found["pairs"][0]["difference"] == 0
    without(dpo, slice(100, 130))
    assert "170 examples, of which 167 are among the 197 of" in refused(f"runs=[{sft},{dpo}]")


def test_a_metric_that_is_no_number_is_told(tmp_path: Path) -> None:
    runs = [*make_arm(tmp_path, "sft", gain=0.0, seeds=1), *make_arm(tmp_path, "dpo", gain=0.0, seeds=1)]
    rewrite(runs[1], "result.json", metrics={"eval/own/score": "NaN"})
    told = refused(f"runs=[{','.join(map(str, runs))}]", "metric=eval/own/score")
    assert f"it is NaN in {runs[1]}" in told
    assert f"{runs[0]} has no such metric" in told
    for folder, value in zip(runs, (0.5, "NaN"), strict=True):
        rewrite(folder, "result.json", metrics={"eval/late/score": 0.5})
        (folder / "eval" / "late.json").write_text(json.dumps({"metrics": {"score": value}}))
    told = refused(f"runs=[{','.join(map(str, runs))}]", "metric=eval/late/score")
    assert told.startswith(f"metric=eval/late/score: it is NaN in {runs[1]}"), "what was measured last counts"


def test_a_mistake_costs_no_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from posttrain.__main__ import main
code = main(["compare", "runs=[{tmp_path}/a,{tmp_path}/b]"])
sys.exit(f"{{code}} {{'torch' in sys.modules}}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip().endswith("2 False"), done.stderr
    assert "2 problems" in done.stderr


def test_intervals_are_told_to_three_digits_of_their_width() -> None:
    assert between(-0.15512, 7.9e-05) == "-0.155 to 0.000"
    assert between(-3.0, 297.2) == "-3 to 297"
    assert between(0.98512, 0.98534) == "0.985120 to 0.985340"
    assert between(0.5, 0.5) == "0.5 to 0.5"
