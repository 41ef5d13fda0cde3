"""Long phases show where they are, and nobody who does not want bars has them."""

from __future__ import annotations

import logging
import time

import pytest
from transformers.utils import logging as transformers_logging

from gradiend_hub.progress import counted, listening, progress, shown, tell, tick

logger = logging.getLogger("gradiend_hub.test")


@pytest.fixture(autouse=True)
def bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests, or the environment, may have turned them off."""
    monkeypatch.setattr(transformers_logging, "_tqdm_active", True)


def slow(what: str) -> list[int]:
    items = []
    for item in progress(range(3), what):
        time.sleep(0.6)  # bars come after a second
        items.append(item)
    return items


def test_a_bar_after_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    assert slow("encoding") == [0, 1, 2]
    assert "encoding" in capsys.readouterr().err
    assert list(progress(range(3), "quick")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_no_bar_where_none_is_wanted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with shown(False), shown(True):
        slow("encoding")
        tell(logger, "scope")
    monkeypatch.setattr(transformers_logging, "_tqdm_active", False)  # `disable_progress_bar()`
    slow("encoding")
    assert capsys.readouterr().err == ""


def test_what_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    tick()  # nothing counts
    with counted("strengths"):
        for _ in range(3):
            time.sleep(0.6)
            tick()
    assert "strengths: 3" in capsys.readouterr().err


def test_what_is_told(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    tell(logger, "%d tensors", 3)
    assert capsys.readouterr().err == "3 tensors\n"
    with caplog.at_level(logging.INFO):  # somebody reads the log
        tell(logger, "%d tensors", 4)
    assert capsys.readouterr().err == ""
    assert caplog.messages == ["4 tensors"]


def test_arguments_can_be_parsed() -> None:
    """The idiom of transformers' scripts."""
    from transformers import HfArgumentParser

    from gradiend_hub import GradiendTrainingArguments

    (args,) = HfArgumentParser(GradiendTrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", "out", "--solver", "ridge", "--learning_rates", "0.1", "0.2", "--use_cpu", "True"]
    )
    assert (args.solver, args.learning_rates, args.report_to) == ("ridge", [0.1, 0.2], [])


def test_a_listener_gets_every_count_and_no_bar_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[tuple[str, int, int | None]] = []
    with listening(lambda *count: heard.append(count)), shown(False):  # a listener wants to know, whatever is shown
        with counted("strengths", total=4):
            tick()
            assert list(progress("ab", "encoding")) == ["a", "b"]
            tick(3)
        assert list(progress(iter("a"), "reading")) == ["a"]
    assert heard == [
        ("strengths", 0, 4), ("strengths", 1, 4),
        ("encoding", 0, 2), ("encoding", 1, 2), ("encoding", 2, 2),
        ("strengths", 4, 4),
        ("reading", 0, None), ("reading", 1, None),
    ]  # fmt: skip
    slow("encoding")  # afterwards as before
    assert "encoding" in capsys.readouterr().err


def test_a_total_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with counted("strengths", total=7):
        for _ in range(3):
            time.sleep(0.6)
            tick()
    assert "3/7" in capsys.readouterr().err
