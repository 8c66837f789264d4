"""A user's error on a rank that does not lead is told with the rank's number."""

from posttrain.errors import ConfigError, Problem
from posttrain.runs import session
from posttrain.runs.job import train_rank


def test_another_rank_tells_of_its_error(monkeypatch, capsys):
    def train(*_, **__):
        raise ConfigError(Problem("reward.judge", "no server", "start it"))

    monkeypatch.setattr(session, "train", train)
    for name, value in {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    assert train_rank({"entering": None}) == 2
    assert "rank 1: reward.judge" in capsys.readouterr().err
