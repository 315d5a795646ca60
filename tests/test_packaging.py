"""What a user installs: the wheel is built, opened, installed and run.

The build is hatchling's own, without isolation, so nothing is fetched. The installed
wheel borrows its dependencies from the running environment.
"""

import ast
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import geounet

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WEIGHTS_LIMIT = 16 * 2**20
IMAGERY = {".tif", ".tiff", ".jpg", ".jpeg", ".jp2", ".png", ".vrt"}
# Where the name to import is not the name to install.
INSTALLED_AS = {"PIL": "pillow"}


def call(*command: str | Path, cwd: Path, **env: str) -> str:
    """Run a command; its stdout, or a failure with everything that it said."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"{command} ended with {done.returncode}\n{done.stderr}")
    return done.stdout


def build(target: str, source: Path, folder: Path) -> Path:
    hatchling = [sys.executable, "-m", "hatchling"]
    call(*hatchling, "build", "-t", target, "-d", folder, cwd=source)
    (built,) = folder.iterdir()
    return built


def contents(wheel: Path) -> dict[str, int]:
    """Size of every file in a wheel, by its path."""
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.file_size for entry in archive.infolist()}


def checksums(wheel: Path) -> dict[str, int]:
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed in it, and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    call(*pip, "--disable-pip-version-check", "--target", folder, wheel, cwd=folder)
    return folder


def test_the_wheel_is_for_any_platform_and_has_the_version(wheel: Path) -> None:
    assert wheel.name == f"geounet-{geounet.__version__}-py3-none-any.whl"


def test_the_wheel_carries_weights_that_are_small(wheel: Path) -> None:
    files = contents(wheel)
    weights = [f for f in files if f.startswith("geounet/models/")]
    weights = [f for f in weights if f.endswith(".safetensors")]
    assert weights
    assert sum(files[f] for f in weights) < WEIGHTS_LIMIT


def test_the_wheel_carries_every_pipeline(wheel: Path) -> None:
    here = {f"geounet/pipelines/{p.name}" for p in (ROOT / "pipelines").glob("*.toml")}
    assert here
    assert here <= contents(wheel).keys()


def test_the_wheel_carries_every_module_and_its_types(wheel: Path) -> None:
    modules = {f"geounet/{path.name}" for path in (ROOT / "geounet").glob("*.py")}
    assert modules | {"geounet/py.typed"} <= contents(wheel).keys()


def test_the_wheel_carries_the_licence(wheel: Path) -> None:
    info = f"geounet-{geounet.__version__}.dist-info"
    assert f"{info}/licenses/LICENSE" in contents(wheel)


def test_the_wheel_carries_the_package_and_nothing_beside_it(wheel: Path) -> None:
    tops = {PurePosixPath(name).parts[0] for name in contents(wheel)}
    assert tops == {"geounet", f"geounet-{geounet.__version__}.dist-info"}


def test_neither_archive_holds_imagery(wheel: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {*contents(wheel), *archive.getnames()}
    assert not {n for n in names if PurePosixPath(n).suffix.lower() in IMAGERY}


def test_the_sdist_builds_the_same_wheel(
    wheel: Path, sdist: Path, tmp_path: Path
) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    again = build("wheel", source, tmp_path / "wheel")
    assert checksums(again) == checksums(wheel)


def test_the_installed_wheel_is_what_python_imports(site: Path) -> None:
    code = "import geounet; print(geounet.__file__)"
    where = call(sys.executable, "-c", code, cwd=site, PYTHONPATH=str(site))
    assert Path(where.strip()).is_relative_to(site)


def test_the_installed_command_says_the_version(site: Path) -> None:
    command = site / "bin" / "geounet"
    said = call(command, "--version", cwd=site, PYTHONPATH=str(site))
    assert geounet.__version__ in said


def test_every_library_imported_is_declared() -> None:
    extras = PROJECT["optional-dependencies"]
    asked = [line for name in extras.keys() - {"dev", "bench"} for line in extras[name]]
    wanted = [*PROJECT["dependencies"], *asked]
    declared = {canonicalize_name(Requirement(line).name) for line in wanted}
    assert libraries() <= declared


def libraries() -> set[str]:
    """What the package imports that is neither Python's nor its own."""
    own = {*sys.stdlib_module_names, "geounet"}
    trees = [ast.parse(path.read_text()) for path in (ROOT / "geounet").glob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    direct = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    parents = {n.module for n in nodes if isinstance(n, ast.ImportFrom) and not n.level}
    tops = {name.split(".")[0] for name in direct | parents if name}
    return {canonicalize_name(INSTALLED_AS.get(top, top)) for top in tops - own}


def test_every_requirement_is_pinned_inside_its_bounds() -> None:
    pins = dict(
        re.findall(
            r"^([\w.-]+)==(\S+)$",
            (ROOT / "constraints.txt").read_text(),
            flags=re.MULTILINE,
        )
    )
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["dev"], *extras["docs"]]
    loose = [
        text
        for text in wanted
        if not (r := Requirement(text)).specifier.contains(
            pins.get(canonicalize_name(r.name), "0")
        )
    ]
    assert not loose
