"""The ``geounet`` commands for looking at results: a map, and styles for QGIS."""

from __future__ import annotations

from pathlib import Path

import click

from geounet.parameters import PATH
from geounet.progress import Progress


@click.command()
@click.argument("folder", metavar="DIR", type=PATH)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default="any that is free",
    metavar="N",
    help="Port of 127.0.0.1 to listen at.",
)
def view(folder: Path, *, port: int) -> None:
    """Show results on a map in the browser, however large they are.

    Serves the masks below DIR over their scenes, tile by tile, to this machine alone,
    until Ctrl-C. Only what a receipt in DIR names is shown. Needs
    pip install 'geounet[view]'.

    \b
    Examples:
      geounet view out/
      geounet view out/ --port 8000
    """
    from geounet.viewer import view as serve

    serve(folder, port=port, ready=_say_where)


def _say_where(address: str) -> None:
    click.echo(address)
    click.echo("Open it in a browser; Ctrl-C ends it.", err=True)


@click.command()
@click.argument("folder", metavar="DIR", type=PATH)
@click.pass_obj
def styles(progress: Progress, /, folder: Path) -> None:
    """Write styles for QGIS beside results.

    They have the colours and names of the classes.

    \b
    Leaves for each scene that is done below DIR:
      STEM.qlr              opens all its files in QGIS, as one group
      STEM_....qml          the style that QGIS takes for the file of that name

    A style that was saved from QGIS is left as it is.

    \b
    Examples:
      geounet styles out/
    """
    from geounet.qgis import write_styles

    written = write_styles(folder)
    progress.say(f"{len(written)} styles -> {folder}")
