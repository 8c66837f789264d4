"""The screens of `--help`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from rich.console import Console

from posttrain.runs.commands.table import COMMANDS, Command

OVERRIDES = (
    ("model=NAME", "nano, gemma_270m, qwen3_0_6b, ...; model=hf model.path=DIR_OR_HUB_ID for any other"),
    ("model.weights=random", "the architecture without its weights; needs no download"),
    ("model/peft=lora", "train an adapter: lora, dora, rslora, pissa, qlora"),
    ("method=NAME", "sft, pretrain; method/loss=NAME chooses its loss"),
    ("data=files data.train=PATH", "jsonl, json, csv, tsv, parquet, txt (.gz, .zst), a folder, a glob; format detected"),
    ("hardware=NAME", "auto, cpu, 2xcpu, 1xa100, 8xh100, ...: devices, precision and strategy at once"),
    ("global_batch=64", "examples of one optimizer step; max_tokens=8192 bounds the memory of a micro-batch"),
    ("max_steps=1000, epochs=3", "how long; optimizer.lr=1e-5 seed=1 max_length=2048 limit=100 as expected"),
    ("output_dir=DIR", "where everything goes; the same command again continues an interrupted run"),
    ("debug=true", "three steps on the nano model"),
)
FLAGS = (
    ("-m, --multirun", "sweep: one run for every combination of comma-separated values"),
    ("--config FILE", "start from the config.yaml of a run or an artifact; overrides apply on top"),
    ("--config-dir DIR", "a folder with config groups of your own (DIR/model/mine.yaml); may be repeated"),
    ("--allow-target PACKAGE", "let configs call functions of a package that is not on the built-in list"),
    ("--help, --version", "`posttrain COMMAND --help` tells about one command"),
)
EXAMPLES = (
    ("posttrain", "the quickstart: a small model learns arithmetic in under two minutes"),
    ("posttrain method=sft model=gemma_270m data=files data.train=chats.jsonl", "fine-tune on your own file"),
    ("posttrain -m method.loss=nll,dft seed=1,2,3", "six runs and a table"),
    ("posttrain -m method=sft,dpo seed=1,2,3 hardware=8xh100 hydra/launcher=slurm", "six jobs of a cluster; docs/slurm.md"),
    ("posttrain plan model=gemma_1b hardware=8xh100", "what would it take?"),
    ("posttrain --config outputs/RUN/config.yaml output_dir=again", "the same run once more"),
)


def show() -> None:
    """The main help screen, on stdout."""
    console = _console()
    console.print("[bold]posttrain[/]: post-training of language models; one line trains, one line sweeps\n")
    console.print("[bold]Usage[/]  posttrain \\[command] \\[key=value ...]   (or: python -m posttrain ...)\n")
    _section(console, "Commands", [(f"{command.name} {_escaped(command.usage)}", command.summary) for command in COMMANDS], width=26)
    _section(console, "Overrides", OVERRIDES, width=28)
    _section(console, "Flags", FLAGS, width=24)
    console.print("[bold]Examples[/]")
    for line, meaning in EXAMPLES:
        console.print(f"  [cyan]{line}[/]\n      {meaning}")


def show_command(command: Command) -> None:
    """The help of one command, on stdout."""
    console = _console()
    console.print(f"[bold]posttrain {command.name}[/] {_escaped(command.usage)}\n  {command.summary}\n")
    details = import_module(command.module).__doc__ or ""
    console.print("\n".join(f"  {line.strip()}" for line in _escaped(details).strip().splitlines()))


def _section(console: Console, title: str, rows: Sequence[tuple[str, str]], *, width: int) -> None:
    console.print(f"[bold]{title}[/]")
    for name, meaning in rows:
        padding = " " * max(2, width - len(name.replace("\\[", "[")))
        console.print(f"  [cyan]{name}[/]{padding}{meaning}")
    console.print()


def _escaped(text: str) -> str:
    """Square brackets shown as they are."""
    return text.replace("[", "\\[")


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)
