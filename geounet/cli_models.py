"""The ``geounet model`` commands: models in, out, looked into."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geounet import completion
from geounet.parameters import PATH, NameList, Numbers
from geounet.progress import Progress

if TYPE_CHECKING:
    from geounet.exactness import Exactness
    from geounet.model import Card, Reach


@click.group()
def model() -> None:
    """Models of other tools in, ours out; what they are.

    \b
    Examples:
      geounet model list
      geounet model info aerial-rgb-05m
      geounet model import landcover.onnx -o landcover.safetensors
    """


@model.command(name="import")
@click.argument("source", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="The .safetensors file.")
@click.option("--name", help="What to call it; after the source if not given.")
@click.option("--bands", type=NameList(), help="Names of its input channels, in order.")
@click.option(
    "--mean",
    type=Numbers(float),
    help="Pixel value that it wants as 0: one for all bands, or one a band.",
)
@click.option("--std", type=Numbers(float), help="Pixel values that it wants as 1.")
@click.option("--dtype", help="Of the imagery that it takes: uint8, uint16, float32.")
@click.option(
    "--value-range",
    type=Numbers(float, 2),
    help="Least and greatest pixel value of that imagery.",
)
@click.option(
    "--percentiles",
    type=Numbers(float, 2),
    help="Percentiles of a whole scene's values that it wants stretched to that range.",
)
@click.option(
    "--ground-size",
    type=click.FloatRange(0, min_open=True),
    metavar="M",
    help="Metres on the ground of a pixel of its imagery.",
)
@click.option(
    "--ground-size-range",
    type=Numbers(float, 2),
    help="Finest and coarsest that it was trained on; that one alone if not given.",
)
@click.option(
    "--classes",
    type=NameList(),
    help="Names of its output channels, in order, but for the background's.",
)
@click.option(
    "--background",
    type=click.IntRange(0),
    metavar="N",
    help="The output channel, counted from 0, that is none of the classes.",
)
@click.option(
    "--activation",
    type=click.Choice(["sigmoid", "softmax", "none"]),
    help="What makes probabilities of its answers; none if they are already.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Least score that counts as a class; 0.5 if nothing says otherwise.",
)
@click.option("--licence", help="Of the weights.")
@click.option("--attribution", multiple=True, help="Whom to name; may be given again.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it is there.")
@click.pass_obj
def import_(
    progress: Progress,
    /,
    source: Path,
    *,
    output: Path,
    attribution: tuple[str, ...],
    **options: Any,
) -> None:
    """Make a native model file of a model of another tool.

    SOURCE is an ONNX file, best with the metadata of QGIS's Deepness plugin; a folder
    of segmentation_models_pytorch's save_pretrained; a state dict (.pt, .pth,
    .safetensors) of geounet's U-Net or milesial's; or a STAC item of a model. What it
    does not say is asked for, all at once, and given by options, which win over what
    it says. How far the network looks is measured.

    \b
    Examples:
      geounet model import landcover.onnx -o landcover.safetensors
      geounet model import unet.pth -o roads.safetensors --bands red,green,blue
          --mean 0 --std 255 --dtype uint8 --ground-size 0.5 --classes road
          --activation sigmoid
    """
    from geounet.importing import import_model

    card = import_model(source, output, attribution=attribution or None, **options)
    progress.say(f"{card.name}: {', '.join(card.class_names)} -> {output}")
    if card.reach and not card.reach.exact:
        progress.say(
            f"{card.name}: tiles cannot equal one pass over the whole image: "
            f"{'; '.join(card.reach.reasons)}; runs fade them into each other"
        )


@model.command(name="export")
@click.argument("name", metavar="NAME|FILE", shell_complete=completion.models)
@click.option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    help=".onnx for QGIS's Deepness, .pt2 for a torch.export program, .json for a STAC "
    "item with the model beside it.",
)
@click.option(
    "--tile-size",
    type=click.IntRange(1),
    metavar="PX",
    help="Side of the tile that an .onnx takes; 512 or so if not given.",
)
@click.option(
    "--dynamic",
    is_flag=True,
    help="Let an .onnx take tiles of any size; Deepness wants one size.",
)
@click.option("--overwrite", is_flag=True, help="Replace the output if it is there.")
@click.pass_obj
def export_(progress: Progress, /, name: str, *, output: Path, **options: Any) -> None:
    """Write a model for other tools, scaling and activation in it.

    \b
    Examples:
      geounet model export aerial-rgb-05m -o aerial.onnx
      geounet model export aerial-rgb-05m -o aerial.pt2
      geounet model export my-model.safetensors -o item.json
    """
    from geounet.exporting import export_model
    from geounet.shelf import find_native

    path = export_model(find_native(name), output, **options)
    progress.say(f"{name} -> {path}")


@model.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(*, as_json: bool) -> None:
    """List the models that can be named.

    They are shipped, of your folder, or of a registry. Your folder is $GEOUNET_MODELS,
    or else geounet/models where your system keeps data (~/.local/share). A file
    registry.toml in it names models by URL and sha256.

    \b
    Examples:
      geounet model list
    """
    from dataclasses import asdict

    from geounet.shelf import listed

    models = listed()
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in models], indent=2))
        return
    for entry in models:
        click.echo(f"{entry.name:24}{entry.where:10}{entry.says}")


@model.command()
@click.argument("name", metavar="NAME|FILE", shell_complete=completion.models)
@click.option("--json", "as_json", is_flag=True, help="Print the card as JSON.")
def info(name: str, *, as_json: bool) -> None:
    """Say what a model expects and answers.

    And how it is tiled, on what ground it was scored, and how fast it is here.

    \b
    Examples:
      geounet model info aerial-rgb-05m
      geounet model info my-model.safetensors --json
    """
    from geounet.model import load_card, load_model
    from geounet.shelf import find_native
    from geounet.speed import measure_speed

    path = find_native(name)
    if as_json:
        card = load_card(path).model_dump(mode="json")
        click.echo(json.dumps(card, indent=2))
        return
    loaded = load_model(path)
    rows = _card_rows(loaded.card)
    rows |= {
        "stride": f"{loaded.stride} px",
        "halo": f"{loaded.halo} px",
        **_reach_rows(loaded.card.reach),
        "speed": str(measure_speed(loaded)),
        "file": str(path),
        "sha256": loaded.sha256,
    }
    for label, value in rows.items():
        click.echo(f"{label:18}{value}")


def _card_rows(card: Card) -> dict[str, str]:
    low, high = card.value_range
    finest, coarsest = card.ground_size_range
    scores = [
        f"{group} {name} {score.iou:.2f}"
        for group, found in card.scores.items()
        for name, score in found.items()
    ]
    rows = {
        "name": card.name,
        "description": card.description,
        "network": card.architecture.kind,
        "bands": ", ".join(
            f"{band.name} (mean {band.mean:g}, std {band.std:g})" for band in card.bands
        ),
        "pixels": f"{card.dtype}, {low:g} to {high:g}",
        "percentiles": ", ".join(f"{p:g} %" for p in card.percentiles or ()),
        "ground size": f"{card.ground_size:g} m, trained on {finest:g} to {coarsest:g}",
        "classes": ", ".join(
            f"{entry.name} (from {entry.threshold:g})" for entry in card.classes
        ),
        "activation": card.activation,
        "licence": card.licence,
        "attribution": "; ".join(card.attribution),
        "held-out IoU": ", ".join(scores),
    }
    return {label: value for label, value in rows.items() if value}


def _reach_rows(reach: Reach | None) -> dict[str, str]:
    if reach is None:
        return {"exact": "yes, by its architecture"}
    rows = {
        "exact": "yes, measured" if reach.exact else f"no: {'; '.join(reach.reasons)}"
    }
    if reach.tile_size:
        rows["tiles"] = f"of {reach.tile_size} px only"
    return rows


@model.command()
@click.argument("name", metavar="NAME|FILE", shell_complete=completion.models)
@click.pass_obj
def check(progress: Progress, /, name: str) -> None:
    """Find out whether tiles equal one pass over the whole.

    Stride and halo are derived by experiment, whatever the model says of itself, and
    tiles are compared with the whole. Exit code 0: tiles are exact; 1: they are not.

    \b
    Examples:
      geounet model check aerial-rgb-05m
      geounet model check my-model.safetensors
    """
    from geounet.exactness import check_model
    from geounet.model import load_model
    from geounet.shelf import find_native
    from geounet.speed import measure_speed

    loaded = load_model(find_native(name))
    found = check_model(
        loaded.network,
        bands=len(loaded.card.bands),
        stride=loaded.stride,
        halo=loaded.halo,
    )
    rows = _rows(found)
    if found.exact or loaded.card.foreign:  # else it may not run at all
        rows["speed"] = str(measure_speed(loaded))
    for label, value in rows.items():
        click.echo(f"{label:18}{value}")
    if not found.exact:
        progress.say(
            f"{name}: seams cannot be excluded; --blend hann hides them", always=True
        )
        raise click.exceptions.Exit(1)


def _rows(found: Exactness) -> dict[str, str]:
    """Say what was found of a model, and where it declares something else."""
    field = found.field
    rows = {
        "stride": _pixels(field.stride, found.declared_stride),
        "receptive radius": _pixels(field.radius),
        "halo": _pixels(field.halo, found.declared_halo),
        "exact": "yes" if found.exact else f"no: {'; '.join(found.problems)}",
        "tiles - whole": "largest difference of the logits, where the largest is "
        f"{found.largest_answer:.3g}",
    }
    if found.float64 is not None:
        rows["  in float64"] = (
            f"{found.float64:.2g} with a halo of {found.measured_halo} px"
        )
    if found.float32 is not None:
        rows["  in float32"] = f"{found.float32:.2g}"
    if found.narrower is not None:
        rows["  a stride less"] = f"{found.narrower:.2g} in float64"
    return rows


def _pixels(derived: int | None, declared: int | None = None) -> str:
    words = "none" if derived is None else f"{derived} px"
    return words if declared in {None, derived} else f"{words}, declared {declared} px"
