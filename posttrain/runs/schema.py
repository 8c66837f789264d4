"""Keys of the run that no signature describes: names, types, bounds and what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Natural = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Precision = Literal["float32", "bf16", "bf16_true"]
Strategy = Literal["auto", "single", "ddp", "fsdp2", "zero1", "zero2", "zero3"]
Target = dict[str, Any]


@dataclass(frozen=True)
class KeysOf:
    """Marks a mapping whose keys are the fields of a class of this package (dotted name), read from its source."""

    name: str


Adapter = Annotated[dict[str, Any] | None, KeysOf("posttrain.models.peft_options.PeftOptions")]


class Group(BaseModel):
    """A config node with a fixed set of keys."""

    model_config = ConfigDict(extra="forbid")


class Checkpoint(Group):
    """When checkpoints are written and which are kept."""

    every_steps: Count | None = Field(500, description="optimizer steps between checkpoints; null = not by steps")
    every_minutes: Positive | None = Field(30, description="minutes between checkpoints; null = not by time")
    keep_last: Count = Field(2, description="newest checkpoints kept")
    keep_best: Natural = Field(1, description="best checkpoints kept, by `monitor`")
    monitor: str = Field("val/loss", description="metric of `keep_best`, lower is better; higher with a leading minus")


class Log(Group):
    """What is written while training."""

    every_steps: Count = Field(1, description="optimizer steps between lines of metrics.jsonl")
    samples_every: Count | None = Field(
        20, description="optimizer steps between tables of sampled answers, for methods that sample; null = none"
    )


class Validate(Group):
    """When the validation loss is computed."""

    every_steps: Count | None = Field(None, description="optimizer steps between validations; null = only at start and end")
    at_start: bool = True
    at_end: bool = True
    max_examples: Count | None = Field(500, description="validation examples used, spread over all; null = all")


class Model(Group):
    """Which causal language model, and how it is loaded and run."""

    name: str
    path: str | None = Field(None, description="folder or hub id")
    revision: str | None = None
    weights: Literal["pretrained", "random"] = "pretrained"
    learning_rate: Positive = Field(2e-5, description="suits this model; optimizer.lr follows it unless set")
    tokenizer: str | None = Field(None, description="folder, hub id or built-in tokenizer; null = the model's")
    chat_template: str | None = Field(None, description="Jinja file or text that replaces the tokenizer's template")
    trust_remote_code: bool = False
    layout: Literal["auto", "tree", "packed", "padded"] = "auto"
    attention: Literal["auto", "sdpa", "flex", "varlen"] = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    float8: Literal["tensorwise", "rowwise"] | None = Field(None, description="scales of 8-bit matrix products in the blocks; null = none")
    architecture: dict[str, Any] | None = Field(None, description="keys of the transformers config, used with weights=random")
    peft: Annotated[dict[str, Any] | None, KeysOf("posttrain.models.peft_options.PeftOptions")] = Field(
        None, description="adapter; null = train all weights"
    )


class Data(Group):
    """What is trained on. `posttrain.data.settings` checks the values against each other."""

    name: str
    train: str | list[str] | None = Field(None, description="file, folder, glob or hub id, or several")
    val: str | list[str] | None = None
    val_split: str | None = Field(None, description="split of a hub data set used for validation")
    val_fraction: Fraction = Field(0.05, description="share of the examples held out where there is no validation set")
    split_seed: Seed = Field(0, description="draws the examples that val_fraction holds out, whatever the run's seed is")
    sources: list[dict[str, Any]] | None = Field(None, description="a mixture: [{path: A, weight: 0.7}, ...]")
    generator: Target | None = None
    format: str = Field("auto", description="name of a data format; auto = detected from the rows")
    format_options: dict[str, Any] | None = None
    columns: dict[str, Any] | None = Field(None, description="new column name: the file's column name")
    subset: str | None = None
    split: str | None = None
    revision: str | None = None
    streaming: bool | None = None
    documents: str | None = Field(None, description="what one document of a .txt file is")
    truncation: str = Field("auto", description="auto, right, left, drop or split")
    train_on: str = Field("assistant", description="assistant, last or all")
    on_error: str = Field("raise", description="raise or skip")
    exhaustion: str = Field("stop", description="stop or repeat")
    system: str | None = Field(None, description="system message put before conversations that have none")
    template_kwargs: dict[str, Any] | None = None
    attributes: list[str] = Field([], description="qualities that rows may rate besides a score, for reward heads")
    cache_dir: str | None = None
    workers: Count | None = None


class Hardware(Group):
    """Machine shape, stated once."""

    name: str
    accelerator: Literal["cpu", "cuda"]
    nodes: Count = 1
    devices: Count = Field(1, description="per node")
    device_name: str | None = None
    memory_gb: Positive | None = Field(None, description="memory of one device, GiB")
    cpus_per_device: Count = 1
    node_memory_gb: Positive | None = Field(None, description="main memory of a node that cluster jobs ask for, GiB")
    precision: Precision = "float32"
    strategy: Strategy = "auto"
    tensor_parallel: Count = Field(1, description="devices that compute each micro-batch together; of a node")
    context_parallel: Count = Field(1, description="devices, of one node, that each micro-batch's row is cut over")
    context_method: Literal["ring", "ulysses", "torch"] | None = Field(None, description="attention over rows that are cut; null = ring")
    offload: bool = Field(False, description="keep sharded weights and optimizer state in host memory")
    backend: Literal["gloo", "nccl"] = "gloo"
    time_limit: Positive | None = Field(None, description="hours")


class ExactMatch(Group):
    """Greedy answers compared with the checkable answers of the validation set."""

    examples: Count = 200
    share: Positive | None = Field(0.1, description="most tokens of all answers, as a part of what is trained on; null = no limit")
    max_new_tokens: Count | None = Field(None, description="null = half as much again as the longest reference answer")
    before: bool = True
    after: bool = True


class Evaluation(Group):
    """What is measured besides the validation loss."""

    exact_match: ExactMatch | None = None
    samples: Natural = Field(4, description="generations shown at the end")
    suite: dict[str, Target] | None = Field(None, description="suites run on the artifact at the end: posttrain list evaluation/suite")


class Budget(Group):
    """Where the run stops; at most one is set."""

    flops: Positive | None = Field(None, description="floating-point operations of training, all models and passes")
    tokens: Positive | None = Field(None, description="tokens trained on")
    gpu_seconds: Positive | None = Field(None, description="seconds in training, times devices")


class Run(Group):
    """One training run."""

    seed: Seed = 0
    global_batch: Count = Field(64, description="examples of one optimizer step")
    max_tokens: Count = Field(8192, description="most tokens of a micro-batch")
    max_length: Count = Field(1024, description="most tokens of an example")
    max_steps: Count | None = Field(None, description="optimizer steps; wins over epochs")
    epochs: Positive | None = 1
    precision: Precision
    gradient_clip: Positive | None = Field(1.0, description="largest global gradient norm; null = off")
    limit: Count | None = Field(None, description="most rows read of a source")
    output_dir: str | None = None
    stages: list[dict[str, Any]] | None = Field(None, description="of a pipeline: {name, inputs, share, config} each")
    stages_dir: str | None = Field(None, description="where finished stages of pipelines are kept; null = outputs/stages")
    budget: Budget | None = None
    entering: list[str] | None = Field(None, description="overrides of a run that is made first, and whose artifact this one starts from")
    resume: str = Field("auto", description="auto, never, or the path of a checkpoint")
    checkpoint: Checkpoint
    log: Log
    validate_: Validate = Field(alias="validate")
    model: Model
    optimizer: Target
    scheduler: Target
    data: Data
    evaluation: Evaluation
    hardware: Hardware
    tracking: Target
    method: Target
    rollout: Target | None = Field(None, description="how answers are sampled: posttrain list rollout")
    reward: dict[str, Target] | None = Field(None, description="what answers are worth, by component: posttrain list reward")
