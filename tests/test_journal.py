import itertools
import json
import logging
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from geounet.classes import ERROR_COLOURS
from geounet.errors import OutputError
from geounet.figures import (
    GROUND,
    PARTLY,
    UNLABELLED,
    History,
    Restored,
    Sample,
    as_rgb,
    draw_curves,
    draw_restored,
    draw_samples,
    errors_of,
    lines_of,
    pictures_of,
    pixels_of,
    smoothed,
)
from geounet.journal import (
    BOARD,
    CURVES,
    LOG,
    RESTORED,
    SAMPLES,
    Journal,
    kept_lines,
)

CLASSES = {"building": "#d7301f", "water": "#2b7bba"}
KEYS = {"step", "loss", "learning_rate", "seconds", "chips_per_second"}


def write(journal: Journal, steps: range, *, every: int = 4) -> None:
    """Write steps with numbers that follow from the step, and validations."""
    for step in steps:
        journal.stepped(step, loss=1 / step, learning_rate=step / 1000, chips=4)
        if step % every == 0:
            journal.validated(step, {"east": {"building": step / 10, "water": 0.5}})


def lines(folder: Path) -> list[dict[str, Any]]:
    return [strict(row) for row in (folder / LOG).read_text().splitlines()]


def strict(row: str) -> Any:
    """Read JSON as the standard has it: without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(row, parse_constant=refuse)


def opened(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def untimed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    timed = {"seconds", "chips_per_second"}
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


@pytest.fixture
def without_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


@pytest.fixture(autouse=True)
def no_pyplot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state is shared by all figures of a process, and it may want a display."""
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)


# --- the log ------------------------------------------------------------------------


@pytest.mark.usefixtures("without_tensorboard")
def test_a_step_is_a_line_that_can_be_read_at_once(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "run", classes=CLASSES)
    journal.stepped(1, loss=0.5, learning_rate=1e-3, chips=8)
    journal.stepped(2, loss=0.25, learning_rate=2e-3, chips=8, memory=12345)
    first, second = lines(tmp_path / "run")
    assert first.keys() == KEYS
    assert second.keys() == KEYS | {"memory"}
    assert (second["step"], second["loss"], second["memory"]) == (2, 0.25, 12345)
    assert 0 < second["chips_per_second"] * second["seconds"] < 100


@pytest.mark.usefixtures("without_tensorboard")
def test_a_validation_is_a_line_with_the_scores_of_each_group(tmp_path: Path) -> None:
    scores = {"east": {"building": 0.7, "water": 0.2}, "west": {"building": 0.6}}
    Journal.open(tmp_path, classes=CLASSES).validated(40, scores)
    (line,) = lines(tmp_path)
    assert line["step"] == 40
    assert line["scores"] == scores


@pytest.mark.usefixtures("without_tensorboard")
def test_a_score_that_is_no_number_is_left_out_of_the_log(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, classes=CLASSES)
    journal.validated(1, {"east": {"building": float("nan"), "water": 0.5}})
    assert lines(tmp_path)[0]["scores"] == {"east": {"water": 0.5}}


