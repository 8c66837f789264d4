"""`posttrain plan [overrides]`: what a run would take, without running it: memory, operations, time, and whether it fits.

Shows the resolved config, the parameters, memory by component and phase, the tokens of an optimizer step, time, and whether it can run on
this machine. Local and generated data are prepared (training finds them in the cache); hub data are not fetched, numbers about them are
upper bounds. The reckoning is in `posttrain.runs.planning`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.syntax import Syntax

from posttrain.errors import ConfigError
from posttrain.runs import report, rules, source
from posttrain.runs.check import compose_and_check
from posttrain.runs.commands.table import Call
from posttrain.runs.config_yaml import as_yaml
from posttrain.runs.pipeline.shares import bounds_told, part_of, unit_of

if TYPE_CHECKING:
    from posttrain.runs.planning.charged import Charge
    from posttrain.runs.planning.estimate import Estimate
    from posttrain.runs.planning.workload import Workload

Rows = list[tuple[str, str]]


def run(call: Call) -> int:
    """Prints the plan."""
    config = compose_and_check(
        call.overrides, config_dirs=call.config_dirs, base=call.base, allow_targets=call.allow_targets, rules=rules.PLAN
    )
    console = report.console()
    if not config["stages"]:
        show_run(console, config, call.allow_targets)
        return 0
    for line in bounds_told(config):
        console.print(line)
    for number, (node, stage) in enumerate(zip(config["stages"], stages_with_budgets(config), strict=True), 1):
        console.rule(f"stage {number}/{len(config['stages'])}: {node['name']}", align="left")
        console.print(described(node))
        show_run(console, stage, call.allow_targets)
    return 0


def stages_with_budgets(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages' configs with their parts of the pipeline's budget, where each spends all of its own."""
    unit, found, spent = unit_of(config["budget"]), list[dict[str, Any]](), 0.0
    for number, node in enumerate(config["stages"]):
        part = part_of(config["budget"], config["stages"], number, spent)
        found.append(node["config"] if part is None else {**node["config"], "budget": part})
        spent += 0.0 if part is None or unit is None else part[unit]
    return found


def described(node: Mapping[str, Any]) -> str:
    """What a stage starts from, and its part of the budget."""
    source = ", ".join(f"{key} from stage {name}" for key, name in node["inputs"].items()) or "starts from the model"
    return source if node["share"] is None else f"{source}; {node['share']:.0%} of the budget"


def show_run(console: Console, config: dict[str, Any], allow_targets: Collection[str]) -> None:
    """Prints the plan of one run."""
    console.print(Syntax(as_yaml(config), "yaml", background_color="default"))
    from posttrain.runs.planning import show
    from posttrain.runs.planning.charged import charge_of
    from posttrain.runs.planning.larger import larger_shapes
    from posttrain.runs.planning.machine import overhead_of
    from posttrain.runs.planning.remedies import remedies

    overhead = overhead_of(config["hardware"]["accelerator"])  # before this process has done anything of its own
    charge = charge_of(config, partial(planned, allow_targets=allow_targets), allow_targets=allow_targets)
    work, found = planned(config, charge, allow_targets=allow_targets, overhead=overhead)
    advice = remedies(config, found, partial(with_adapters, config), larger_shapes(config["hardware"])) if found.fits is False else []
    show.plan(
        console, config, found, work, model=model_rows(config, allow_targets), checks=check_rows(config), remedies=advice
    )  # fmt: skip


def planned(
    config: dict[str, Any], charge: Charge | None = None, *, allow_targets: Collection[str] = (), overhead: float = 0.0
) -> tuple[Workload, Estimate]:
    """What a run computes on, and what that takes. charge: what its budget is charged with before."""
    from posttrain.runs.planning.estimate import estimate
    from posttrain.runs.planning.trace import model_shape
    from posttrain.runs.train import untrained

    work = workload_of(config, before=0.0 if charge is None else charge.amount or 0.0)
    if charge is not None:
        work = replace(work, words=(*work.words, ("of the budget", charge.words)))
    shape = model_shape(config["model"], precision=config["precision"])
    return work, estimate(config, untrained(config, allow_targets=allow_targets), shape, work, overhead=overhead)


def with_adapters(config: dict[str, Any], option: str) -> Any:
    """The shape of the config's model with an option of model/peft."""
    from posttrain.runs.options import config_dir
    from posttrain.runs.planning.trace import model_shape

    node = yaml.safe_load((config_dir() / "model" / "peft" / f"{option}.yaml").read_text(encoding="utf-8"))
    return model_shape({**config["model"], "peft": node["peft"]}, precision=config["precision"])


def workload_of(config: dict[str, Any], *, before: float = 0.0) -> Workload:
    """What the run computes on: from the data where they are here, else an upper bound that says why. before: see `workload.of_data`."""
    from posttrain.runs.inputs import load_inputs
    from posttrain.runs.planning import workload

    kind = source.class_constant(config["method"]["_target_"], "data_kind")
    if not is_here(config):
        return workload.bound(config, str(kind), "the data is not here")
    try:
        _, prepared = load_inputs(config)
    except ConfigError as error:  # no tokenizer without the hub: a plan then gives bounds, and says why
        return workload.bound(config, str(kind), error.problems[0].message)
    return workload.of_data(config, prepared, before=before)


def model_rows(config: dict[str, Any], allow_targets: Collection[str] = ()) -> Rows:
    """Parameters, counted on the meta device: no weights are read and little memory is used."""
    from posttrain.models.counts import count_parameters, hidden_width
    from posttrain.runs.planning.estimate import adapters_off_restore
    from posttrain.runs.train import untrained

    method, counts = untrained(config, allow_targets=allow_targets), count_parameters(config["model"])
    head = sum(p.numel() for module in method.modules_beside(hidden_width(config["model"])) for p in module.parameters())
    trainable = counts.trainable + head - (0 if method.language_model else counts.output)
    copies = method.copies(adapters_off_restore=adapters_off_restore(config["model"].get("peft")))
    return [
        ("model", config["model"]["name"]),
        ("parameters", f"{counts.total + head:,}"),
        ("trainable", f"{trainable:,} ({100 * trainable / (counts.total + head):.3g} %)"),
        ("in embeddings", f"{counts.embedding:,}"),
        *([("in the reward head", f"{head:,}")] if head else []),
        *([("frozen reference", f"{copies * counts.total:,} more, a second model")] if copies else []),
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
