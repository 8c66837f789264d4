import errno

import pytest
import torch

from posttrain.runs.checkpoint_io import StreamingCheckpointIO


def test_round_trip(tmp_path):
    state = {"weights": torch.arange(5), "step": 3}
    StreamingCheckpointIO().save_checkpoint(state, tmp_path / "state.ckpt")
    read = StreamingCheckpointIO().load_checkpoint(tmp_path / "state.ckpt", weights_only=True)
    assert torch.equal(read["weights"], state["weights"])
    assert read["step"] == 3


@pytest.mark.parametrize("numbers", [10, 5_000_000])
def test_a_full_disk_is_an_os_error(numbers):
    # a small file is lost when it is closed, a large one while it is written
    with pytest.raises(OSError, match="No space") as caught:
        StreamingCheckpointIO().save_checkpoint({"weights": torch.zeros(numbers)}, "/dev/full")
    assert caught.value.errno == errno.ENOSPC


def test_storage_options_are_refused(tmp_path):
    with pytest.raises(TypeError, match="storage options"):
        StreamingCheckpointIO().save_checkpoint({}, tmp_path / "state.ckpt", {"key": "value"})
