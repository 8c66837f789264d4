"""Runs killed in the middle and continued by the same command, through the real command line."""

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time

import preloaded
import pytest

from posttrain.errors import ConfigError
from posttrain.runs.base_config import load_config
from posttrain.runs.records import reopen
from posttrain.runs.resume import OTHER_VERSION, differences, find_start, open_folder
from posttrain.runs.study.reuse import is_finished

STEPS = 16
LINE = [
    "method=sft", "model=nano", "data=arithmetic", "evaluation=none", "tracking=none", "hardware=cpu", "limit=300", "global_batch=8",
    f"max_steps={STEPS}", "checkpoint.every_steps=3", "validate.every_steps=4", "method.neftune_alpha=5", "data.generator.held_out=24",
]  # fmt: skip


def test_a_key_that_a_later_version_brought_is_not_guessed():
    before, now = {"method": {"name": "sft", "alpha": 5}, "seed": 1}, {"method": {"name": "sft", "scale": 0.5}, "seed": 2}
    told = {problem.where: (problem.message, problem.hint) for problem in differences(before, now)}
    assert told["method.scale"] == ("the run in output_dir has no such key, this command 0.5", OTHER_VERSION)
    assert told["method.alpha"] == ("the run in output_dir has 5, this command no such key", OTHER_VERSION)
    assert told["seed"][0] == "the run in output_dir has 1, this command 2"
    assert "version" not in told["seed"][1]


def start(folder, *extra):
    return preloaded.posttrain(*LINE, *extra, f"output_dir={folder}")


def run(folder, *extra):
    process = start(folder, *extra)
    output = "".join(process.communicate(timeout=300))
    return process.returncode, output


def steps_done(folder):
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else -1


