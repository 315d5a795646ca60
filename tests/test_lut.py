"""What is looked up is what would have been computed, to the last bit."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from geounet.inference import Predictor, Stretch, in_steps, with_validity
from geounet.lut import NO_NUMBER, look_up_input, look_up_scores
from tests.networks import random_model

SHAPES = st.tuples(*(st.integers(1, most) for most in (2, 4, 6, 6)))


@given(SHAPES, st.sampled_from([1, 2]))
def test_input_is_looked_up_into_squares_as_torch_lays_them_out(
    shape: tuple[int, ...], stem: int
) -> None:
    count, bands, rows, cols = shape
    rng = np.random.default_rng(sum(shape))
    size = (count, bands + 1, rows * stem, cols * stem)
    tiles = rng.integers(0, 255, size, dtype=np.uint8)
    tiles[:, -1] %= 2
    table = rng.integers(-9999, 9999, (bands, 257)).astype(np.int16)
    found = look_up_input(tiles, table, stem)
    plain = np.stack([table[b][tiles[:, b]] for b in range(bands)], axis=1)
    void = np.broadcast_to(table[None, :, 256, None, None], plain.shape)
    plain = np.where(tiles[:, -1:] == 0, void, plain)
    wanted = F.pixel_unshuffle(torch.from_numpy(plain), stem)
    np.testing.assert_array_equal(found.transpose(0, 3, 1, 2), wanted.numpy())


@given(SHAPES, st.sampled_from([1, 2]))
def test_scores_are_looked_up_out_of_squares_as_torch_lays_them_out(
    shape: tuple[int, ...], stem: int
) -> None:
    count, classes, rows, cols = shape
    rng = np.random.default_rng(sum(shape))
    size = (count, rows, cols, classes * stem**2)
    bits = rng.integers(0, 2**16, size, dtype=np.uint16)
    table = rng.integers(0, NO_NUMBER, 2**16, dtype=np.uint8)
    found, numbers = look_up_scores(bits, table, stem)
    wanted = F.pixel_shuffle(torch.from_numpy(table[bits].transpose(0, 3, 1, 2)), stem)
    np.testing.assert_array_equal(found, wanted.numpy())
    assert numbers
    table[bits[-1, -1, -1, -1]] = NO_NUMBER
    assert not look_up_scores(bits, table, stem)[1]


@pytest.mark.parametrize("stem", [1, 2])
@pytest.mark.parametrize("stretch", [None, Stretch(low=(20,), high=(180,))], ids=str)
def test_scores_by_table_are_the_scores(stem: int, stretch: Stretch | None) -> None:
    model = random_model(depth=1, stem=stem)
    predictor = Predictor(model, device="cpu", precision="bfloat16")
    rng = np.random.default_rng(stem)
    side = 2 * predictor.halo + 4 * predictor.stride
    image = with_validity(
        rng.integers(0, 256, (3, side, side), dtype=np.uint8),
        rng.random((side, side)) > 0.1,
    )
    window = [(slice(0, side), slice(0, side))]
    (by_table,) = predictor.scores(image, window, stretch)
    (computed,) = predictor.scores(image.float(), window, stretch)  # float32 is not
    logits = predictor.logits(image[None], stretch, whole=False)[0]
    assert torch.equal(by_table, in_steps(torch.sigmoid(logits.float())))
    # the input is the same; the logits were looked up both times
    assert torch.equal(by_table, computed)
