"""Which bands of a scene feed a model, by what the file says of them."""

from dataclasses import dataclass

import pytest

from geounet.bands import find_band, meanings, one_kind, select_bands
from geounet.errors import ModelError

RGB = ("red", "green", "blue")
RGBN = (*RGB, "nir")


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a file says of its bands."""

    descriptions: tuple[str | None, ...]
    colors: tuple[str, ...]

    @property
    def image_bands(self) -> tuple[int, ...]:
        """All but alpha."""
        return tuple(b for b, color in enumerate(self.colors, 1) if color != "alpha")


def named(*descriptions: str | None) -> Said:
    colors = ("gray", *["undefined"] * (len(descriptions) - 1))
    return Said(descriptions=descriptions, colors=colors)


def coloured(*colors: str) -> Said:
    return Said(descriptions=(None,) * len(colors), colors=colors)


def selected(
    scene: Said,
    wanted: tuple[str, ...] = RGB,
    asked: tuple[int, ...] | tuple[str, ...] | None = None,
    name: str = "the scene",
) -> tuple[int, ...]:
    return select_bands(wanted, asked, scene, model="tiny", name=name)


# What names mean ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("descriptions", "name", "meant"),
    [
        (("Red", "GREEN", " blue ", "Near-Infrared"), "", RGBN),
        (("Band 4 - red", "NIR (842 nm)", "Red Edge"), "", ("red", "nir", "rededge")),
        (("Red Edge 1", "rededge", "rededge2"), "", ("rededge071", "rededge",
                                                    "rededge075")),
        (("B04", "B03", "B02"), "", RGB),  # Sentinel-2, and Landsat made like it
        (("B02", "B03", "B04", "B08"), "", ("blue", "green", "red", "nir")),
        (("B2", "B4", "B8A"), "", ("blue", "red", "nir08")),
        (("B2", "B4", "B8"), "S2A_MSIL2A_20230101_x.tif", ("blue", "red", "nir")),
        (("SR_B2", "SR_B4", "SR_B5", "SR_B6"), "",
         ("blue", "red", "nir", "swir16")),
        (("SR_B4", "SR_B5"), "LC08_L2SP_199_x.tif", ("red", "nir")),
        (("SR_B3", "SR_B4"), "LT05_L2SP_199_x.tif", ("red", "nir")),
        (("B4",), "LE07_L1TP_x.TIF", ("nir",)),
    ],
)  # fmt: skip
def test_names_mean_what_their_makers_mean(
    descriptions: tuple[str, ...], name: str, meant: tuple[str, ...]
) -> None:
    assert tuple(meanings(named(*descriptions), name=name).values()) == meant


@pytest.mark.parametrize(
    "descriptions",
    [
        ("SR_B4", "SR_B5"),  # red to Landsat 8, near infrared to Landsat 5
        ("B1", "B2", "B3"),
        ("B05", "B06"),  # of Sentinel-2, or of Landsat made like it
        ("red and blue",),
        ("infrared", "Band 1", "dataset", "", None, "Gamma0_VV"),
    ],
)
def test_names_that_may_mean_several_things_mean_nothing(
    descriptions: tuple[str, ...],
) -> None:
    assert meanings(named(*descriptions)) == {}


def test_a_description_counts_before_the_color_of_a_display() -> None:
    false_color = Said(
        descriptions=("nir", "red", "green"), colors=("red", "green", "blue")
    )
    assert meanings(false_color) == {1: "nir", 2: "red", 3: "green"}
    assert find_band("red", false_color) == (2,)


def test_a_name_word_for_word_counts_before_what_it_means() -> None:
    scene = named("green i", "green", "B5")
    assert find_band("green", scene) == (2,)
    assert find_band("b5", scene) == (3,)
    assert find_band("red", scene) == ()
    assert find_band("green", named("green i", "green ii")) == (1, 2)


def test_a_narrow_near_infrared_will_do_where_there_is_no_other() -> None:
    assert find_band("nir", named("B8A", "B04")) == (1,)
    assert find_band("nir", named("B8A", "B08")) == (2,)


# Which bands are taken ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("scene", "wanted", "chosen"),
    [
        (coloured("gray", "undefined", "undefined", "undefined"), RGB, (1, 2, 3)),
        (coloured("alpha", "gray", "undefined", "alpha", "undefined"), RGB, (2, 3, 5)),
        (named("blue", "green", "red", "nir"), RGB, (3, 2, 1)),
        (named("blue", "green", "red", "nir"), RGBN, (3, 2, 1, 4)),
        (coloured("blue", "green", "red", "nir"), RGBN, (3, 2, 1, 4)),
        (named("nir", "red", "green", "blue"), RGB, (2, 3, 4)),
        (named("B02", "B03", "B04", "B08"), RGBN, (3, 2, 1, 4)),
        (named("red", "", "blue", "x"), RGB, (1, 2, 3)),
        (coloured("red", "green", "blue", "undefined"), RGBN, (1, 2, 3, 4)),
        (named("VV", "VH"), ("vh", "vv"), (2, 1)),
    ],
)
def test_bands_are_those_the_file_calls_so_or_the_first_ones(
    scene: Said, wanted: tuple[str, ...], chosen: tuple[int, ...]
) -> None:
    assert selected(scene, wanted) == chosen


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ((4, 2, 1), (4, 2, 1)),
        (("nir", "Green", "B"), (4, 2, 1)),
        (("red", "red", "red"), (3, 3, 3)),
    ],
)
def test_bands_are_taken_as_asked_for(
    asked: tuple[int, ...] | tuple[str, ...], chosen: tuple[int, ...]
) -> None:
    assert selected(named("blue", "green", "red", "nir"), RGB, asked) == chosen


@pytest.mark.parametrize(
    ("scene", "asked", "complaint"),
    [
        (named(None), None,
         r"^the scene has 1 image band; model tiny wants 3 \(red, green, blue\); ch"),
        (named("nir", "red", "green"), None,
         r"3 image bands, called 1 nir, 2 red, 3 green; .* such as --bands 1,2,3$"),
        (coloured("red", "green", "alpha"), None,
         r"has 2 .*1 red, 2 green.*-colorinterp_3 undefined"),
        (named(*RGBN), (1, 2), "2 bands chosen of the scene; model tiny wants 3"),
        (named(*RGBN), (1, 2, 5), "has no band 5, called 1 red.*choose .* --bands"),
        (named(*RGBN), (0, 1, 2), "has no band 0"),
        (named(None, None), RGB, "has no band red among 2 without names; model tiny"),
        (coloured("red", "green", "blue", "alpha"), (1, 2, 4), "no band 4.*is alpha"),
        (named(*RGBN), ("red", "green", "swir"), "has no band swir, called 1 red"),
        (named("red", "green i", "green ii"), ("red", "green", "red"),
         "has several bands called green, called 1 red, 2 green i, 3 green ii"),
        (named(*["x"] * 99), ("red", "green", "blue"), r"20 x, \.\.\.; model"),
    ],
)  # fmt: skip
def test_bands_that_do_not_fit_are_refused_with_what_the_file_calls_its_own(
    scene: Said, asked: tuple[int, ...] | tuple[str, ...] | None, complaint: str
) -> None:
    with pytest.raises(ModelError, match=complaint) as caught:
        selected(scene, RGB, asked)
    assert caught.value.code == "BANDS"
    assert str(caught.value).isprintable()


def test_bands_are_asked_for_by_number_or_by_name() -> None:
    assert one_kind(["1", " 2"]) == (1, 2)
    assert one_kind([3]) == (3,)
    assert one_kind(["B04", "nir "]) == ("B04", "nir")
    for bands in (["1", "red"], ["0"], [-1, 2], [], [""]):
        with pytest.raises(ValueError, match="band"):
            one_kind(bands)
