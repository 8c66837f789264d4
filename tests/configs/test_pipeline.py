"""Pipelines from a recipe and a command line to one checked configuration, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.errors import ConfigError
from posttrain.runs import rules
from posttrain.runs.check import check, compose_and_check
from posttrain.runs.options import config_dir, options
from posttrain.runs.pipeline.identity import stage_hash
from posttrain.runs.pipeline.shares import bounds_told, part_of

ROOT = Path(__file__).resolve().parents[2]
RECIPES = [found.name for found in options((config_dir(),), "method") if found.name.startswith("staged")]


def composed(*overrides: str, **more: Any) -> dict[str, Any]:
    return compose_and_check(["model=nano", *overrides], rules=rules.PLAN, **more)


def configs(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {node["name"]: node["config"] for node in config["stages"]}


def problems(*overrides: str, **more: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as raised:
        composed(*overrides, **more)
    return {problem.where: problem.message for problem in raised.value.problems}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes_and_checks(recipe: str) -> None:
    config = composed(f"method={recipe}", "debug=true")
    assert config["method"] == {"name": recipe}
    assert len(config["stages"]) >= 2
    assert check(yaml.safe_load(yaml.safe_dump(config)), rules=rules.PLAN) == []  # as a sweep's job reads it


def test_overrides_reach_the_stages_that_they_suit() -> None:
    config = composed("method=staged_rlhf", "seed=3", "max_steps=9", "stages.rm.max_steps=5", "rollout=native", "rollout.group_size=2")
    stages = configs(config)
    assert {name: stage["max_steps"] for name, stage in stages.items()} == {"sft": 9, "rm": 5, "ppo": 9}
    assert {stage["seed"] for stage in stages.values()} == {3}
    assert [stage["rollout"] and stage["rollout"]["group_size"] for stage in stages.values()] == [None, None, 2]
    assert stages["ppo"]["reward"]["reward_model"]["path"] == "stage:rm"


def test_a_run_that_is_made_first_is_for_the_first_stage() -> None:
    stages = configs(composed("method=staged", "entering=['experiment=quickstart']"))
    assert [bool(stage["entering"]) for stage in stages.values()] == [True, False]


def test_rounds_start_from_the_one_before() -> None:
    config = composed("method=staged_iterated", "stages.dpo.repeat=2", "stages.dpo.max_steps=3", "stages.dpo_2.max_steps=4")
    assert [(node["name"], node["inputs"]) for node in config["stages"]] == [
        ("sft", {}), ("dpo_1", {"policy": "sft"}), ("dpo_2", {"policy": "dpo_1"}),
    ]  # fmt: skip
    assert [(stage["max_steps"], stage["seed"]) for stage in configs(config).values()][1:] == [(3, 0), (4, 1)]


def test_a_seed_that_is_read_from_elsewhere_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASK", "6")
    config = composed("method=staged", "seed='${oc.decode:${oc.env:TASK}}'", "stages.sft.seed=1")
    assert (config["seed"], [stage["seed"] for stage in configs(config).values()]) == (6, [1, 6])


@pytest.mark.parametrize(
    ("lines", "seed", "of_stages", "told"),
    [
        (["seed=5"], 5, [5, 5, 6, 7], ["+0", "+0", "+1", "+2"]),
        (["seed=5", "stages.dpo_3.seed=0"], 5, [5, 5, 6, 0], ["+0", "+0", "+1", 0]),
        (["stages.sft.seed=7"], 0, [7, 0, 1, 2], [7, "+0", "+1", "+2"]),
    ],
)
def test_a_pipelines_seed_is_the_one_it_was_given(
    tmp_path: Path, lines: list[str], seed: int, of_stages: list[int], told: list[Any]
) -> None:
    def seeds(config: dict[str, Any]) -> tuple[int, list[int], list[Any]]:
        return config["seed"], [stage["seed"] for stage in configs(config).values()], [node["seed"] for node in config["stages"]]

    config = composed("method=staged_iterated", *lines)
    assert seeds(config) == (seed, of_stages, told)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert seeds(compose_and_check([], rules=rules.PLAN, base=tmp_path)) == (seed, of_stages, told)
    later = [stage if isinstance(stage, int) else 20 + int(stage) for stage in told]
    assert seeds(compose_and_check(["seed=20"], rules=rules.PLAN, base=tmp_path)) == (20, later, told), "as if it had been given at first"


def test_a_list_of_methods_is_a_pipeline_for_short() -> None:
    config = composed("method=staged", "stages=[sft,dpo,grpo]")
    assert [(node["name"], node["inputs"]) for node in config["stages"]] == [
        ("sft", {}), ("dpo", {"policy": "sft"}), ("grpo", {"policy": "dpo"}),
    ]  # fmt: skip


def test_its_config_file_alone_makes_it_again(tmp_path: Path) -> None:
    config = composed("method=staged", "stages.sft.max_steps=5", f"output_dir={tmp_path}")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    again = compose_and_check(["seed=4", "stages.grpo.max_steps=6"], base=tmp_path / "config.yaml", rules=rules.PLAN)
    assert [(stage["max_steps"], stage["seed"]) for stage in configs(again).values()] == [(5, 4), (6, 4)]
    assert again["output_dir"] is None


def test_all_mistakes_of_all_stages_at_once() -> None:
    found = problems(
        "method=staged_rlhf", "optimizer.lr=fast", "foo=3", "stages.gpro.max_steps=3", "stages.sft.max_step=3", "stages.ppo.inputs.policy=rm",
        "stages.rm.inputs.data=sft", "budget.flop=3", "resume=there", "stages.sft.share=2",
    )  # fmt: skip
    assert {
        "stage sft: optimizer.lr", "stage rm: optimizer.lr", "stage ppo: optimizer.lr", "foo=3", "stages.gpro.max_steps=3",
        "stage sft: max_step=3", "stage ppo: inputs.policy", "stage rm: inputs.data", "budget.flop=3", "resume", "stage sft: share",
    } <= set(found)  # fmt: skip
    assert "hands on a reward model" in found["stage ppo: inputs.policy"]


@pytest.mark.parametrize(
    ("override", "where", "word"),
    [
        ("stages.sft.inputs.policy=grpo", "stage sft: inputs.policy", "cycle"),
        ("stages.grpo.inputs.policy=grpo", "stage grpo: inputs.policy", "itself"),
        ("stages.grpo.inputs.policy=base", "stage grpo: inputs.policy", "no stage is called base"),
        ("stages=[sft,sft]", "stages", "two stages are called sft"),
        ("stages.grpo.inputs.reward_model=sft", "stage grpo: inputs.reward_model", "asks no reward model"),
        ("stages.grpo.inputs.reference=sft", "stage grpo: inputs.reference", "the model that enters the stage"),
        ("stages.sft.inputs.reference=sft", "stage sft: inputs.reference", "has no reference"),
        ("stages.grpo.inputs.teacher=sft", "stage grpo: inputs.teacher", "unknown input"),
        ("stages.grpo.entering=['method=sft']", "stage grpo: entering", "already"),
        ("stages.grpo.model.path=elsewhere", "stage grpo: model.path", "decides it"),
        ("stages.grpo.model.weights=random", "stage grpo: model.weights", "decides it"),
        ("stages.grpo.model=gemma_270m", "stage grpo: model", "not the model of stage sft (nano)"),
        ("stages.sft.model=gemma_270m", "stage grpo: model", "nano is not the model of stage sft (gemma_270m)"),
        ("stages.grpo.model.architecture.num_hidden_layers=2", "stage grpo: model", "its architecture is another"),
        ("+stages.grpo.repeat=0", "stage grpo: repeat", "number of rounds"),
    ],
)
def test_what_is_refused(override: str, where: str, word: str) -> None:
    assert word in problems("method=staged", override)[where]


def test_the_path_of_a_reward_model_that_an_earlier_stage_makes_is_not_given_as_well() -> None:
    assert (
        "decides it"
        in problems("method=staged_rlhf", "stages.ppo.reward.reward_model.path=elsewhere")["stage ppo: reward.reward_model.path"]
    )


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ("stages=[sft,dpo", "cannot be read"),
        ("stages=[{name: a, overrides: [method=sft]}]", "cannot be read"),
        ("stages=sft,dpo", "a sweep"),
        ("stages=[]", "expected a list of stages"),
        ("stages=5", "expected a list of stages"),
        ("stages={a:1}", "expected a list of stages"),
        ("~stages", "expected a list of stages"),
        ("stages=[[sft]]", "expected a stage"),
        ("stages=[sft,{name:b,inputs:[a]}]", "expected stages by input"),
    ],
)
def test_stages_that_cannot_be_read_are_refused(given: str, word: str) -> None:
    (message,) = problems("method=staged", given).values()
    assert word in message


def test_the_seed_of_a_stage_is_one_of_its_overrides() -> None:
    found = problems("method=staged", "stages=[{name: a, seed: 3, overrides: ['method=sft']}]")
    assert found["stage a: seed"] == "unknown key of a stage"


def test_inputs_of_a_stage_that_are_no_mapping_are_refused() -> None:
    found = problems("method=staged", "stages.grpo.inputs=5", "stages.grpo.inputs.policy=sft", "stages.sft.inputs=[a]")
    assert "expected stages by input" in found["stage sft: inputs"]


def test_a_run_has_no_stages() -> None:
    assert "no pipeline" in problems("method=sft", "stages.sft.max_steps=3")["stages.sft.max_steps=3"]


def test_mistakes_are_told_without_torch() -> None:
    code = "import sys; from posttrain.__main__ import main; code = main(sys.argv[1:]); print(code, 'torch' in sys.modules)"
    line = ["method=staged", "stages.sft.optimizer.lr=fast"]
    done = subprocess.run([sys.executable, "-c", code, *line], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 False"
    assert "stage sft: optimizer.lr: expected a number" in done.stderr


def test_a_stage_is_known_by_what_it_computes(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "1+1", "completion": "2"}\n')

    def key(*overrides: str, parent: str = "a") -> str:
        stage = configs(composed("method=staged", "data=files", f"data.train={file}", *overrides))["grpo"]
        return stage_hash(stage, {"policy": parent})

    first = key()
    assert key("tracking=none", "checkpoint.every_steps=1", f"output_dir={tmp_path}", "resume=never", "data.workers=1") == first
    other = [key("seed=1"), key("optimizer.lr=1e-9"), key(parent="b"), key("hardware=2xcpu")]
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(file.read_bytes())
    assert key(f"data.train={copy}") == first
    file.write_text('{"prompt": "1+1", "completion": "3"}\n')
    assert len({first, key(), *other}) == 6


def grpo_key(*overrides: str) -> str:
    return stage_hash(configs(composed("method=staged", *overrides))["grpo"], {"policy": "a"})


def test_how_a_source_of_a_mixture_is_read_counts(tmp_path: Path) -> None:
    rows = '{"prompt": "1+1", "completion": "2"}\n'
    for name in ("a.jsonl", "b.jsonl", "copy.jsonl"):
        (tmp_path / name).write_text(rows if name != "b.jsonl" else rows * 2)

    def key(first: str = "", name: str = "a") -> str:
        sources = f"[{{path: {tmp_path}/{name}.jsonl, weight: 0.5{first}}}, {{path: {tmp_path}/b.jsonl, weight: 0.5}}]"
        return grpo_key("data=files", "data.train=null", f"data.sources={sources.replace(': ', ':').replace(', ', ',')}")

    plain = key()
    assert key(name="copy") == plain
    read = [",format:prompt_completion", ",format_options:{system:x}", ",columns:{prompt:completion}", ",name:other"]
    assert len({plain, *map(key, read)}) == 1 + len(read)


def test_the_code_of_a_reward_function_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "def score(*, prompt, completion, answer, meta):\n    return {0}\n\n\ndef other(**inputs):\n    return 0\n"
    (tmp_path / "scoring").mkdir()
    files = [tmp_path / "score.py", tmp_path / "scoring" / "rules.py"]
    for file in files:
        file.write_text(code.format(0))
    paths = ["score.py:score", "score.py:other", "scoring.rules:score", f"{tmp_path}/score.py:score"]

    def keys() -> list[str]:
        return [grpo_key("stages.grpo.reward=function", f"stages.grpo.reward.function.path='{path}'") for path in paths]

    before = keys()
    assert before[0] == before[3] != before[1]
    for file in files:
        file.write_text(code.format(1))
    assert not set(before) & set(keys())


def test_files_named_without_a_folder_and_the_run_made_first_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    template, rows = tmp_path / "chat.jinja", tmp_path / "rows.jsonl"
    template.write_text("{{ messages }}")
    rows.write_text('{"prompt": "1+1", "completion": "2"}\n')

    def keys() -> list[str]:
        stages = configs(composed("method=staged", "entering=['data=files','data.train=rows.jsonl']"))
        return [grpo_key("model.chat_template=chat.jinja"), stage_hash(stages["sft"], {})]

    before = keys()
    template.write_text("{{ messages[0] }}")
    rows.write_text('{"prompt": "1+1", "completion": "3"}\n')
    assert not set(before) & set(keys())


def test_a_target_outside_the_package_counts_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stage = configs(composed("method=staged"))["grpo"]
    stage["reward"] = {"mine": {"_target_": "own_rewards.Mine"}}
    file = tmp_path / "own_rewards.py"
    file.write_text("class Mine: pass\n")
    before = stage_hash(stage, {})
    file.write_text("class Mine: value = 1\n")
    assert stage_hash(stage, {}) != before


BUDGET = "budget.flops=1e12"


@pytest.mark.parametrize(
    "recipe", [found.name for found in options((config_dir(),), "method") if found.name.startswith(("staged", "nano_"))]
)
def test_under_a_budget_no_recipe_says_how_long_its_stages_are(recipe: str) -> None:
    stages = configs(composed(f"method={recipe}", BUDGET))
    assert {stage["max_steps"] for stage in stages.values()} == {None}


def test_a_length_on_the_command_line_holds_beside_a_budget_and_is_told() -> None:
    config = composed("method=staged", BUDGET, "stages.sft.max_steps=9")
    assert [stage["max_steps"] for stage in configs(config).values()] == [9, None]
    assert [line.split(" ends")[0] for line in bounds_told(config)] == ["stage sft: max_steps=9"]
    given = composed("method=staged", "stages=[sft,{name: b, overrides: ['method=sft','max_steps=3']}]", BUDGET)
    assert [stage["max_steps"] for stage in configs(given).values()] == [None, 3]
    for option, lengths in (("debug=true", [3, 3]), ("debug=false", [450, 40]), ("experiment=null", [450, 40])):
        assert [stage["max_steps"] for stage in configs(composed("method=staged", option)).values()] == lengths
    assert [stage["max_steps"] for stage in configs(composed("method=staged", BUDGET, "debug=false")).values()] == [None, None]
    named = composed("method=staged", BUDGET, "stages.sft.experiment=quickstart")
    assert [stage["max_steps"] for stage in configs(named).values()] == [350, None]


def test_budgets_and_keys_that_have_no_effect_on_a_stage_are_refused_together() -> None:
    found = problems(
        "method=staged", BUDGET, "stages.sft.budget.tokens=5", "stages.sft.resume=never", "stages.grpo.output_dir=here",
        "stages.grpo.scheduler.warmup=10", "stages.sft.share=1",
    )  # fmt: skip
    assert set(found) == {
        "stage sft: budget.tokens", "stage sft: resume=never", "stage grpo: output_dir=here", "stage grpo: scheduler.warmup",
        "stage grpo: share",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "where", "word"),
    [
        ((BUDGET, "budget.tokens=1e6"), "budget", "stops at one amount"),
        ((BUDGET, "stages.sft.share=0.4", "stages.grpo.share=0.5"), "stages", "stay unspent"),
        ((BUDGET, "stages.sft.share=0.4", "stages.grpo.share=0.7"), "stages", "more than 1"),
        (("stages.sft.share=0.4",), "stage sft: share", "there is none"),
    ],
)
def test_budgets_that_cannot_be_shared(given: tuple[str, ...], where: str, word: str) -> None:
    assert word in problems("method=staged", *given)[where]


def test_a_budget_is_shared() -> None:
    budget = {"flops": 100.0, "tokens": None, "gpu_seconds": None}
    shares = [{"name": "a", "share": None}, {"name": "b", "share": 0.5}, {"name": "c", "share": None}]
    parts = [part_of(budget, shares, number, spent) for number, spent in enumerate((0.0, 26.0, 77.0))]
    assert [part and part["flops"] for part in parts] == [25.0, 50.0, 23.0]
    with pytest.raises(ConfigError):
        part_of(budget, shares, 2, 100.0)
    assert part_of({"flops": None}, shares, 0, 0.0) is None
