"""The search as Optuna keeps it, in a file of the sweep's folder: what was tried, what it gave, and what has begun."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import ConfigError, Problem
from posttrain.runs.search.settings import Search
from posttrain.runs.search.space import Space

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

FILE, NAME = "search.db", "search"


@dataclass(frozen=True)
class Store:
    """A study. A trial's parameters depend on the trials before it and on the seed, not on how often the search was interrupted."""

    study: Study
    search: Search
    space: Space

    def begun(self) -> list[FrozenTrial]:
        """Trials that an earlier process began and did not see the end of."""
        from optuna.trial import TrialState

        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    @property
    def count(self) -> int:
        """Trials so far."""
        return len(self.study.get_trials(deepcopy=False))

    def ask(self) -> FrozenTrial:
        """The next trial."""
        self.study.sampler = sampler_of(self.search, self.count)
        trial = self.study.ask({one.key: one.distribution() for one in self.space.dimensions})
        return self.study.get_trials(deepcopy=False)[trial.number]

    def tell(self, number: int, value: float | None) -> None:
        """How a trial ended; None for one that gave no value."""
        from optuna.trial import TrialState

        if value is None:
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, value)

    def finished(self) -> list[FrozenTrial]:
        """Trials that gave a value, the best first."""
        from optuna.study import StudyDirection
        from optuna.trial import TrialState

        sign = 1 if self.study.direction == StudyDirection.MINIMIZE else -1
        found = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return sorted(found, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def sampler_of(search: Search, number: int) -> BaseSampler:
    """A sampler for one trial, with a seed of its own."""
    from optuna.samplers import GPSampler, RandomSampler, TPESampler

    seed = (search.seed * 1_000_003 + number) % 2**32
    if search.sampler == "random":
        return RandomSampler(seed=seed)
    kind = {"tpe": TPESampler, "gp": GPSampler}[search.sampler]
    return kind(seed=seed, n_startup_trials=search.startup_trials)


def open_store(folder: Path, search: Search, space: Space, metric: str, *, lower: bool) -> Store:
    """The study in a sweep's folder, or a new one. Raises ConfigError where another search lies there."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / FILE}")
    asked = _described(search, space, metric, lower=lower)
    names = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=NAME, storage=storage) if NAME in names else None
    known = None if study is None else study.user_attrs.get("asked")
    if study is not None and known != asked:
        if Store(study, search, space).finished():
            changed = [name for name in asked if (known or {}).get(name) != asked[name]]
            message = f"holds a search with other {', '.join(changed)}, which cannot be continued by this one"
            raise ConfigError(Problem(f"output_dir={folder}", message, "another output_dir, or the same command line (n_trials may grow)"))
        optuna.delete_study(study_name=NAME, storage=storage)  # nothing came of it, as where its metric was misspelt
        study = None
    if study is None:
        study = optuna.create_study(storage=storage, study_name=NAME, direction="minimize" if lower else "maximize")
        study.set_user_attr("asked", asked)
    return Store(study, search, space)


def _described(search: Search, space: Space, metric: str, *, lower: bool) -> Mapping[str, Any]:
    """What must not change while a search goes on."""
    chosen = {key: value for key, value in asdict(search).items() if key in ("sampler", "startup_trials", "seed")}
    told = {**chosen, "metric": metric, "lower": lower, "dimensions": [asdict(one) for one in space.dimensions], "overrides": space.fixed}
    described: dict[str, Any] = json.loads(json.dumps(told))
    return described
