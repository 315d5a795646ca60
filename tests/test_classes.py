import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from geounet.classes import NODATA, SCORE_MAX, ClassEntry, ClassTable, classify
from geounet.errors import ConfigError, RasterError

TABLE = ClassTable(
    entries=(
        ClassEntry(id=1, name="building", colour="#ff8000", threshold=0.5),
        ClassEntry(id=4, name="water", threshold=0.25),
    )
)
EVERYWHERE = np.ones((1, 3), dtype=bool)


def scores(*bands: list[int]) -> NDArray[np.uint8]:
    return np.array(bands, dtype=np.uint8)[:, None, :]


def test_the_highest_score_that_reaches_its_threshold_wins() -> None:
    mask, best = classify(scores([200, 120, 0], [100, 130, 10]), EVERYWHERE, TABLE)
    assert mask.tolist() == [[1, 4, 0]]
    assert best.tolist() == [[200, 130, 0]]


def test_a_score_at_the_threshold_counts_and_one_below_does_not() -> None:
    half = SCORE_MAX // 2
    mask, _ = classify(scores([half, half - 1, 0], [0, 0, 0]), EVERYWHERE, TABLE)
    assert mask.tolist() == [[1, 0, 0]]


def test_of_equal_scores_the_lower_id_wins() -> None:
    mask, _ = classify(scores([200, 0, 0], [200, 0, 0]), EVERYWHERE, TABLE)
    assert mask[0, 0] == 1


@given(
    arrays(np.uint8, (2, 4, 5), elements=st.integers(0, SCORE_MAX)),
    arrays(np.bool_, (4, 5)),
)
def test_nodata_is_where_there_is_no_imagery_and_nowhere_else(
    found: NDArray[np.uint8],
    validity: NDArray[np.bool_],
) -> None:
    mask, best = classify(found, validity, TABLE)
    np.testing.assert_array_equal(mask == NODATA, ~validity)
    assert set(np.unique(mask)) <= {0, 1, 4, NODATA}
    assert (best[~validity] == 0).all()


def test_a_table_survives_its_tag() -> None:
    assert ClassTable.from_tag(TABLE.to_tag()) == TABLE


@pytest.mark.parametrize("tag", ["", "[]x", '[{"id": 1}]', '[{"name": 3, "x": 1}]'])
def test_a_tag_of_somebody_else_is_refused(tag: str) -> None:
    with pytest.raises(RasterError, match="--values"):
        ClassTable.from_tag(tag)


@pytest.mark.parametrize("values", [{}, {"a": 0}, {"a": 255}, {"a": 1, "b": 1}])
def test_ids_that_a_mask_cannot_hold_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="class ids must be distinct and from 1 to"):
        ClassTable(entries=tuple(ClassEntry(id=v, name=n) for n, v in values.items()))


def test_a_restricted_table_keeps_its_ids() -> None:
    assert TABLE.restricted_to(["water"]).entries[0].id == 4
    with pytest.raises(
        ConfigError, match="no class 'river'; there are building, water"
    ):
        TABLE.restricted_to(["river"])


def test_colours_reach_the_palette_and_nodata_is_clear() -> None:
    palette = TABLE.colormap()
    assert palette[1] == (255, 128, 0, 255)
    assert palette[NODATA][3] == 0
