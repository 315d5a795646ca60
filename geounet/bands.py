"""Which bands of a scene feed a model: by number, or by what the file calls them.

A file may call its bands anything. What a name means is known of the common names of
STAC (https://github.com/stac-extensions/eo), of GDAL's color interpretations, of other
ways to write these, and of the band numbers of Sentinel-2 and Landsat where these can
be nothing else: band 4 is near infrared to Landsat 5 and red to Landsat 8, so there the
name of the file, or a band that only the one has, must tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from geounet.errors import ModelError
from geounet.progress import printable

MEANINGS: Mapping[str, tuple[str, ...]] = {
    "coastal": ("coastal blue", "coastal aerosol", "ultra blue"),
    "blue": ("b",),
    "green": ("g",),
    "yellow": (),
    "red": ("r",),
    "rededge": ("red edge",),
    "rededge071": ("rededge1", "red edge 1"),
    "rededge075": ("rededge2", "red edge 2"),
    "rededge078": ("rededge3", "red edge 3"),
    "nir": ("n", "near infrared", "nearinfrared", "near ir", "nir1"),
    "nir08": ("nir narrow", "narrow nir"),
    "nir09": (),
    "cirrus": (),
    "swir": (),
    "swir16": ("swir1", "swir 1"),
    "swir22": ("swir2", "swir 2"),
    "lwir": ("tir", "thermal"),
    "pan": ("panchromatic",),
}
"""Names that bands have in common, and other ways to write them."""
_SENTINEL_2 = {
    "1": "coastal", "2": "blue", "3": "green", "4": "red", "5": "rededge071",
    "6": "rededge075", "7": "rededge078", "8": "nir", "8a": "nir08", "9": "nir09",
    "10": "cirrus", "11": "swir16", "12": "swir22",
}  # fmt: skip
_HARMONIZED = {"01": "coastal", "02": "blue", "03": "green", "04": "red"}
_OLI = {
    "1": "coastal", "2": "blue", "3": "green", "4": "red", "5": "nir",
    "6": "swir16", "7": "swir22", "8": "pan", "9": "cirrus",
}  # fmt: skip
_TM = {
    "1": "blue", "2": "green", "3": "red", "4": "nir", "5": "swir16", "7": "swir22"
}  # fmt: skip
_SCENES = (
    (re.compile(r"s2[a-d]_|t\d\d[a-z]{3}_\d{8}t\d{6}"), _SENTINEL_2),
    (re.compile(r"l[oc]0[89]_"), _OLI),
    (re.compile(r"l[tem]0[457]_"), _TM),
)
"""How a product of a satellite is called, and what its band numbers mean."""
_NUMBERED = re.compile(r"(?:(sr) )?b ?(\d{1,2}a?)(?!\d)")
_APART = re.compile(r"[\s_:;,.()/+-]+")


def one_kind(bands: Sequence[object]) -> tuple[int, ...] | tuple[str, ...]:
    """Return bands that were asked for as numbers from 1, or as names.

    Raises:
        ValueError: they are both, a number is below 1, or there are none.
    """
    texts = [str(band).strip() for band in bands]
    numbers = [int(text) for text in texts if re.fullmatch(r"-?\d+", text)]
    if not texts or not all(texts):
        raise ValueError("name at least one band, and none by nothing")
    if any(number < 1 for number in numbers):
        raise ValueError("bands count from 1")
    if not numbers:
        return tuple(texts)
    if len(numbers) < len(texts):
        raise ValueError("give all bands by number or all by name")
    return tuple(numbers)


class Bands(Protocol):
    """What is asked of a scene; `geounet.raster.Scene` has it."""

    @property
    def descriptions(self) -> tuple[str | None, ...]:
        """What the file says of each band."""
        ...

    @property
    def colors(self) -> tuple[str, ...]:
        """One a band, as GDAL names them."""
        ...

    @property
    def image_bands(self) -> tuple[int, ...]:
        """Bands that hold an image, counted from 1."""
        ...


def called(scene: Bands, bands: Sequence[int]) -> list[str]:
    """Return what a file calls some of its bands: its words, or else their colors."""
    return [scene.descriptions[b - 1] or scene.colors[b - 1] for b in bands]


def meanings(scene: Bands, *, name: str = "") -> dict[int, str]:
    """Return what is known of each image band, by its number: a key of `MEANINGS`.

    A band's description counts before its color, which may be that of a display.

    Args:
        scene: the scene.
        name: of the file; that of a product tells what its band numbers mean.
    """
    words = {b: _words(scene.descriptions[b - 1] or "") for b in scene.image_bands}
    numbers = _numbers_of(words.values(), name.casefold())
    found = {}
    for band, text in words.items():
        meant = _meaning(text, numbers) or _meaning(scene.colors[band - 1], {})
        if meant:
            found[band] = meant
    return found


def _words(description: str) -> str:
    """Return a description in small letters, with single spaces between words."""
    return _APART.sub(" ", description.casefold()).strip()


def _numbers_of(descriptions: Iterable[str], name: str) -> Mapping[str, str]:
    """Return what the numbers in band names mean, as far as that is certain."""
    for called_so, numbers in _SCENES:
        if called_so.match(name):
            return numbers
    numbered = [n for n in map(_NUMBERED.match, descriptions) if n]
    if any(n[2] == "8a" for n in numbered):
        return _SENTINEL_2
    if any(n.groups() == ("sr", "6") for n in numbered):
        return _OLI  # the older ones have no surface reflectance of band 6
    if any(n[2] == "08" for n in numbered):
        return _SENTINEL_2
    return _HARMONIZED  # written with two digits: Sentinel-2, or Landsat made like it


def _meaning(words: str, numbers: Mapping[str, str]) -> str:
    """Return what a name means, or nothing where it is not known for certain."""
    if words in _OF_NAME:
        return _OF_NAME[words]
    told, left = set(), f" {words} "
    for name in _LONGEST_FIRST:
        if f" {name} " in left:
            told.add(_OF_NAME[name])
            left = left.replace(f" {name} ", " ")
    if len(told) == 1:
        return told.pop()
    numbered = _NUMBERED.match(words)
    if told or not numbered:
        return ""
    number = numbered[2]
    return numbers.get(number, "") or numbers.get(number.lstrip("0"), "")


_OF_NAME = {
    name: meaning for meaning, others in MEANINGS.items() for name in (meaning, *others)
}
_LONGEST_FIRST = sorted((n for n in _OF_NAME if len(n) > 1), key=len, reverse=True)


def find_band(wanted: str, scene: Bands, *, name: str = "") -> tuple[int, ...]:
    """Return the bands of a scene that a name may mean: one, none, or several.

    What the file says word for word counts before what it means.
    """
    words = _words(wanted)
    same = [b for b in scene.image_bands if _words(_said(scene, b)) == words]
    if same:
        return tuple(same)
    known, meant = meanings(scene, name=name), _meaning(words, {}) or words
    found = tuple(b for b, meaning in known.items() if meaning == meant)
    if not found and meant == "nir":  # Landsat's, and the narrow one of Sentinel-2
        return tuple(b for b, meaning in known.items() if meaning == "nir08")
    return found


def _said(scene: Bands, band: int) -> str:
    return scene.descriptions[band - 1] or ""


def select_bands(
    wanted: Sequence[str],
    asked: Sequence[int] | Sequence[str] | None,
    scene: Bands,
    *,
    model: str,
    name: str = "the scene",
) -> tuple[int, ...]:
    """Return the 1-based bands of a scene to feed a model, in the model's order.

    Unless they are asked for, bands are those that the file calls as the model does;
    where it does not name all of these, the first ones, unless it calls one of them
    something else.

    Args:
        wanted: the names of the model's bands.
        asked: numbers or names.
        scene: the scene.
        model: the name of the model.
        name: what to call the scene.

    Raises:
        ModelError: the scene has too few bands, lacks one that was asked for, or calls
            them otherwise.
    """
    if asked is not None:
        check_count(wanted, asked, model=model, name=name)
        return _asked_for(wanted, asked, scene, model=model, name=name)
    named = [find_band(band, scene, name=name) for band in wanted]
    chosen = tuple(found[0] for found in named if len(found) == 1)
    if len(set(chosen)) == len(wanted):
        return chosen
    first = scene.image_bands[: len(wanted)]
    if len(first) < len(wanted):
        raise _misfit(wanted, scene, model=model, name=name)
    known = meanings(scene, name=name)
    if any(
        _contradicts(known.get(b, ""), w) for b, w in zip(first, wanted, strict=True)
    ):
        raise _misfit(wanted, scene, model=model, name=name, first=first)
    return first


def _contradicts(found: str, wanted: str) -> bool:
    """Tell whether a band is known to be another than the model wants."""
    meant = _meaning(_words(wanted), {})
    alike = {found, meant} == {"nir", "nir08"}
    return bool(found and meant) and found != meant and not alike


def check_count(
    wanted: Sequence[str],
    asked: Sequence[int] | Sequence[str],
    *,
    model: str,
    name: str = "a scene",
) -> None:
    """Refuse more or fewer bands than a model wants.

    Raises:
        ModelError: there are not as many.
    """
    if len(asked) != len(wanted):
        raise ModelError(
            f"{len(asked)} bands chosen of {name}; {_wants(model, wanted)}",
            code="BANDS",
        )


def _asked_for(
    wanted: Sequence[str],
    asked: Sequence[int] | Sequence[str],
    scene: Bands,
    *,
    model: str,
    name: str,
) -> tuple[int, ...]:
    """Return the numbers of bands that were asked for, by number or by name."""
    chosen = []
    for band in asked:
        found = (band,) if isinstance(band, int) else find_band(band, scene, name=name)
        if len(found) != 1 or found[0] not in scene.image_bands:
            problem = f"several bands called {band}" if found[1:] else f"no band {band}"
            listed = _listed(scene) or f" among {len(scene.image_bands)} without names"
            raise ModelError(
                f"{name} has {printable(problem)}{listed}; "
                f"{_wants(model, wanted)}; choose others with --bands"
                + _if_alpha(scene),
                code="BANDS",
            )
        chosen.append(found[0])
    return tuple(chosen)


def _misfit(
    wanted: Sequence[str],
    scene: Bands,
    *,
    model: str,
    name: str,
    first: Sequence[int] = (),
) -> ModelError:
    """Return the error about a scene whose bands are too few, or others."""
    count = len(scene.image_bands)
    by_number = f", such as --bands {','.join(map(str, first))}" if first else ""
    return ModelError(
        f"{name} has {count} image band{'s' * (count != 1)}{_listed(scene)}; "
        f"{_wants(model, wanted)}; choose others with --bands{by_number}"
        + _if_alpha(scene),
        code="BANDS",
    )


def _wants(model: str, wanted: Sequence[str]) -> str:
    return f"model {model} wants {len(wanted)} ({', '.join(wanted)})"


_LISTED = 20  # bands in a message


def _listed(scene: Bands) -> str:
    """Return what a file calls its bands, for a message; nothing if it does not say."""
    bands = scene.image_bands
    names = [
        f"{band} {printable(text)}"
        for band, text in zip(bands, called(scene, bands), strict=True)
        if text not in {"undefined", "gray"}
    ]
    more = ", ..." * (len(names) > _LISTED)
    return f", called {', '.join(names[:_LISTED])}{more}" if names else ""


def _if_alpha(scene: Bands) -> str:
    """Return what to do about a band that GDAL may have taken for alpha."""
    if "alpha" not in scene.colors:
        return ""
    alpha = scene.colors.index("alpha") + 1
    return (
        f" (band {alpha} is alpha; if it is an image, run gdal_edit.py "
        f"-colorinterp_{alpha} undefined)"
    )
