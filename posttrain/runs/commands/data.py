"""`posttrain data [overrides]`: shows examples as the model will see them.

The same overrides as for training; nothing is trained and no weights are read.
"""

from __future__ import annotations

from posttrain.runs import rules
from posttrain.runs.check import compose_and_check
from posttrain.runs.commands.table import Call


def run(call: Call) -> int:
    """Prepares the data as training would, and shows it."""
    config = compose_and_check(
        call.overrides, config_dirs=call.config_dirs, base=call.base, allow_targets=call.allow_targets, rules=rules.PLAN
    )
    from posttrain.data.show import show
    from posttrain.runs.inputs import load_inputs

    for node in config["stages"] or [{"name": None, "config": config}]:
        if node["name"]:
            print(f"stage {node['name']}")
        tokenizer, prepared = load_inputs(node["config"])
        show(prepared, tokenizer)
    return 0
