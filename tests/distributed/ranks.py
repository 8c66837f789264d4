"""One rank of several runs, one after the other, for tests: starting processes takes longer than the runs."""

import json
import os
import sys
from pathlib import Path

from posttrain.runs.threads import spin_briefly

spin_briefly()

from posttrain.runs.compose import compose  # noqa: E402
from posttrain.runs.files import prepare_folder  # noqa: E402
from posttrain.runs.job import train_rank  # noqa: E402
from posttrain.runs.ranks import barrier  # noqa: E402

if __name__ == "__main__":
    environment = dict(os.environ)  # a trainer forgets the group's size when it is done
    for overrides in json.loads(Path(sys.argv[1]).read_text()):
        config = compose(overrides)
        prepare_folder(Path(config["output_dir"]))
        os.environ.update(environment)
        if code := train_rank(config):
            sys.exit(code)
        barrier()
