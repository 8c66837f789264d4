"""A suite whose judge is a rule says so, before anything is answered."""

from typing import Any

import pytest

from posttrain.evaluation.suites import judged
from posttrain.rewards.backends.scripted import Scripted


def test_a_rule_that_judges_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delattr(judged, "asking")
    nothing: Any = None
    with pytest.raises(NameError):
        judged.judged(nothing, nothing, data="x", backend=Scripted(), against="y")
    assert "a stand-in rule does (the shorter answer wins)" in caplog.text
    assert Scripted(prefer="contains", text="x").stand_in == "an answer that contains 'x' wins"
