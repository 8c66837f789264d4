"""One rank of several runs, one after the other, for tests: starting processes takes longer than the runs.

`python -m tests.distributed.ranks RUNS.json`, a list of configurations; `start_ranks` forks preloaded ones. Each run gets the environment
that its process came with. What an sft's model computes on the ranks at its end is left in live.pt.
"""

import functools
import json
import os
import sys
from pathlib import Path

from posttrain.runs.threads import spin_briefly

spin_briefly()

import numpy as np  # noqa: E402
import preloaded  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from posttrain.data.tree import collate, tree_of  # noqa: E402
from posttrain.models.decoding import decoding_mode  # noqa: E402
from posttrain.models.policy import dense_head  # noqa: E402
from posttrain.runs import plots, processes, session  # noqa: E402
from posttrain.runs.compose import compose  # noqa: E402
from posttrain.runs.files import prepare_folder  # noqa: E402
from posttrain.runs.job import train_rank  # noqa: E402
from posttrain.runs.ranks import barrier  # noqa: E402
from posttrain.types import StepShare  # noqa: E402

IDS = np.arange(1, 33) * 31 % 97 + 3
LOGITS = "live.pt"


def main(arguments):
    """Train all runs; the exit code of the first that fails."""
    environment = dict(os.environ)  # a trainer forgets the group's size when it is done
    plots.loss_plot = plots.online_plot = lambda *_: False  # nobody looks at them
    session.save_run_artifact = functools.partial(save_with_logits, session.save_run_artifact)
    for config in json.loads(Path(arguments[0]).read_text()):
        prepare_folder(Path(config["output_dir"]))
        os.environ.update(environment)
        if code := train_rank(config):
            return code
        barrier()
    return 0


def start_ranks(runs, file):
    """Train `runs`, a list of overrides each, in two preloaded processes; `file` is written for them. Returns the exit code."""
    file.write_text(json.dumps([compose(overrides) for overrides in runs]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("posttrain.runs.processes.start", preloaded.start)
        return processes.run_ranks([sys.executable, "-m", "tests.distributed.ranks", str(file)], 2)


def save_with_logits(save, job, method, metrics):
    """Before the artifact is written: logits [T, V] of IDS by the model as it lies on the ranks, and by its weights gathered."""
    if job.config["method"]["name"] == "sft" and job.config["precision"] == "float32":
        sharded, gathered = logits_of(job, method)
        if job.ranks.leads:
            torch.save({"sharded": sharded, "gathered": gathered}, job.folder / LOGITS)
    return save(job, method, metrics)


@torch.no_grad()
def logits_of(job, method):
    tree = collate([tree_of([(IDS, np.ones(len(IDS)))])], StepShare(float(len(IDS)), 1, 1))
    with method.sharding.passes(method):
        hidden, _ = method.model.hidden(tree)
        sharded = hidden @ dense_head(method.model.causal_lm.get_output_embeddings()).T
    with method.sharding.gathered(method), decoding_mode(method.model):
        gathered = method.model.causal_lm(torch.from_numpy(IDS)[None]).logits[0]
    return sharded.clone(), gathered.clone()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
