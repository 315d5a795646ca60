"""What options of the command line may be, beyond what click knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

# Not checked here: the functions say in one line what is wrong with a path.
PATH = click.Path(path_type=Path)


class NameList(click.ParamType[tuple[str, ...]]):
    """``a,b,c``."""

    name = "a,b"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        """Split at commas."""
        return tuple(part.strip() for part in value.split(",") if part.strip())


class Numbers(click.ParamType[tuple[float, ...]]):
    """``1,2,3``."""

    def __init__(
        self,
        kind: type[int] | type[float],
        count: int | None = None,
        name: str = "LOW,HIGH",
    ) -> None:
        self.kind, self.count = kind, count
        self.name = name if count else "1,2,3"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        """Split at commas; so many numbers, if their count is fixed."""
        try:
            numbers = tuple(self.kind(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not {self.name}", param, ctx)
        if self.count and len(numbers) != self.count:
            self.fail(f"wanted {self.count} numbers, got {value!r}", param, ctx)
        return numbers


class Sectioned(click.Command):
    """A command whose help shows its many options under headings.

    Args:
        args: those of `click.Command`.
        sections: names of options, such as ``--model``, by heading. What is under none
            comes last.
        kwargs: those of `click.Command`.
    """

    def __init__(
        self, *args: Any, sections: Mapping[str, Sequence[str]], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections

    def format_options(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """Write the options, those of a section together."""
        left = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
        for heading, names in self.sections.items():
            here = [param for param in left if {*param.opts} & {*names}]
            left = [param for param in left if param not in here]
            _write_section(ctx, formatter, heading, here)
        _write_section(ctx, formatter, "Options", left)


def _write_section(
    ctx: click.Context,
    formatter: click.HelpFormatter,
    heading: str,
    params: Sequence[click.Option],
) -> None:
    records = [record for param in params if (record := param.get_help_record(ctx))]
    if records:
        with formatter.section(heading):
            formatter.write_dl(records)
