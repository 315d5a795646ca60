"""The import rule, as a test: layers point down, and each library has its doors.

The drawing is in docs/design.md under "The house"; the last test compares the two.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "geounet"
MODULES = sorted(PACKAGE.glob("*.py"))

LAYERS = [
    {"errors"},
    {
        "tiling",
        "unet",
        "progress",
        "recipes",
        "regions",
        "formats",
        "bootstrap",
        "losses",
        "muon",
        "parallel",
        "ledger",
        "locking",
        "recovery",
        "watchdog",
        "interrupts",
        "shield",
        "staged",
        "facts",
        "foreign",
        "parameters",
        "completion",
        "seams",
        "remote",
        "aliases",
    },
    {
        "raster",
        "model",
        "classes",
        "vectorize",
        "footprints",
        "arcs",
        "ground",
        "geojson",
        "wkb",
        "geoparquet",
        "schedule",
        "synthetic",
        "levelwise",
        "blending",
        "lut",
        "thinning",
        "estimates",
        "layers",
        "listing",
        "selection",
        "uploads",
        "bands",
        "percentiles",
        "perturbation",
    },
    {
        "labels",
        "figures",
        "restoration",
        "calibration",
        "finetuning",
        "checkpoints",
        "inference",
        "stitching",
        "tracing",
        "centrelines",
        "outlining",
        "features",
        "rfc7946",
        "readback",
        "exactness",
        "agreement",
        "matching",
        "networks",
        "pairing",
        "accounts",
        "sheets",
        "bearings",
        "results",
        "clipping",
        "composites",
        "deepness",
        "mlm",
        "statedicts",
    },
    {
        "chips",
        "hyperparameters",
        "journal",
        "leaks",
        "report",
        "rules",
        "roads",
        "export",
        "files",
        "classmaps",
        "errormap",
        "mosaics",
        "importing",
        "exporting",
        "speed",
        "stretching",
        "qgis",
    },
    {"shelf", "findings", "pictures"},
    {
        "augmentation",
        "optimisation",
        "planning",
        "vectors",
        "evaluation",
        "merging",
        "viewer",
        "display",
        "pages",
    },
    {"pipeline", "batches", "tasks", "scoretable", "atlas"},
    {"training", "jobs", "demo", "doctor", "forecast"},
    {"folds", "foreman"},
    {"archive"},
    {"headlines", "standing", "overview"},
    {"rehearsal", "cli_models", "cli_look"},
    {"cli"},
]
# What Python itself asks for: the names offered at the top, and `python -m geounet`.
ENTRANCES = {"__init__", "__main__"}

DOORS = {
    "bokeh": {"sheets", "pages", "overview", "viewer"},
    "click": {"cli", "cli_look", "cli_models", "completion", "parameters"},
    "dask": {"schedule"},
    "distributed": {"schedule", "shield"},
    "geopandas": {"display", "labels", "layers", "classmaps", "pipeline"},
    "matplotlib": {"calibration", "figures", "journal"},
    "numba": {
        "arcs",
        "centrelines",
        "footprints",
        "geojson",
        "ground",
        "lut",
        "percentiles",
        "raster",
        "regions",
        "thinning",
        "vectorize",
        "wkb",
    },
    "onnx": {"importing"},
    "onnxruntime": {"foreign"},
    "onnxscript": {"exporting"},
    "PIL": {"report", "pictures", "augmentation", "errormap"},
    "pyarrow": {"geoparquet", "files", "readback"},
    "pydantic": {
        "importing",
        "shelf",
        "planning",
        "rules",
        "recipes",
        "pipeline",
        "model",
        "hyperparameters",
        "losses",
        "labels",
        "restoration",
    },
    "pyogrio": {"files", "readback"},
    "pyproj": {
        "clipping",
        "raster",
        "ground",
        "files",
        "readback",
        "classmaps",
        "findings",
    },
    "fsspec": {"uploads"},
    "rasterio": {"raster", "remote", "pictures", "labels", "synthetic", "classmaps"},
    "safetensors": {
        "model",
        "finetuning",
        "checkpoints",
        "tasks",
        "importing",
        "statedicts",
    },
    "scipy": {"centrelines", "networks", "tracing"},
    "torch": {
        "muon",
        "unet",
        "model",
        "levelwise",
        "inference",
        "planning",
        "losses",
        "parallel",
        "finetuning",
        "checkpoints",
        "optimisation",
        "batches",
        "tasks",
        "training",
        "labels",
        "journal",
        "restoration",
        "calibration",
        "chips",
        "augmentation",
        "doctor",
        "exactness",
        "foreign",
        "perturbation",
        "exporting",
        "importing",
        "speed",
        "statedicts",
    },
    "segmentation_models_pytorch": {"foreign"},
    "rio_tiler": {"viewer"},
    "tornado": {"viewer"},
    "tqdm": {"progress"},
}
# Each costs a tenth of a second or more to import: `geounet --help` needs none of them.
HEAVY = {"bokeh", "distributed", "geopandas", "numba", "rasterio", "torch"}


def imports(source: str) -> set[str]:
    """Every module that a source file imports, wherever in the file it does so."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= imported_from(node)
    return found


