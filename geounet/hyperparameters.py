"""What a training recipe may say: tables of TOML, checked here.

The tables of a step's loss and of the data are beside the code that obeys them, in
`geounet.losses` and `geounet.labels`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from geounet.errors import ConfigError, TrainingError
from geounet.labels import Imagery, Source
from geounet.losses import LossTable
from geounet.model import Architecture, Classes
from geounet.recipes import checked, find_recipe, read_table
from geounet.restoration import RestorationTable

PixelType = Literal[
    "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"
]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelTable(_Table):
    """What is trained: goes into the card as it is."""

    name: str
    description: str = ""
    ground_size: float = Field(0.5, gt=0)
    ground_size_range: tuple[float, float] = (0.3, 1.0)
    licence: str = ""
    attribution: tuple[str, ...] = ()
    bands: tuple[str, ...] = Field(Imagery().bands, min_length=1)
    """Names of the bands it takes, in order; imagery is read by them."""
    dtype: PixelType = "uint8"
    """Of the imagery that it is trained on, and takes as it comes."""
    value_range: tuple[float, float] = Imagery().value_range
    """Darkest and brightest value; what lies beyond is cut off."""
    percentiles: tuple[float, float] | None = None
    """Of each whole image, band by band, in place of ``value_range``."""
    init: str | None = None
    """A model file, or the name of a shipped model, to start from."""

    @field_validator("bands")
    @classmethod
    def _each_once(cls, bands: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(bands)) < len(bands):
            raise ValueError("names a band twice")
        return bands

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        least, most = self.percentiles or (0, 100)
        if not 0 <= least < most <= 100:  # noqa: PLR2004
            raise ValueError("percentiles are two of 0 to 100, the lower first")
        low, high = self.value_range
        if not -math.inf < low < high < math.inf:
            raise ValueError("value_range is the darkest value, then a greater one")
        if self.percentiles and self.value_range != Imagery().value_range:
            raise ValueError("percentiles take the place of value_range; give one")
        return self

    @property
    def imagery(self) -> Imagery:
        """What is read of an image, and what its values are."""
        return Imagery(
            bands=self.bands,
            dtype=self.dtype,
            value_range=self.value_range,
            percentiles=self.percentiles,
        )


class SamplingTable(_Table):
    """Which chips are shown, and how much they are changed."""

    by_class: float = Field(0.5, ge=0, le=1)
    """Share of the chips whose centre is on a class chosen at random; the others may
    lie anywhere on labelled ground."""
    strength: float = Field(1.0, ge=0, le=2)
    """How far colours, light and sharpness are changed; 0 for not at all."""


class LoopTable(_Table):
    """How long, how fast, and from which seed."""

    steps: int = Field(2000, ge=1)
    last_steps: int | None = Field(None, ge=1)
    """Of the last training, where those of the folds before it are shorter."""
    batch_size: int = Field(8, ge=1)
    chip_size: int = Field(384, ge=32)
    optimiser: Literal["adamw", "muon"] = "adamw"
    """Of the convolutions; norms, biases, head and transposed convolutions always have
    AdamW."""
    learning_rate: float = Field(1e-3, gt=0)
    """The highest, of AdamW."""
    kernel_rate: float = Field(0.01, gt=0)
    """The highest, of Muon; read if that is the optimiser."""
    warm_up: int = Field(200, ge=0)
    weight_decay: float = Field(1e-2, ge=0)
    ema: float = Field(0.998, ge=0, lt=1)
    """Decay of the running average of the weights; the average is what is saved."""
    clip: float = Field(1.0, gt=0)
    """Greatest norm of a step's gradient; a longer one is shortened to it."""
    seed: int = Field(0, ge=0)
    threads: int = Field(2, ge=1)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the network's arithmetic; auto is bfloat16 where the device computes in it."""
    validate_every: int = Field(0, ge=0)
    """Steps between looks at the held-out groups; 0 for one at the end."""
    patience: int = Field(0, ge=0)
    """Looks without a better mean score after which training stops, and the best
    average is saved instead of the last; 0 to train all steps and save the last."""
    checkpoint_every: int = Field(200, ge=1)

    @model_validator(mode="after")
    def _patience_needs_looks(self) -> Self:
        if self.patience and not self.validate_every:
            raise ValueError("patience counts validations; give validate_every too")
        return self


