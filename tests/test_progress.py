"""What a person sees on stderr while the work goes on."""

import io
import sys

import pytest

from geounet.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test moves: its last entry is now."""
    times = [100.0]
    monkeypatch.setattr("geounet.progress.time.monotonic", lambda: times[-1])
    return times


def run_of(shown: Progress) -> None:
    """What `geounet.pipeline` reports of one scene."""
    shown.report("infer", 0, 1)
    for done in (50, 100, 150, 200):
        shown.report("infer", done, 200)
    shown.report("infer", 1, 1)
    shown.report("stitch", 0, 1)
    shown.report("stitch", 1, 1)


@pytest.mark.usefixtures("clock")
def test_elsewhere_than_on_a_terminal_a_stage_is_a_line_or_two(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_of(Progress())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["infer", "infer: 100 %", "stitch"]


def test_a_long_stage_is_heard_of_every_ten_seconds(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Progress()
    for second in range(0, 31, 2):
        clock.append(100.0 + second)
        shown.report("infer", second, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "infer: 0 %",
        "infer: 10 %, 10.0 of 100px, 1.00px/s, 01:30 left",
        "infer: 20 %, 20.0 of 100px, 1.00px/s, 01:20 left",
        "infer: 30 %, 30.0 of 100px, 1.00px/s, 01:10 left",
    ]


def test_words_after_the_name_of_a_stage_are_no_other_stage(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Progress()
    shown.report("train (loss 0.9)", 1, 100)
    shown.report("train (loss 0.8)", 2, 100)
    clock.append(111.0)
    shown.report("train (loss 0.7)", 3, 100)
    lines = capsys.readouterr().err.splitlines()
    later = "train (loss 0.7): 3 %, 3.00 of 100, 0.18/s, 08:53 left"
    assert lines == ["train (loss 0.9): 1 %", later]


def test_quiet_says_only_what_must_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress(quiet=True)
    run_of(shown)
    shown.say("done")
    shown.say("Error: no", always=True)
    assert capsys.readouterr().err == "Error: no\n"


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    shown = Progress()
    run_of(shown)
    shown.close()
    shown.close()
    drawn = terminal.getvalue()
    assert "infer" in drawn
    assert "stitch" in drawn
    assert "\n" not in drawn
    assert drawn.rsplit("\r", 1)[-1].strip() == ""


def test_a_stage_of_nothing_is_no_division_by_zero(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Progress().report("trace", 0, 0)
    assert capsys.readouterr().err == "trace\n"