def wait_for(folder, process, step):
    deadline = time.monotonic() + 120
    while steps_done(folder) < step and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def outcome(folder):
    """Lines of metrics.jsonl, so that a difference tells its step, and a digest of the weights."""
    weights = (folder / "artifact" / "model.safetensors").read_bytes()
    return [*(folder / "metrics.jsonl").read_text().splitlines(), hashlib.sha256(weights).hexdigest()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """By a process that starts from nothing, as a user's does; the others here are preloaded."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    command = [sys.executable, "-m", "posttrain", *LINE, f"output_dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_killed_at_random_moments_and_resumed_is_never_killed(undisturbed, tmp_path):
    folder = tmp_path / "run"
    rng = random.Random(0)
    for after in sorted(rng.sample(range(1, STEPS), 3)):
        process = start(folder)
        wait_for(folder, process, after)
        time.sleep(rng.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    code, output = run(folder)
    assert code == 0, output
    assert outcome(folder) == outcome(undisturbed)
    assert json.loads((folder / "result.json").read_text())["tokens"] == json.loads((undisturbed / "result.json").read_text())["tokens"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_tells(undisturbed, tmp_path, number, code):
    folder = tmp_path / "run"
    process = start(folder)
    wait_for(folder, process, 2)
    process.send_signal(number)
    output = "".join(process.communicate(timeout=120))
    assert process.returncode == code, output
    assert "Traceback" not in output
    stopped = json.loads((folder / "result.json").read_text())
    assert stopped["status"] == "stopped"
    assert list((folder / "checkpoints").glob(f"step-{stopped['steps']:08d}"))
    if number == signal.SIGTERM:
        assert run(folder)[0] == 0
        assert outcome(folder) == outcome(undisturbed)


def test_killed_after_its_last_evaluation_it_ends_as_if_it_were_not(undisturbed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "artifact")
    code, output = run(folder)
    assert code == 0, output
    assert outcome(folder) == outcome(undisturbed)


def test_a_finished_run_says_so(undisturbed):
    before = outcome(undisturbed)
    code, output = run(undisturbed)
    assert code == 0
    assert "is finished" in output
    assert outcome(undisturbed) == before


def test_a_finished_run_that_was_to_go_on_and_died_goes_on(undisturbed, tmp_path):
    """Whatever killed it before it had made a checkpoint of its own: what was finished is the shorter run."""
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    further = {**load_config(folder), "max_steps": STEPS + 2, "output_dir": str(folder)}
    for _ in range(2):
        assert not open_folder(further, folder).finished
    assert not is_finished(further)
    assert find_start({**further, "max_steps": STEPS}, folder).finished
    reopen(folder / "result.json")  # as when it trains
    assert not find_start({**further, "max_steps": STEPS}, folder).finished
    code, output = run(folder, f"max_steps={STEPS + 2}")
    assert code == 0, output
    ended = json.loads((folder / "result.json").read_text())
    assert (ended["status"], ended["steps"], ended["end"]["max_steps"]) == ("finished", STEPS + 2, STEPS + 2)


def test_a_run_given_another_epoch_sees_every_example_of_it(tmp_path):
    folder, line = tmp_path / "run", ["max_steps=null", "limit=20", "validate.at_start=false", "validate.every_steps=null"]
    for epochs, steps in ((1, 3), (2, 6), (3, 9)):
        code, output = run(folder, *line, f"epochs={epochs}")
        assert code == 0, output
        result = json.loads((folder / "result.json").read_text())
        assert (result["steps"], steps_done(folder), result["examples"]) == (steps, steps, 20 * epochs)


@pytest.mark.parametrize("shorter", [f"max_steps={STEPS - 1}", "epochs=0.1"])
def test_a_run_is_not_made_shorter_than_it_is(undisturbed, tmp_path, shorter):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    before = outcome(folder)
    code, output = run(folder, *(["max_steps=null"] if "epochs" in shorter else []), shorter)
    assert code == 2, output
    assert f"has come to step {STEPS}, and this run ends at" in output
    assert shorter.split("=")[0] in output
    assert outcome(folder) == before
    assert "is finished" in run(folder)[1]


def test_another_configuration_in_the_same_folder_is_refused(undisturbed):
    code, output = run(undisturbed, "optimizer.lr=0.1")
    assert code == 2
    assert "optimizer.lr" in output
    assert "resume=never" in output


def test_other_data_in_the_same_file_is_refused(tmp_path):
    data, folder = tmp_path / "rows.jsonl", tmp_path / "run"
    rows = [[json.dumps({"prompt": f"{n} + {more} =", "completion": str(n + more)}) for n in range(16)] for more in (1, 2)]
    line = [
        "method=sft", "model=nano", "data=files", f"data.train={data}", "evaluation=none", "tracking=none", "hardware=cpu", "global_batch=4",
        f"output_dir={folder}",
    ]  # fmt: skip

    def attempt(steps, *extra):
        process = preloaded.posttrain(*line, f"max_steps={steps}", *extra)
        return "".join(process.communicate(timeout=300)), process.returncode

    data.write_text("\n".join(rows[0]))
    assert attempt(2)[1] == 0
    data.write_text("\n".join(rows[1]))
    before = outcome(folder)
    for steps in (2, 4):
        output, code = attempt(steps)
        assert code == 2, output
        assert f"data.train: {data} has other contents" in output
        assert "resume=never" in output
    assert outcome(folder) == before
    assert load_config(folder)["max_steps"] == 2  # nothing was written
    asked = {**load_config(folder), "max_steps": 4}
    data.write_text("\n".join(rows[0]))
    with pytest.raises(ConfigError, match="max_steps: the run in output_dir has 2, this command 4"):
        is_finished(asked)  # of the four steps two were made
    assert "is finished (2 steps)" in attempt(2)[0]
    config = load_config(folder)
    assert config["max_steps"] == 2
    assert is_finished(config)  # as a sweep or a study asks
    data.write_text("\n".join(rows[1]))
    with pytest.raises(ConfigError, match="has other contents"):
        is_finished(config)
    data.write_text("\n".join(rows[0]))
    assert attempt(4)[1] == 0
    data.write_text("\n".join(rows[1]))
    (folder / "data.json").unlink()  # as a run that was made before there was one
    assert attempt(5)[1] == 0
    data.write_text("\n".join(rows[0]))
    assert attempt(3, "resume=never")[1] == 0


def test_another_chat_template_or_other_weights_to_start_from_are_refused(undisturbed, tmp_path):
    base, folder, template = tmp_path / "base", tmp_path / "run", tmp_path / "chat.jinja"
    shutil.copytree(undisturbed / "artifact", base)
    (base / "artifact.json").unlink()  # what is left is a plain folder
    written = (base / "chat_template.jinja").read_text()
    template.write_text(written)
    line = [part for part in LINE if part != "model=nano" and not part.startswith("max_steps")]
    line += ["model=hf", f"model.path={base}", f"model.chat_template={template}", "model/peft=lora", f"output_dir={folder}"]

    def attempt(steps):
        process = preloaded.posttrain(*line, f"max_steps={steps}")
        return "".join(process.communicate(timeout=300)), process.returncode

    assert attempt(2)[1] == 0
    template.write_text(written.replace("<|im_start|>", "<|im_start|> "))
    output, code = attempt(3)
    assert code == 2, output
    assert "model.tokenizer: the tokenizer or its chat template" in output
    template.write_text(written)
    assert attempt(3)[1] == 0

    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-4:] = b"\0\0\0\1"
    (base / "model.safetensors").write_bytes(weights)
    output, code = attempt(4)
    assert code == 2, output
    assert f"model.path: {base} holds other weights" in output


def test_a_damaged_newest_checkpoint_is_named(undisturbed, tmp_path):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    (folder / "result.json").unlink()
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    content = (newest / "state.ckpt").read_bytes()
    (newest / "state.ckpt").write_bytes(content[: len(content) // 2])
    code, output = run(folder)
    assert code == 2
    assert str(newest) in output


def test_a_checkpoint_whose_contents_changed_is_named(undisturbed, tmp_path):
    """A file of the right size whose numbers are not those that were written: it would train on, or fail much later."""
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    (folder / "result.json").unlink()
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    content = bytearray((newest / "state.ckpt").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4] = bytes(255 - byte for byte in content[middle : middle + 4])
    (newest / "state.ckpt").write_bytes(content)
    code, output = run(folder)
    assert code == 2
    assert str(newest) in output
    assert "other contents than were written" in output
