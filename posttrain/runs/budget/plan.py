"""How many steps a budget buys, where the step plan tells the work of every one in advance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from posttrain.data.loader import TreeLoader
from posttrain.data.plan import StepPlan
from posttrain.errors import ConfigError
from posttrain.functional.logprobs import HeadSpec
from posttrain.methods.base import Method
from posttrain.models.flops import flop_model
from posttrain.models.loading import base_where_adapted
from posttrain.models.policy import PolicyModel
from posttrain.runs.budget.amount import Budget, budget_of, is_known_before, too_small
from posttrain.runs.planning.estimate import adapters_off_restore
from posttrain.runs.planning.trace import adapted
from posttrain.runs.train import Job, plan_of


def within_budget(job: Job, method: Method) -> Job:
    """The job with as many steps as its budget buys; the method's schedule then ends there. As it is without a budget that can tell.

    Raises ConfigError for a budget that is smaller than one step.
    """
    budget = budget_of(job.config)
    if budget is None or not is_known_before(job.config):
        return job
    plan = bought(job, method, budget)
    method.recipe = replace(method.recipe, max_steps=plan.steps)
    return replace(job, plan=plan)


def bought(job: Job, method: Method, budget: Budget) -> StepPlan:
    """The plan that ends at the step nearest to the budget, or at max_steps if that comes first."""
    config = {**job.config, "budget": None}
    most, steps = config["max_steps"], 64
    while True:
        steps = steps if most is None else min(steps, most)
        plan = plan_of({**config, "max_steps": steps}, job.prepared, job.ranks)
        assert isinstance(plan, StepPlan)
        with _planned(job, method, plan) as loader:
            found = nearest(_costs(loader, method, budget), budget, before=job.flops if budget.unit == "flops" else 0.0, most=steps)
        if found is not None or steps == most:
            ends = steps if found is None else found
            plan = plan_of({**config, "max_steps": ends}, job.prepared, job.ranks)
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
def _planned(job: Job, method: Method, plan: StepPlan) -> Iterator[TreeLoader]:
    """The method with the shape of its model (on the meta device, without weights), to ask what steps of a plan cost."""
    config, loader = job.config, TreeLoader(job.prepared.train, plan, rank=job.ranks.reader, stretch=job.ranks.stretch)
    peft = config["model"].get("peft")
    built = adapted(base_where_adapted(config["model"]))
    policy = PolicyModel(built, layout="tree", head=HeadSpec(), base_with_adapters_off=adapters_off_restore(peft))
    shape = flop_model(policy, device=job.device.type, half=config["precision"] != "float32")
    method.policy, method.steps = policy, loader
    method.operations = replace(shape, checkpointing=bool(config["model"].get("gradient_checkpointing")))
    try:
        yield loader
    finally:
        method.policy = method.operations = method.steps = None
