"""What a recipe may say of how a class becomes features."""

from __future__ import annotations

from dataclasses import fields
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from geounet.centrelines import LineRule
from geounet.errors import ConfigError
from geounet.outlining import FeatureRule


class FeatureTable(BaseModel):
    """``[features.NAME]``: how one class becomes features.

    Polygons or lines: the keys of the other kind are refused, not ignored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    geometry: Literal["polygon", "line"] = "polygon"
    """Areas as they are, or the centrelines of what is long and narrow."""

    min_area: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Square metres; smaller features are dropped."""
    min_hole: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Square metres; smaller holes are filled."""
    simplify: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Metres that an outline may move; neighbours stay neighbours."""
    smooth: bool = False
    """Round the steps of outlines, within half a pixel."""
    regularize: bool = False
    """Square outlines, as those of buildings."""
    connectivity: Literal[4, 8] = 4
    """8 makes one feature of what touches at corners."""

    max_width: float = Field(60.0, gt=0, allow_inf_nan=False)
    """Metres; what is wider is a square and has no centreline."""
    min_length: float = Field(20.0, ge=0, allow_inf_nan=False)
    """Metres; shorter networks are dropped."""
    gap: float = Field(12.0, ge=0, allow_inf_nan=False)
    """Metres; longest gap between two ends that is bridged."""
    gap_aligned: float = Field(40.0, ge=0, allow_inf_nan=False)
    """The same where the ends head for each other."""
    through: tuple[str, ...] = ("vegetation",)
    """Classes that may hide a line: others veto a bridge across them."""

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        wrong = OF_LINES if self.geometry == "polygon" else OF_POLYGONS
        if odd := sorted(self.model_fields_set & wrong):
            raise ValueError(f"{odd[0]} says nothing about geometry {self.geometry!r}")
        try:
            self.rule()
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    def rule(self) -> FeatureRule | LineRule:
        """Return the rule for polygons or for lines.

        Raises:
            ConfigError: two keys contradict each other.
        """
        if self.geometry == "polygon":
            return FeatureRule(**self.model_dump(include=OF_POLYGONS))
        return LineRule(**self.model_dump(include=OF_LINES - {"through"}))


OF_POLYGONS = {field.name for field in fields(FeatureRule)}
OF_LINES = {"max_width", "min_length", "gap", "gap_aligned", "through"}
