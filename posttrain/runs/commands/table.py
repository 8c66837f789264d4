"""The commands: what each is called, what it does and where it lives. A module is imported only when its command runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

QUICKSTART = ("experiment=quickstart",)


@dataclass(frozen=True)
class Call:
    """One command line, taken apart. arguments: what follows the command; the other fields are its flags."""

    arguments: tuple[str, ...] = ()
    config_dirs: tuple[str, ...] = ()
    base: Path | None = None
    allow_targets: tuple[str, ...] = ()
    multirun: bool = False

    @property
    def overrides(self) -> tuple[str, ...]:
        """The run's overrides; without any, and without a config to start from, the quickstart's."""
        return self.arguments if self.arguments or self.base is not None else QUICKSTART


def is_study(lines: Sequence[str]) -> bool:
    """Whether a command line names a study."""
    return any(line.startswith("study=") for line in lines)


@dataclass(frozen=True)
class Command:
    """module: its `run(call) -> exit code` does the work."""

    name: str
    usage: str
    summary: str
    module: str

    def load(self) -> Callable[[Call], int]:
        """The command's function; imports its module."""
        run: Callable[[Call], int] = import_module(self.module).run
        return run


def _command(name: str, usage: str, summary: str) -> Command:
    return Command(name, usage, summary, f"posttrain.runs.commands.{name.replace('-', '_')}")


TRAIN = _command("train", "[overrides]", "check everything, then train (also without the word `train`)")
COMMANDS: Sequence[Command] = (
    TRAIN,
    _command("plan", "[overrides]", "train nothing: parameters, memory by component, time, what to change if it does not fit"),
    _command("data", "[overrides]", "show examples as the model will see them: tokens, masks, lengths, drops"),
    _command("eval", "run=DIR suite=NAME", "evaluate the artifact of a run"),
    _command("compare", "runs=[DIR,DIR,...]", "which of some finished runs is better, by how much, and whether the difference is real"),
    _command("human-eval", "make|score [key=value]", "blinded sheets for annotators, and what they say of the arms"),
    _command("chat", "run=DIR", "talk to the artifact of a run in the terminal"),
    _command("export", "run=DIR to=DIR", "write an artifact as a plain Hugging Face folder"),
    _command("constitution", "data=DATA to=DIR", "make data by critique and revision: the model mends its own answers by principles"),
    _command("sync", "run=DIR", "send to MLflow what a run could not send while the store was away"),
    _command("status", "sweep=DIR", "the jobs of a sweep: state in SLURM, status, step, last loss"),
    _command("cancel", "sweep=DIR", "cancel the SLURM jobs of a sweep"),
    _command("list", "[group]", "the options of every group, one line each"),
)
NOT_YET = {"serve": "serving"}
