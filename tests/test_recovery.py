"""What follows a failure, by its code; and when an archive is given up."""

import errno
from types import SimpleNamespace
from typing import Any

import pytest
from distributed.scheduler import KilledWorker
from hypothesis import given
from hypothesis import strategies as st

from geounet.errors import OutputError, RasterError
from geounet.recovery import (
    BACKOFF,
    KINDS,
    SMALLEST,
    TRIES,
    Breaker,
    code_of_machine,
    failure_of,
    kind_of,
    next_step,
)


def action(
    code: str, *, tries: int = 1, reduction: int = 0, alone: bool = False
) -> str:
    return next_step(code, tries=tries, reduction=reduction, alone=alone).action


def test_a_code_that_nobody_knows_is_the_scenes_own_fault() -> None:
    assert kind_of("NOT_TIFF") == kind_of("NEVER_HEARD_OF") == "permanent"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("NOT_TIFF", "quarantine"),
        ("INPUT_MISSING", "fail"),
        ("BUG", "fail"),
        ("IO_ERROR", "again"),
        ("DEVICE_SICK", "again"),
        ("OUT_OF_MEMORY", "smaller"),
        ("WORKER_DIED", "alone"),
        ("TIMEOUT", "alone"),
        ("DISK_FULL", "stop"),
        ("MODEL_MISSING", "stop"),
    ],
)
def test_what_follows_a_first_failure(code: str, expected: str) -> None:
    assert action(code) == expected


def test_transient_trouble_is_tried_three_times_ever_later() -> None:
    steps = [next_step("IO_ERROR", tries=n, reduction=0, alone=False) for n in (1, 2)]
    for step, pause in zip(steps, BACKOFF, strict=False):
        assert pause <= step.delay <= 1.5 * pause
    assert action("IO_ERROR", tries=TRIES) == "fail"


def test_a_sick_device_is_no_reason_to_wait() -> None:
    assert next_step("DEVICE_SICK", tries=1, reduction=0, alone=False).delay == 0


def test_memory_is_asked_for_less_and_less_until_there_is_no_less() -> None:
    assert action("OUT_OF_MEMORY", reduction=SMALLEST - 1) == "smaller"
    assert action("OUT_OF_MEMORY", reduction=SMALLEST) == "fail"


def test_what_kills_its_process_alone_too_is_quarantined() -> None:
    assert action("WORKER_DIED", alone=True) == "quarantine"


@given(
    code=st.sampled_from([*KINDS, "NOT_TIFF"]),
    reduction=st.integers(0, 10),
    alone=st.booleans(),
)
def test_every_failure_comes_to_an_end(code: str, reduction: int, alone: bool) -> None:
    for tries in range(1, 20):
        step = next_step(code, tries=tries, reduction=reduction, alone=alone)
        if step.action == "smaller":
            reduction += 1
        elif step.action == "alone":
            alone = True
        elif step.action != "again":
            return
    pytest.fail(f"{code} is tried for ever")


# --- the breaker ------------------------------------------------------------------


def trips_after(codes: list[str]) -> int | None:
    breaker = Breaker()
    for number, code in enumerate(codes, start=1):
        if breaker.note(code):
            return number
    return None


def test_twenty_alike_from_the_start_trip_it() -> None:
    assert trips_after(["BANDS"] * 30) == 20


def test_fifty_in_a_row_trip_it_later() -> None:
    assert trips_after(["", *["BANDS"] * 60]) == 51


def test_one_good_scene_in_between_does_not() -> None:
    assert trips_after((["BANDS"] * 19 + [""]) * 10) is None


def test_different_troubles_do_not_add_up() -> None:
    assert trips_after(["BANDS", "NOT_TIFF"] * 100) is None


# --- what was it ------------------------------------------------------------------


def test_our_own_errors_keep_their_code_and_words() -> None:
    failure = failure_of(RasterError("a.tif: is empty", code="INPUT_EMPTY"))
    assert (failure.code, failure.message) == ("INPUT_EMPTY", "a.tif: is empty")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "DISK_FULL"),
        (OSError(errno.EMFILE, "Too many open files"), "FD_LIMIT"),
        (OSError(errno.ESTALE, "Stale file handle"), "IO_ERROR"),
        (MemoryError(), "OUT_OF_MEMORY"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "OUT_OF_MEMORY"),
        (RuntimeError("CUDA error: device-side assert triggered"), "DEVICE_SICK"),
        (RuntimeError("CUDA error: an illegal memory access"), "DEVICE_SICK"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "OUT_OF_MEMORY"),
        (KeyError("x"), "BUG"),
        (ValueError("a\nb"), "BUG"),
    ],
)
def test_what_others_raise_gets_a_code(error: Exception, code: str) -> None:
    failure = failure_of(error)
    assert failure.code == code
    assert "\n" not in failure.message


def test_what_a_machine_lacks_is_told_from_what_is_wrong_with_a_file() -> None:
    assert code_of_machine(OSError(errno.EMFILE, "")) == "FD_LIMIT"
    assert code_of_machine(ValueError("Stale file handle (os error 116)")) == "IO_ERROR"
    assert code_of_machine(OSError(errno.ENOENT, "No such file")) is None
    assert code_of_machine(ValueError("header too large")) is None


def test_workers_that_died_with_a_task_are_known() -> None:
    last: Any = SimpleNamespace(address="tcp://127.0.0.1:1")
    failure = failure_of(KilledWorker("infer-1", last, 3))
    assert failure.code == "WORKER_DIED"
    assert "all those workers died while running it" in failure.message


def test_the_cause_says_what_it_was_where_the_error_does_not() -> None:
    def wrapped() -> None:
        try:
            raise OutputError("disk is full", code="DISK_FULL")
        except OutputError as error:
            raise RuntimeError("it went wrong") from error

    with pytest.raises(RuntimeError) as caught:
        wrapped()
    assert failure_of(caught.value).code == "DISK_FULL"
