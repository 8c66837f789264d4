"""`posttrain human-eval make runs=[DIR,DIR,...] to=DIR`, then `posttrain human-eval score sheets=[FILE,...] key=FILE`.

make: blinded sheets for annotators in TO/sheets, a CSV and an offline form each; which answer is whose is in TO/key.json alone.
runs: folders of finished runs; those with the same config but for the seed are one arm. study=DIR: the arms of a study or sweep, instead.
n=50: prompts. seed=0: decides all that is drawn. raters=1: sheets, each in an order of its own.
Answers are those that runs kept (samples.jsonl); if some kept none, artifacts answer held-out prompts: max_new_tokens=256, device=cuda.

score: reads filled sheets, as the form or a spreadsheet saved them, and refuses any that were changed or are incomplete.
sheets: the CSV files. key: the key.json made with them. to=DIR: where human_eval.html and human_eval.json go; else beside the key.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

from posttrain.errors import ConfigError, Problem
from posttrain.runs import suggest
from posttrain.runs.arguments import bind, parameters_of
from posttrain.runs.commands.arguments import key_values
from posttrain.runs.commands.table import Call

ACTIONS = {"make": "posttrain.runs.human_eval.make.make", "score": "posttrain.runs.human_eval.score.score"}


def run(call: Call) -> int:
    """Makes or scores sheets and returns the exit code."""
    word, *rest = call.arguments or ("",)
    if word not in ACTIONS:
        advice = "posttrain human-eval make runs=[A,B] to=DIR, then posttrain human-eval score sheets=[FILE] key=FILE"
        raise ConfigError(Problem(f"human-eval {word}".strip(), "expected make or score", suggest.hint(word, ACTIONS) if word else advice))
    arguments = bind(key_values(replace(call, arguments=tuple(rest))), parameters_of(ACTIONS[word]), command=f"human-eval {word}")
    module, _, name = ACTIONS[word].rpartition(".")
    getattr(import_module(module), name)(**arguments)
    return 0
