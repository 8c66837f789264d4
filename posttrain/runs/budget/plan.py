"""How many steps a budget buys, where the step plan tells the work of every one in advance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from posttrain.data.loader import TreeLoader
from posttrain.data.plan import StepPlan
from posttrain.data.prepare import Prepared
from posttrain.errors import ConfigError
from posttrain.functional.head import HeadSpec
from posttrain.methods.base import Method
from posttrain.models.flops import flop_model
from posttrain.models.loading import base_where_adapted
from posttrain.models.policy import PolicyModel
from posttrain.runs import entering
from posttrain.runs.budget.amount import Budget, budget_of, is_known_before, overspent, too_small
from posttrain.runs.planning.estimate import adapters_off_restore
from posttrain.runs.planning.trace import adapted
from posttrain.runs.ranks import Ranks
from posttrain.runs.train import Job, plan_of


def within_budget(job: Job, method: Method) -> Job:
    """The job with as many steps as its budget buys; the method's schedule then ends there. As it is without a budget that can tell.

    Raises ConfigError for a budget that is smaller than one step, or than what the run that goes on has spent.
    """
    budget, most = budget_of(job.config), job.config["max_steps"]
    if budget is None or not is_known_before(job.config):
        return job
    before = entering.spent(job.config, budget.unit) + (job.flops if budget.unit == "flops" else 0.0)
    plan = bought(job.config, job.prepared, job.ranks, method, before=before, ends=job.start.ends)
    if plan.steps < job.start.step and (most is None or plan.steps < most):
        raise ConfigError(overspent(budget, job.start.step, by=f"the budget buys {plan.steps} steps: that is"))
    method.recipe = replace(method.recipe, max_steps=plan.steps)
    return replace(job, plan=plan)


def bought(
    config: Mapping[str, Any], prepared: Prepared, ranks: Ranks, method: Method, *, before: float = 0.0, ends: Sequence[int] = ()
) -> StepPlan:
    """The plan that ends at the step nearest to the budget, or at max_steps if that comes first; as configured without a budget.

    method: not yet with a model. before: what was spent before training. ends: see `StepPlan`. Raises ConfigError for a budget that is
    smaller than one step.
    """
    budget, config = budget_of(config), {**config, "budget": None}
    assert budget is not None
    most, steps = config["max_steps"], 64
    while True:
        steps = steps if most is None else min(steps, most)
        plan = plan_of({**config, "max_steps": steps}, prepared, ranks, ends)
        assert isinstance(plan, StepPlan)
        loader = TreeLoader(prepared.train, plan, rank=ranks.reader, stretch=ranks.stretch)
        with _planned(config, loader, method):
            found = nearest(_costs(loader, method, budget), budget, before=before, most=steps)
        if found is not None or steps == most:
            plan = plan_of({**config, "max_steps": steps if found is None else found}, prepared, ranks, ends)
            assert isinstance(plan, StepPlan)
            return plan
        steps *= 2


def nearest(costs: Callable[[int], float], budget: Budget, *, before: float, most: int) -> int | None:
    """The number of steps whose sum is nearest to the budget; None where `most` steps do not reach it.

    costs: of step 0, 1, ... before: what was spent before the first. Raises ConfigError where not even one step fits.
    """
    spent = before
    for step in range(most):
        cost = costs(step)
        if step == 0 and before + cost > budget.amount:
            raise ConfigError(too_small(budget, before + cost))
        if spent + cost >= budget.amount:
            return step if budget.amount - spent <= spent + cost - budget.amount else step + 1
        spent += cost
    return None


def _costs(loader: TreeLoader, method: Method, budget: Budget) -> Callable[[int], float]:
    if budget.unit == "tokens":
        return lambda step: float(loader.work(step).tokens)
    return lambda step: method.flops(loader.work(step))


@contextmanager
def _planned(config: Mapping[str, Any], loader: TreeLoader, method: Method) -> Iterator[None]:
    """The method with the shape of its model (on the meta device, without weights), to ask what steps of a plan cost."""
    peft = config["model"].get("peft")
    built = adapted(base_where_adapted(config["model"]))
    policy = PolicyModel(built, layout="tree", head=HeadSpec(), base_with_adapters_off=adapters_off_restore(peft))
    shape = flop_model(
        policy, device=config["hardware"]["accelerator"], half=config["precision"] != "float32", knows_slopes=method.knows_slopes
    )
    method.policy, method.steps = policy, loader
    method.operations = replace(shape, checkpointing=bool(config["model"].get("gradient_checkpointing")))
    try:
        yield
    finally:
        method.policy = method.operations = method.steps = None
