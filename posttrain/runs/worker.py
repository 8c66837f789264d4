"""`python -m posttrain.runs.worker OUT/config.yaml`: a whole run, one stage of it, or one rank of it when the environment says so."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import yaml

from posttrain.runs.threads import spin_while_alone


def main(arguments: list[str]) -> int:
    """Train what a run folder's config.yaml describes; returns the exit code.

    `--allow-target=PACKAGE` as on the command line; `--stage=N`: of a pipeline that stage only, after those before it.
    """
    spin_while_alone()
    from posttrain.errors import UserError
    from posttrain.runs import report
    from posttrain.runs.check import check
    from posttrain.runs.job import ALLOW, STAGE, run_job, run_one_stage, train_rank
    from posttrain.runs.processes import WITH_PARENT

    path, *options = arguments
    allowed = [option.removeprefix(ALLOW) for option in options if option.startswith(ALLOW)]
    stages = [int(option.removeprefix(STAGE)) for option in options if option.startswith(STAGE)]
    config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if problems := check(config, allow_targets=allowed):
        report.show(UserError(problems).problems)
        return 2
    if "LOCAL_RANK" in os.environ or os.environ.pop(WITH_PARENT, ""):
        threading.Thread(target=_die_with_parent, daemon=True).start()
    if "LOCAL_RANK" in os.environ:
        return train_rank(config, allow_targets=allowed)
    if stages:
        return run_one_stage(config, stages[0], allow_targets=allowed)
    return run_job(config, allow_targets=allowed)


def _die_with_parent() -> None:
    """The parent holds the other end of standard input; end of file means that it is gone, and nobody would stop this one."""
    while os.read(0, 1):  # the file itself: a reader object would be locked at interpreter shutdown
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
