"""The command line. Imports nothing heavy: --help, list and a config error answer at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from posttrain import __version__
from posttrain.errors import ConfigError, Problem, UserError
from posttrain.runs.commands.table import COMMANDS, NOT_YET, TRAIN, Call, Command
from posttrain.runs.quiet import quiet_libraries
from posttrain.runs.threads import spin_while_alone

FLAGS = ("--help", "--version", "--multirun", "--config", "--config-dir", "--allow-target")
HELP = frozenset(("-h", "--help"))
INTERRUPTED = 130
USER_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns the exit code: 0 done, 2 the user's mistake, 130 interrupted; a failure raises."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    quiet_libraries()
    spin_while_alone()
    try:
        return _run(arguments)
    except UserError as error:
        from posttrain.runs import report

        report.show(error.problems, started=error.started)
        return USER_ERROR
    except KeyboardInterrupt:
        print("posttrain: interrupted", file=sys.stderr)
        return INTERRUPTED


def _run(arguments: list[str]) -> int:
    if "--version" in arguments:
        print(f"posttrain {__version__}")
        return 0
    wants_help = not HELP.isdisjoint(arguments)
    call = parse_flags([argument for argument in arguments if argument not in HELP])
    command, rest = split_command(call.arguments)
    if wants_help:
        from posttrain.runs import help as screens

        screens.show() if command is None else screens.show_command(command)
        return 0
    if call.multirun and command not in (None, TRAIN):
        raise ConfigError(Problem("-m", "a sweep trains; it has no other command", "leave the command out"))
    return (command or TRAIN).load()(replace(call, arguments=rest))


def split_command(arguments: Sequence[str]) -> tuple[Command | None, tuple[str, ...]]:
    """The command (the first word, if it is a bare one) and the rest.

    Raises:
        ConfigError: the word is no command.
    """
    words = tuple(arguments)
    if not words or words[0].startswith(("+", "~")) or "=" in words[0]:
        return None, words
    named = {command.name: command for command in COMMANDS}
    if words[0] not in named:
        raise ConfigError(_no_command(words[0], list(named)))
    return named[words[0]], words[1:]


def _no_command(word: str, names: list[str]) -> Problem:
    from posttrain.runs import suggest

    if word in NOT_YET:
        return Problem(word, f"comes with {NOT_YET[word]}, which this version does not have yet", "posttrain --help shows what there is")
    near = suggest.nearest(word, names)
    return Problem(word, "is neither a command nor key=value", f"did you mean {near}?" if near else "commands: " + ", ".join(names))


def parse_flags(arguments: Sequence[str]) -> Call:
    """Takes the flags out of the arguments.

    Raises:
        ConfigError: an unknown flag, or a flag without its value.
    """
    call = Call()
    problems, rest, queue = [], [], list(arguments)
    while queue:
        word = queue.pop(0)
        if not word.startswith("-"):
            rest.append(word)
        elif word in ("-m", "--multirun"):
            call = replace(call, multirun=True)
        else:
            flag, equals, value = word.partition("=")
            value = value if equals else queue.pop(0) if queue and flag in FLAGS else ""
            changed = _with_value(call, flag, value)
            problems += [changed] if isinstance(changed, Problem) else []
            call = call if isinstance(changed, Problem) else changed
    if problems:
        raise ConfigError(problems)
    return replace(call, arguments=tuple(rest))


def _with_value(call: Call, flag: str, value: str) -> Call | Problem:
    if flag not in FLAGS:
        from posttrain.runs import suggest

        return Problem(flag, "unknown flag", suggest.hint(flag, FLAGS))
    if not value:
        return Problem(flag, "needs a value", f"{flag} PATH" if flag != "--allow-target" else f"{flag} PACKAGE")
    if flag == "--config":
        return replace(call, base=Path(value))
    if flag == "--config-dir":
        return replace(call, config_dirs=(*call.config_dirs, value))
    return replace(call, allow_targets=(*call.allow_targets, value))


if __name__ == "__main__":
    sys.exit(main())
