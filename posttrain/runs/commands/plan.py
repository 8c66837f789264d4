"""`posttrain plan [overrides]`: what a run would be, without running it.

Shows the resolved config, the parameters, the tokens of an optimizer step, the number of steps, and whether it can run on this machine.
Local and generated data are prepared (training finds them in the cache); hub data are not fetched, numbers about them are upper bounds.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import yaml
from rich.syntax import Syntax
from rich.table import Table

from posttrain.errors import ConfigError
from posttrain.runs import report, rules
from posttrain.runs.check import compose_and_check
from posttrain.runs.commands.table import Call

if TYPE_CHECKING:
    from posttrain.data.prepare import Prepared

Rows = list[tuple[str, str]]


def run(call: Call) -> int:
    """Prints the plan."""
    config = compose_and_check(
        call.overrides, config_dirs=call.config_dirs, base=call.base, allow_targets=call.allow_targets, rules=rules.PLAN
    )
    console = report.console()
    console.print(Syntax(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), "yaml", background_color="default"))
    console.print(as_table("Model", model_rows(config, call.allow_targets)))
    console.print(as_table("Step", step_rows(config)))
    console.print(as_table("Checks", check_rows(config)))
    return 0


def model_rows(config: dict[str, Any], allow_targets: Collection[str] = ()) -> Rows:
    """Parameters, counted on the meta device: no weights are read and little memory is used."""
    from posttrain.models.counts import count_parameters, hidden_width
    from posttrain.runs.train import untrained

    method, counts = untrained(config, allow_targets=allow_targets), count_parameters(config["model"])
    head = sum(p.numel() for module in method.modules_beside(hidden_width(config["model"])) for p in module.parameters())
    trainable = counts.trainable + head - (0 if method.language_model else counts.output)
    copies = method.copies(adapters_off_restore=_adapters_off_restore(config["model"].get("peft")))
    return [
        ("model", config["model"]["name"]),
        ("parameters", f"{counts.total + head:,}"),
        ("trainable", f"{trainable:,} ({100 * trainable / (counts.total + head):.3g} %)"),
        ("in embeddings", f"{counts.embedding:,}"),
        *([("in the reward head", f"{head:,}")] if head else []),
        *([("frozen reference", f"{copies * counts.total:,} more, a second model")] if copies else []),
    ]


def _adapters_off_restore(peft: dict[str, Any] | None) -> bool:
    if peft is None:
        return False
    from posttrain.models.peft import disabling_restores_base

    return disabling_restores_base(peft)


def step_rows(config: dict[str, Any]) -> Rows:
    """Examples and tokens of an optimizer step, and how many steps there are."""
    hardware = config["hardware"]
    rows = [
        (
            "devices",
            f"{hardware['nodes']} x {hardware['devices']} {hardware['device_name'] or hardware['accelerator']}, {config['precision']}",
        ),
        ("examples a step", f"{config['global_batch']:,}"),
    ]
    if not is_here(config):
        return rows + _bounds(config, "the data is not here")
    try:
        return rows + _measured(config)
    except ConfigError as error:  # no tokenizer without the hub: a plan then gives bounds, and says why
        return rows + _bounds(config, error.problems[0].message)


def _bounds(config: dict[str, Any], why: str) -> Rows:
    steps = (
        f"{config['max_steps']:,}"
        if config["max_steps"] is not None
        else f"{config['epochs']:g} epochs; how many steps depends on the data"
    )
    return [("tokens a step", f"at most {config['global_batch'] * config['max_length']:,} ({why})"), ("steps", steps)]


def _sampled(config: dict[str, Any], prepared: Prepared) -> Rows:
    """Of a method that samples its own answers: their number and the most tokens they can have."""
    from posttrain.runs.online import plan_of
    from posttrain.runs.ranks import Ranks

    hardware, rollout, lengths = config["hardware"], config["rollout"], prepared.train.lengths
    plan = plan_of(config, prepared, Ranks(world=hardware["nodes"] * hardware["devices"]))
    answers = plan.global_batch * plan.group_size
    most = plan.global_batch * float(lengths.mean()) + answers * rollout["max_new_tokens"]
    return [
        ("prompts", f"{len(lengths):,}"),
        ("tokens a prompt", f"{lengths.mean():,.1f} on average, {lengths.max():,} at most"),
        (
            "answers a step",
            f"{answers:,}, {plan.group_size} to each of {plan.global_batch} prompts, of at most {rollout['max_new_tokens']:,} tokens",
        ),
        ("a rollout", f"{plan.prompts:,} prompts, for {plan.steps_per_rollout} optimizer steps"),
        ("tokens a step", f"at most {most:,.0f}"),
        ("steps", f"{plan.steps:,}"),
    ]


def _measured(config: dict[str, Any]) -> Rows:
    from posttrain.runs.inputs import load_inputs

    _, prepared = load_inputs(config)
    if config["rollout"] is not None:
        return _sampled(config, prepared)
    lengths = prepared.train.lengths
    examples = len(lengths)
    steps = config["max_steps"] or max(1, -(-int(examples * config["epochs"]) // config["global_batch"]))
    return [
        ("examples", f"{examples:,}"),
        ("tokens an example", f"{lengths.mean():,.1f} on average, {lengths.max():,} at most"),
        ("tokens a step", f"{lengths.mean() * config['global_batch']:,.0f} on average"),
        ("steps", f"{steps:,}"),
        ("tokens in all", f"{lengths.mean() * config['global_batch'] * steps:,.0f}"),
    ]


def is_here(config: dict[str, Any]) -> bool:
    """Whether all data is generated or lies in local files that exist."""
    data = config["data"]
    sources = data["sources"] or [{"path": data["train"]}]
    paths = [source["path"] for source in sources if source.get("path")]
    flat = [item for path in paths for item in (path if isinstance(path, list) else [path])]
    return all(map(rules.is_local_data, flat)) and not any(rules.data_files_exist(config))


def check_rows(config: dict[str, Any]) -> Rows:
    """The checks that depend on this machine; all others have passed, or there would be no plan."""
    machine_rules = [rule for rule in rules.HERE if rule not in rules.PLAN]
    problems = [problem for rule in machine_rules for problem in rule.find(config)]
    return [
        ("config", "passed"),
        *((problem.where, str(problem).partition(": ")[2]) for problem in problems),
        ("runs here", "no" if problems else "yes"),
    ]


def as_table(title: str, rows: Rows) -> Table:
    """Two columns under a title."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False, padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row("  " + name, value)
    return table
