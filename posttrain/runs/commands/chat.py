"""`posttrain chat run=DIR [key=value ...]`: talks to the artifact of a run in the terminal."""

from __future__ import annotations

from posttrain.runs.commands.arguments import key_values
from posttrain.runs.commands.table import Call


def run(call: Call) -> int:
    """Chats and returns the exit code."""
    args = key_values(call)
    from posttrain.runs import chat

    return chat.main(args)