@pytest.mark.usefixtures("without_tensorboard")
def test_a_run_that_is_taken_up_leaves_the_log_of_an_undisturbed_one(
    tmp_path: Path,
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with Journal.open(whole, classes=CLASSES) as journal:
        write(journal, range(1, 9))
    write(Journal.open(killed, classes=CLASSES), range(1, 7))
    before = (killed / LOG).read_bytes()
    with (killed / LOG).open("ab") as file:
        file.write(b'{"step": 7, "lo')
    with Journal.open(killed, classes=CLASSES, step=4) as journal:
        assert before.startswith((killed / LOG).read_bytes())
        write(journal, range(5, 9))
    assert untimed(lines(killed)) == untimed(lines(whole))
    assert len(lines(whole)) == 8 + 2
    assert (killed / CURVES).read_bytes() == (whole / CURVES).read_bytes()


@pytest.mark.usefixtures("without_tensorboard")
def test_a_new_run_does_not_go_on_in_the_log_of_another(tmp_path: Path) -> None:
    write(Journal.open(tmp_path, classes=CLASSES), range(1, 4))
    write(Journal.open(tmp_path, classes=CLASSES), range(1, 3))
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_torn_and_foreign_lines_are_left_out() -> None:
    text = b'{"step": 1}\n{"ste\n[3]\n{"else": 1}\n\xff\n{"step": 2}\n{"step": 3}\n{"st'
    assert kept_lines(text, 2) == [{"step": 1}, {"step": 2}]


# --- a full disk --------------------------------------------------------------------


@pytest.fixture
def limited() -> Iterator[Callable[[int], None]]:
    """Let no file grow beyond a size, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("without_tensorboard")
def test_a_full_disk_is_said_once_and_the_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal.open(tmp_path, classes=CLASSES)
    (tmp_path / LOG).unlink()
    (tmp_path / LOG).symlink_to("/dev/full")
    (tmp_path / CURVES).mkdir()
    write(journal, range(1, 9))
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(said) == 2
    assert f"{LOG} cannot be written (No space left on device)" in said[0]
    assert f"{CURVES} cannot be written" in said[1]
    assert not list(tmp_path.glob("*partial*"))


@pytest.mark.usefixtures("without_tensorboard")
def test_half_a_line_is_taken_back_and_the_next_one_stands_alone(
    tmp_path: Path, limited: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal.open(tmp_path, classes=CLASSES)
    journal.stepped(1, loss=1.0, learning_rate=1e-3, chips=4)
    size = (tmp_path / LOG).stat().st_size
    limited(size + 10)
    journal.stepped(2, loss=1.0, learning_rate=1e-3, chips=4)
    assert (tmp_path / LOG).stat().st_size == size
    assert "the training goes on without it" in caplog.text
    limited(resource.RLIM_INFINITY)
    journal.stepped(3, loss=1.0, learning_rate=1e-3, chips=4)
    assert [line["step"] for line in lines(tmp_path)] == [1, 3]


def test_what_tensorboard_cannot_write_does_not_stop_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / BOARD).touch()  # a file where a folder is wanted
    with Journal.open(tmp_path, classes=CLASSES) as journal:
        write(journal, range(1, 3))
    assert caplog.text.count("cannot be written") == 1
    assert len(lines(tmp_path)) == 2


def test_a_folder_that_cannot_be_made_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(OutputError, match="cannot make the output folder"):
        Journal.open(tmp_path / "run", classes=CLASSES)


# --- TensorBoard --------------------------------------------------------------------


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / BOARD)).Reload()


def test_tensorboard_reads_every_number_back(tmp_path: Path) -> None:
    with Journal.open(tmp_path, classes=CLASSES) as journal:
        write(journal, range(1, 5), every=2)
        journal.samples(4, [chip()])
    found = events(tmp_path)
    loss = [(e.step, e.value) for e in found.Scalars("loss")]
    assert loss == [(n, pytest.approx(1 / n)) for n in range(1, 5)]
    iou = [(e.step, e.value) for e in found.Scalars("IoU/east/building")]
    assert iou == [(2, pytest.approx(0.2)), (4, pytest.approx(0.4))]
    (picture,) = found.Images("samples")
    assert (picture.step, picture.width) == (4, opened(tmp_path / SAMPLES).shape[1])


def test_tensorboard_forgets_the_steps_that_are_done_again(tmp_path: Path) -> None:
    with Journal.open(tmp_path, classes=CLASSES) as journal:
        write(journal, range(1, 7))
    with Journal.open(tmp_path, classes=CLASSES, step=4) as journal:
        write(journal, range(5, 8))
    steps = [event.step for event in events(tmp_path).Scalars("loss")]
    assert steps == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.usefixtures("without_tensorboard")
def test_without_tensorboard_the_run_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), Journal.open(tmp_path, classes=CLASSES) as run:
        write(run, range(1, 4))
    (said,) = [record.getMessage() for record in caplog.records]
    assert "pip install 'geounet[tensorboard]'" in said
    assert not (tmp_path / BOARD).exists()


# --- curves -------------------------------------------------------------------------


def history(steps: int, *groups: str) -> History:
    made = History()
    for step in range(1, steps + 1):
        made.add({"step": step, "loss": 1 / step, "learning_rate": 1e-3})
    for step in (10, 20):
        made.add({"step": step, "scores": {g: {"water": step / 40} for g in groups}})
    return made


def test_curves_show_what_was_logged_with_names_on_every_axis() -> None:
    figure: Any = draw_curves(history(30, "east"), CLASSES, measure="IoU")
    loss, rate, iou = figure.axes
    names = [ax.get_ylabel() for ax in figure.axes]
    assert names == ["loss", "learning rate", "held-out IoU"]
    assert iou.get_xlabel() == "step"
    np.testing.assert_array_equal(loss.lines[0].get_xdata(), np.arange(1, 31))
    np.testing.assert_allclose(loss.lines[0].get_ydata(), 1 / np.arange(1, 31))
    (line,) = iou.lines
    assert (line.get_label(), line.get_color()) == ("water", CLASSES["water"])
    assert np.asarray(line.get_data()).tolist() == [[10, 20], [0.25, 0.5]]
    assert set(rate.lines[0].get_ydata()) == {1e-3}


def test_of_several_groups_the_mean_stands_out() -> None:
    scores = [
        (5, {"east": {"water": 0.2, "road": 0.4}, "west": {"water": 0.6}}),
        (9, {"west": {"water": 0.8}}),
    ]
    means = lines_of(scores, ["east", "west"])
    assert means == {"water": [(5, 0.4), (9, 0.8)], "road": [(5, 0.4)]}
    figure = draw_curves(history(30, "east", "west"), CLASSES, measure="IoU")
    labelled = [ln for ln in figure.axes[2].lines if ln.get_label() == "water"]
    assert len(figure.axes[2].lines) == 3
    assert len(labelled) == 1


def test_scores_that_are_of_no_class_have_colours_of_their_own() -> None:
    made = history(30)
    made.add({"step": 5, "scores": {"east": {"corrupted": 17.0, "restored": 20.0}}})
    figure = draw_curves(made, CLASSES, measure="PSNR, dB")
    colours = [line.get_color() for line in figure.axes[2].lines]
    assert len(colours) == len({*colours, *CLASSES.values()} - {*CLASSES.values()}) == 2
    assert figure.axes[2].get_ylabel() == "held-out PSNR, dB"


def test_a_validation_without_scores_is_drawn_as_nothing() -> None:
    assert not draw_curves(history(30), CLASSES, measure="IoU").axes[2].lines


@pytest.mark.parametrize("count", [1, 3, 200])
def test_smoothing_is_the_mean_of_the_losses_around(count: int) -> None:
    losses = np.random.default_rng(0).random(count)
    reach = max(int(0.05 * count) // 2, 1)
    expected = [losses[max(i - reach, 0) : i + reach + 1].mean() for i in range(count)]
    np.testing.assert_allclose(smoothed(losses), expected)


@pytest.mark.usefixtures("without_tensorboard")
def test_a_run_without_held_out_ground_has_curves_when_it_ends(tmp_path: Path) -> None:
    with Journal.open(tmp_path, classes=CLASSES) as journal:
        journal.stepped(1, loss=1.0, learning_rate=1e-3, chips=4)
        assert not (tmp_path / CURVES).exists()
    assert (tmp_path / CURVES).stat().st_size > 1000


@pytest.mark.usefixtures("without_tensorboard")
def test_a_run_of_no_step_draws_nothing(tmp_path: Path) -> None:
    with Journal.open(tmp_path, classes=CLASSES) as journal:
        journal.samples(0, [])
        journal.restored(0, [])
    assert [path.name for path in tmp_path.iterdir()] == [LOG]


# --- samples ------------------------------------------------------------------------


def chip(*, known: float = 1.0) -> Sample:
    """Of 64 px: two classes in stripes, found two pixels to the right of the truth."""
    rng = np.random.default_rng(0)
    cols = np.arange(64)
    row = np.stack([cols % 32 < 8, (cols % 32 >= 16) & (cols % 32 < 24)])
    present = row[:, None].repeat(64, axis=1)
    sure = np.zeros((2, 64, 64), dtype=bool)
    sure[:, : int(64 * known)] = True
    return Sample(
        name="east",
        pixels=rng.uniform(0, 255, (3, 64, 64)).astype(np.float32),
        present=present & sure,
        known=sure,
        found=np.roll(present, 2, axis=2),
    )


def pixels_like(picture: NDArray[np.uint8], colour: str) -> NDArray[np.bool_]:
    return np.asarray((picture == tuple(bytes.fromhex(colour[1:]))).all(axis=2))


def test_errors_are_painted_where_truth_and_answer_differ() -> None:
    sample = chip(known=0.5)
    errors = errors_of(as_rgb(sample.pixels), sample)
    present, found = sample.present, sample.found
    right = (present & found).any(axis=0)
    false = (found & ~present & sample.known).any(axis=0)
    missed = (present & ~found).any(axis=0)
    painted = {kind: pixels_like(errors, c) for kind, c in ERROR_COLOURS.items()}
    assert (painted["true"] == right).all()
    assert (painted["false"] == false).all()
    assert (painted["missed"] == missed & ~false).all()
    assert [painted[kind][:32].any() for kind in painted] == [True] * 3
    assert not any(painted[kind][32:].any() for kind in painted)  # nobody labelled it


def test_unlabelled_ground_does_not_look_like_ground_without_a_class() -> None:
    _, truth, found, errors = pictures_of(chip(known=0.5), CLASSES)
    ground = "#" + bytes(GROUND).hex()
    assert pixels_like(truth, ground)[:32].mean() == 0.5
    assert not pixels_like(truth, ground)[32:].any()
    for picture in (truth, errors):
        stripes = [pixels_like(picture, colour) for colour in UNLABELLED.colours]
        assert np.logical_or(*stripes)[32:].all()
        assert all(0.2 < stripe[32:].mean() < 0.8 for stripe in stripes)
    assert pixels_like(found, CLASSES["water"])[32:].any()  # what was found is shown


def test_ground_that_is_labelled_for_some_classes_has_a_look_of_its_own() -> None:
    sample = chip()
    sample.known[1] = sample.present.any(axis=0)
    _, truth, _, _ = pictures_of(sample, CLASSES)
    partly = [pixels_like(truth, colour) for colour in PARTLY.colours]
    np.testing.assert_array_equal(np.logical_or(*partly), ~sample.present.any(axis=0))
    legend = draw_samples([sample], CLASSES).legends[0]
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [
        "building", "water", "none of them", "true", "missed", "false",
        "labelled for some classes",
    ]  # fmt: skip


@pytest.mark.usefixtures("without_tensorboard")
def test_a_sheet_of_samples_is_a_small_picture_in_the_colours_of_the_classes(
    tmp_path: Path,
) -> None:
    with Journal.open(tmp_path, classes=CLASSES) as journal:
        journal.samples(10, [chip(), chip(known=0.5)] * 2)
        first = (tmp_path / SAMPLES).read_bytes()
        journal.samples(10, [chip(), chip(known=0.5)] * 2)
    assert (tmp_path / SAMPLES).read_bytes() == first
    assert len(first) < 800_000
    sheet = opened(tmp_path / SAMPLES).astype(int)
    for colour in [*CLASSES.values(), *ERROR_COLOURS.values()]:
        off = np.abs(sheet - tuple(bytes.fromhex(colour[1:]))).max(axis=2)
        assert (off <= 5).sum() > 500, colour


def test_a_sheet_has_a_row_a_chip_and_not_too_many() -> None:
    assert len(draw_samples([chip()] * 3, CLASSES).axes) == 3 * 4
    assert len(draw_samples([chip()] * 30, CLASSES).axes) == 8 * 4


def test_imagery_of_one_band_is_shown_in_grey_and_of_four_as_its_first_three() -> None:
    pixels = np.random.default_rng(0).uniform(0, 255, (4, 5, 6)).astype(np.float32)
    assert (as_rgb(pixels) == as_rgb(pixels[:3])).all()
    grey = as_rgb(pixels[:1])
    assert grey.shape == (5, 6, 3)
    assert (grey == grey[..., :1]).all()


@pytest.mark.usefixtures("without_tensorboard")
def test_restored_chips_stand_beside_what_they_were(tmp_path: Path) -> None:
    pixels = chip().pixels
    sample = Restored(
        name="east",
        corrupted=pixels,
        restored=pixels * np.float32(0.5),
        original=pixels * 0,
        corrupted_psnr=17.04,
        restored_psnr=25.96,
    )
    figure = draw_restored([sample, sample])
    titles = [ax.get_title() for ax in figure.axes[:3]]
    assert titles == ["corrupted, 17.0 dB", "restored, 26.0 dB", "original"]
    shown = [np.asarray(ax.images[0].get_array()).mean() for ax in figure.axes[:3]]
    assert shown == pytest.approx([127, 63, 0], abs=3)
    Journal.open(tmp_path, classes={}).restored(5, [sample])
    assert opened(tmp_path / RESTORED).std() > 50


def test_no_text_of_a_picture_lies_on_another() -> None:
    """Axes names, numbers and legends, as they are drawn."""
    figure = draw_curves(history(500, "east", "west"), CLASSES, measure="IoU")
    pixels_of(figure)
    for ax in figure.axes:
        box = ax.get_tightbbox()
        assert box is not None
        others = [o.get_tightbbox() for o in figure.axes if o is not ax]
        assert not any(other and box.overlaps(other) for other in others)
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1


# --- colours ------------------------------------------------------------------------

# Machado, Oliveira and Fernandes (2009, https://doi.org/10.1109/TVCG.2009.113), full
# severity: what protanopes, deuteranopes and tritanopes see, in linear RGB.
EYES = {
    "most": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)


def seen(colour: str, eye: str) -> NDArray[np.float64]:
    """A colour in CIELAB, where distances are about as large as they look."""
    rgb = np.frombuffer(bytes.fromhex(colour[1:]), dtype=np.uint8) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ (np.array(EYES[eye]) @ linear).clip(0, 1) / TO_XYZ.sum(axis=1)
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = root
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eye", EYES)
def test_kinds_of_errors_are_told_apart_by_every_eye(eye: str) -> None:
    for one, other in itertools.combinations(ERROR_COLOURS.values(), 2):
        assert np.linalg.norm(seen(one, eye) - seen(other, eye)) > 30