class TrainingRecipe(_Table):
    """A training recipe: TOML on disk, checked here."""

    task: Literal["segment", "reconstruct"] = "segment"
    """Find classes; or repair damaged imagery, which needs no labels, to start from."""
    output: Path
    model: ModelTable
    architecture: Architecture = Architecture()
    classes: Classes = ()
    overlapping: tuple[tuple[str, ...], ...] = ()
    """Classes that may lie on the same ground, such as a road under trees; others
    exclude one another."""
    sampling: SamplingTable = SamplingTable()
    loss: LossTable = LossTable()
    reconstruct: RestorationTable = RestorationTable()
    loop: LoopTable = LoopTable()
    holdout: tuple[str, ...] = ()
    """Groups that are never trained on; the scores in the card are theirs."""
    folds: tuple[tuple[str, ...], ...] = ()
    """Groups that are held out together, in a training of their own each; the last
    training, of the model itself, has all groups."""
    auxiliary: tuple[str, ...] = ()
    """Classes that are trained and scored, but left out of the model."""
    data: tuple[Source, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_classes(self) -> Self:
        if self.task == "segment" and not self.classes:
            raise ValueError("no classes; give a table [[classes]] for each")
        for source in self.data:
            if self.task == "segment" and source.image and not source.labels:
                raise ValueError(
                    f"no labels for {source.image}; only to restore imagery, "
                    'task = "reconstruct", are none needed'
                )
        for name in {name for names in self.overlapping for name in names}:
            if name not in self.class_names:
                raise ValueError(
                    f"overlapping: no class {name!r}; there are "
                    f"{', '.join(self.class_names)}"
                )
        return self

    @model_validator(mode="after")
    def _folds_or_holdout(self) -> Self:
        if self.folds and (self.holdout or self.loop.patience):
            raise ValueError(
                "folds: the last training has all groups, so neither holdout nor "
                "patience can be given with them"
            )
        if self.loop.last_steps and not self.folds:
            raise ValueError("last_steps: there are no folds; give steps")
        named = [group for fold in self.folds for group in fold]
        if twice := {group for group in named if named.count(group) > 1}:
            raise ValueError(f"folds: {', '.join(sorted(twice))} held out twice")
        return self

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        for name in self.auxiliary:
            if name not in self.class_names:
                raise ValueError(
                    f"auxiliary: no class {name!r}; there are "
                    f"{', '.join(self.class_names)}"
                )
        if self.classes and set(self.auxiliary) == set(self.class_names):
            raise ValueError("auxiliary: every class; the model would have none")
        return self

    @model_validator(mode="after")
    def _patience_needs_a_group(self) -> Self:
        if self.loop.patience and not self.holdout:
            raise ValueError("patience looks at held-out groups; name some in holdout")
        return self

    @classmethod
    def load(cls, path: str | Path) -> TrainingRecipe:
        """Read and check a recipe, given by file or by the name of a shipped one.

        Paths in a file are relative to it; those of a shipped recipe taken by its name
        are relative to the working directory.

        Raises:
            ConfigError: no such recipe, not TOML, or a key or value that is not
                allowed; an unknown key comes with a suggestion.
        """
        found = find_recipe(path, training=True).resolve()
        recipe = checked(cls, read_table(found), source=str(path))
        return recipe.relative_to(found.parent if Path(path).is_file() else Path.cwd())

    def relative_to(self, folder: Path) -> TrainingRecipe:
        """Return the recipe with its paths taken from ``folder``."""
        init = self.model.init
        if init and (folder / init).is_file():  # else the name of a shipped model
            init = str(folder / init)
        return self.model_copy(
            update={
                "output": folder / self.output,
                "model": self.model.model_copy(update={"init": init}),
                "data": tuple(source.relative_to(folder) for source in self.data),
            }
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in order."""
        return tuple(c.name for c in self.classes)

    def trainings(self) -> list[TrainingRecipe]:
        """Return the recipes of the single trainings, the model's own last."""
        alone = {"folds": ()}
        folds = [
            self.model_copy(
                update=alone | {"holdout": fold, "output": self.output / f"fold-{n}"}
            )
            for n, fold in enumerate(self.folds, start=1)
        ]
        steps = self.loop.last_steps or self.loop.steps
        loop = self.loop.model_copy(update={"steps": steps})
        return [*folds, self.model_copy(update=alone | {"loop": loop})]

    def check_holdout(self) -> None:
        """Check that held-out groups exist, and that there are others.

        Raises:
            ConfigError: no data of a held-out group.
            TrainingError: every group is held out.
        """
        groups = {source.group for source in self.data}
        for group in self.holdout:
            if group not in groups:
                raise ConfigError(
                    f"holdout: no data of group {group!r}; there are "
                    f"{', '.join(sorted(groups))}"
                )
        if groups == set(self.holdout):
            raise TrainingError("every group is held out; there is nothing to train on")