def imported_from(node: ast.ImportFrom) -> set[str]:
    """`from geounet import x` and `from . import x` both reach geounet.x."""
    package = "geounet" if node.level else ""
    base = ".".join(part for part in (package, node.module) if part)
    if base == "geounet":
        return {f"geounet.{alias.name}" for alias in node.names}
    return {base}


def ours(source: str) -> set[str]:
    """The geounet modules that a source file imports; `__version__` is a value."""
    names = {name.split(".")[1] for name in imports(source) if is_ours(name)}
    return names - {"__version__"}


def is_ours(name: str) -> bool:
    return name.startswith("geounet.")


def level(stem: str) -> int:
    for number, names in enumerate(LAYERS):
        if stem in names:
            return number
    pytest.fail(
        f"geounet/{stem}.py has no layer: add it to LAYERS in {Path(__file__).name} "
        "and to the drawing in docs/design.md"
    )


@pytest.mark.parametrize(
    "path", [m for m in MODULES if m.stem not in ENTRANCES], ids=lambda path: path.stem
)
def test_a_module_imports_only_from_layers_below(path: Path) -> None:
    below = set().union(*LAYERS[: level(path.stem)])
    astray = ours(path.read_text()) - below
    assert not astray, f"{path.stem} reaches up or sideways to {sorted(astray)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_library_is_used_only_at_its_doors(path: Path) -> None:
    used = {name.split(".")[0] for name in imports(path.read_text())}
    strays = {lib for lib in used & DOORS.keys() if path.stem not in DOORS[lib]}
    assert not strays, f"{path.stem} is no door for {sorted(strays)}"


def test_python_dash_m_leads_to_the_command_line() -> None:
    assert ours((PACKAGE / "__main__.py").read_text()) == {"cli"}


@pytest.mark.parametrize("module", ["geounet", "geounet.cli"])
def test_a_first_import_loads_no_heavy_library(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert HEAVY.isdisjoint(loaded.stdout.split())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import geounet.cli", {"cli"}),
        ("from geounet.cli import main", {"cli"}),
        ("from geounet import cli", {"cli"}),
        ("from . import cli", {"cli"}),
        ("from .cli import main", {"cli"}),
        ("def f():\n    from geounet import pipeline as p", {"pipeline"}),
        ("from geounet import __version__", set()),
        ("import geounetics.cli", set()),
    ],
)
def test_every_way_to_write_an_import_is_seen(source: str, expected: set[str]) -> None:
    assert ours(source) == expected


def test_the_design_page_draws_these_layers() -> None:
    page = (ROOT / "docs" / "design.md").read_text()
    house = page.partition("## The house")[2].split("```")[1]
    drawn = dict(re.findall(r"^ *(\d+) +(\S+(?: \S+)*)", house, flags=re.MULTILINE))
    drawing = [set(drawn[str(number)].split()) for number in range(len(drawn))]
    assert drawing == LAYERS
