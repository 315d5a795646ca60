"""Write docs/cli.md: what each command says of itself with --help.

python -m docsite.commands
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from geounet.cli import main

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
WIDTH = 88
HEAD = """\
# Commands

What each command says with `--help`. This page is written by `make docs`.

Words go to stderr, data to stdout. Lengths are metres, areas m², bands count from 1.
Exit codes: 0 for done or already done, 1 for a scene, a model or an output that will
not do, 2 for options and recipes that mean nothing; of `batch` also 3, 4, 130 and 143
([reliability](reliability.md#exit-codes)).

## Tab

The shell completes commands, options, models, recipes, classes and formats. Put one
line into its own file: `~/.bashrc`, `~/.zshrc` or
`~/.config/fish/completions/geounet.fish`.

```sh
eval "$(_GEOUNET_COMPLETE=bash_source geounet)"       # bash 4.4 or newer
eval "$(_GEOUNET_COMPLETE=zsh_source geounet)"        # zsh
_GEOUNET_COMPLETE=fish_source geounet | source        # fish
```
"""


def page() -> str:
    """Return the page, in Markdown."""
    parts = [HEAD]
    for name, command, ctx in _commands(main, click.Context(main, info_name="geounet")):
        text = command.get_help(ctx).rstrip()
        parts.append(f"\n## {name}\n\n```text\n{text}\n```\n")
    return "".join(parts)


def _commands(
    group: click.Group, ctx: click.Context
) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Yield a group, then all below it: full name, command, and its context."""
    ctx.terminal_width = ctx.max_content_width = WIDTH
    ctx.show_default = True
    yield ctx.command_path, group, ctx
    for name, command in sorted(group.commands.items()):
        inner = click.Context(command, parent=ctx, info_name=name, terminal_width=WIDTH)
        if isinstance(command, click.Group):
            yield from _commands(command, inner)
        else:
            yield inner.command_path, command, inner


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
