"""A run from its checked configuration to its exit code."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from posttrain.errors import ConfigError, UserError
from posttrain.runs import entering, imports, report, suites
from posttrain.runs.data_record import data_problems, keep_data
from posttrain.runs.folder_lock import alone_in
from posttrain.runs.quiet import quiet_libraries
from posttrain.runs.resume import CONFIG, open_folder
from posttrain.runs.signals import Stopped, stop_on_signals

log = logging.getLogger(__name__)
DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130
ALLOW, STAGE = "--allow-target=", "--stage="  # options of `posttrain.runs.worker`
HEAVY = "posttrain.runs.session"


def run_job(config: dict[str, Any], *, allow_targets: Collection[str] = ()) -> int:
    """Train in this process, or on one process a device; returns the exit code.

    The folder, its lock and the tokenised data are ready before any rank starts.
    """
    return exit_code(lambda: _run(config, allow_targets))


def run_one_stage(config: dict[str, Any], number: int, *, allow_targets: Collection[str] = ()) -> int:
    """Make one stage of a pipeline, after those before it; returns the exit code."""
    from posttrain.runs.pipeline.chained import close_early, prepare, run_stage
    from posttrain.runs.pipeline.run import status_of

    folder = Path(config["output_dir"])

    def action() -> int:
        with stop_on_signals():
            prepare(config, folder)
            code = run_stage(config, folder, number, lambda stage: run_isolated(stage, allow_targets=allow_targets), allow=allow_targets)
        if code:
            close_early(config, folder, status_of(code))
        return code

    return exit_code(action)


def exit_code(action: Callable[[], int]) -> int:
    """What a command's outcome means to the shell; a user's error is told in lines, any other with its traceback."""
    quiet_libraries()
    try:
        return action()
    except UserError as error:
        report.show(error.problems, started=error.started)
        return WRONG
    except (KeyboardInterrupt, Stopped) as stop:
        print("interrupted; the same command starts or continues the run", file=sys.stderr)
        return stop.code if isinstance(stop, Stopped) else INTERRUPTED
    except Exception:
        traceback.print_exc()
        return FAILED


def _run(config: dict[str, Any], allow_targets: Collection[str]) -> int:
    config = {**config, "output_dir": str(output_folder(config))}
    folder = Path(config["output_dir"])
    if config.get("stages"):
        from posttrain.runs.pipeline.run import run_pipeline

        return run_pipeline(config, folder, allow_targets=allow_targets)
    with opened(config, folder, allow_targets) as ended:
        if ended is not None:
            return ended
        world = config["hardware"]["nodes"] * config["hardware"]["devices"]
        if world > 1:
            return _run_ranks(config, folder, world, allow_targets)
        with imports.kept(HEAVY):
            from posttrain.runs.ranks import from_environment
            from posttrain.runs.session import train

        return train(entering.applied(config), from_environment(), allow_targets=allow_targets)


@contextmanager
def opened(config: dict[str, Any], folder: Path, allow_targets: Collection[str]) -> Iterator[int | None]:
    """The run's folder, locked, with its config.yaml and the run it starts from; yields an exit code where nothing is left to train.

    Raises:
        Taken: another process trains there.
        ConfigError: the folder's run had another configuration or, finished, other data.
    """
    with alone_in(folder):
        start = open_folder(config, folder, more=data_problems)
        if start.finished:
            if problems := data_problems(config):
                raise ConfigError(problems)
            print(f"{folder} is finished ({start.step} steps); raise max_steps to go on, or set resume=never to start over")
            suites.measure_later(config, allow=allow_targets)
            yield DONE
        elif config["entering"] and (code := entering.make(config, allow_targets=allow_targets)):
            yield code
        else:
            yield None


def _run_ranks(config: dict[str, Any], folder: Path, world: int, allow_targets: Collection[str]) -> int:
    """Tokenise here, once, so that ranks only open the cache; then one process a device."""
    from posttrain.runs.context import check_context
    from posttrain.runs.inputs import load_inputs
    from posttrain.runs.processes import run_ranks

    applied = entering.applied(config)
    tokenizer, prepared = load_inputs(applied)
    check_context(applied, prepared)
    keep_data(folder, prepared, tokenizer, applied["model"])
    allowed = [f"{ALLOW}{name}" for name in allow_targets]
    return run_ranks([sys.executable, "-m", "posttrain.runs.worker", str(folder / CONFIG), *allowed], world)


def train_rank(config: dict[str, Any], *, allow_targets: Collection[str] = ()) -> int:
    """One rank of a run whose folder is ready; returns the exit code. Other ranks than the leading one say which they are."""
    quiet_libraries()
    with imports.kept(HEAVY):
        from posttrain.runs.ranks import from_environment
        from posttrain.runs.session import train

    ranks = from_environment()

    def action() -> int:
        try:
            return train(entering.applied(config), ranks, allow_targets=allow_targets)
        except UserError as error:
            if ranks.leads:
                raise
            for line in report.lines(error.problems):
                print(f"rank {ranks.rank}: {line}", file=sys.stderr)
            return WRONG
        except Stopped as stop:
            if ranks.leads:
                raise
            return stop.code

    return exit_code(action)


def run_isolated(config: dict[str, Any], *, allow_targets: Collection[str] = ()) -> int:
    """Train in a process of its own, as a sweep does; returns the exit code. config.output_dir must be set."""
    from posttrain.runs.processes import run_child

    return run_child(isolated_command(config, allow_targets))


def isolated_command(config: dict[str, Any], allow_targets: Collection[str] = ()) -> list[str]:
    """The command that trains `config` in a process of its own, which finds it in the run's folder; config.output_dir must be set."""
    folder = Path(config["output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    from posttrain.runs.config_yaml import as_yaml
    from posttrain.runs.files import write_atomic

    wanted = folder / "job.yaml"
    write_atomic(wanted, as_yaml(config))
    allowed = [f"{ALLOW}{name}" for name in allow_targets]
    return [sys.executable, "-m", "posttrain.runs.worker", str(wanted), *allowed]


def output_folder(config: dict[str, Any]) -> Path:
    """The run's folder, absolute; by default a new one under outputs/runs, named by time, method and model."""
    if config["output_dir"] is not None:
        return Path(config["output_dir"]).expanduser().absolute()
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    name = f"{stamp}_{config['method']['name']}_{config['model']['name']}"
    base = Path.cwd() / "outputs" / "runs"
    numbered = (base / (name if number == 1 else f"{name}_{number}") for number in range(1, 1000))
    return next(path for path in numbered if not path.exists())
