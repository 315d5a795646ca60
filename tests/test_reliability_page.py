"""docs/reliability.md says what the code does, and names tests that are there."""

import ast
import re
import signal
from pathlib import Path

from geounet import archive
from geounet.interrupts import Interrupts
from geounet.ledger import STATES
from geounet.recovery import Breaker, kind_of
from tests.test_fault_matrix import CASES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
ROWS = 80
TEST = re.compile(r"`(tests/\w+\.py)::(\w+)`")
ON_A_CASE = "A"
NOT_HERE = "not here: "

OF_AN_ARCHIVE = (
    *("archive", "errors", "foreman", "inference", "jobs", "ledger", "listing"),
    *("locking", "merging", "model", "mosaics", "pipeline", "planning", "raster"),
    *("facts", "foreign", "importing", "shelf", "statedicts"),
    *("recovery", "rehearsal", "remote", "seams", "selection", "standing"),
    *("stitching", "uploads"),
)
"""Modules whose errors an archive may meet."""
NO_CODES = {
    *("COG", "IF_SAFER", "INTERNAL", "JPEG", "OFFSET", "PNG", "SIZE", "TIFF", "VRT"),
    *("AREA_OR_POINT", "IFD_OFFSET", "IMAGE_STRUCTURE", "LAYOUT"),
    *("COMMIT", "NFD", "TRUE", "TRUNCATE", "WAL"),
    *("EMPTY_DIR", "HEADERS", "SERIAL"),
    "ERROR",  # of the base class, which nobody raises
    "TRAINING",  # of another command
}
"""Other words in capitals there, of GDAL, SQLite and Unicode."""
SETTING = re.compile(r"(GDAL|CPL|OGR|GEOUNET|CUDA|XDG)_\w+")


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found, title
    return found[1]


def table(title: str) -> list[list[str]]:
    """Rows of the table of a section, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    cells = (re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[2:])
    return [[cell.strip() for cell in row] for row in cells]


def functions_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_test_that_the_page_names_is_there() -> None:
    named = set(TEST.findall(PAGE))
    assert len(named) > 50
    for path, name in named:
        assert name in functions_of(ROOT / path), f"{path} has no {name}"


def test_every_promise_has_its_test() -> None:
    promises = table("Promises")
    assert len(promises) > 10
    for promise, test in promises:
        assert TEST.fullmatch(test), promise


def words_of(module: str) -> set[str]:
    """Words in capitals in a module's code, where a code would be."""
    tree = ast.parse((ROOT / "geounet" / f"{module}.py").read_text(encoding="utf-8"))
    texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {
        text
        for text in texts
        if isinstance(text, str)
        and re.fullmatch(r"[A-Z]{3,}|[A-Z]+(_[A-Z]+)+", text)
        and not SETTING.fullmatch(text)
    } - NO_CODES


def test_the_table_has_every_code_and_no_other() -> None:
    codes = [row[0].strip("`") for row in table("Codes")]
    assert codes == sorted(codes)
    assert set(codes) == set().union(*map(words_of, OF_AN_ARCHIVE))


def test_what_follows_a_code_is_what_recovery_does() -> None:
    kinds = {row[0] for row in table("States, and what follows from a failure")}
    for code, _, kind, _ in table("Codes"):
        assert kind in kinds
        if kind_of(code.strip("`")) != "permanent":
            assert kind == kind_of(code.strip("`")), code
        elif kind != "permanent":  # what no task ever fails with
            assert re.match("`(BREAKER|LOCKED|LEDGER)", code), code


def test_every_code_that_the_page_names_is_in_the_table() -> None:
    codes = {row[0] for row in table("Codes")}
    matrix = section("The fault matrix")
    for code in re.findall(r"`(?:[A-Z]{3,}|[A-Z]+(?:_[A-Z]+)+)`", matrix):
        assert code in codes


def test_the_exit_codes_are_those_of_the_code() -> None:
    of_signals = set()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        interrupts = Interrupts()
        interrupts.note(number, None)
        of_signals.add(interrupts.exit_code)
    named = {name: code for name, code in vars(archive).items() if "EXIT_" in name}
    found = [int(row[0]) for row in table("Exit codes")]
    assert found == sorted({*named.values(), *of_signals})


def test_states_and_limits_are_those_of_the_code() -> None:
    words = " ".join(section("States, and what follows from a failure").split())
    for state in set(STATES) - {"checked"}:
        assert f"`{state}`" in words
    breaker = Breaker()
    assert f"first {breaker.first} scenes, or {breaker.row} in a row" in words


def matrix() -> dict[int, list[str]]:
    return {int(number): rest for number, *rest in table("The fault matrix")}


def test_the_matrix_has_every_row_once() -> None:
    numbers = [int(row[0]) for row in table("The fault matrix")]
    assert numbers == list(range(1, ROWS + 1))


def test_every_row_of_the_matrix_is_a_test_or_says_why_not() -> None:
    of_archive = {case.row for case in CASES.values()}
    for number, (*_, shown) in matrix().items():
        for by in shown.split("; "):
            known = TEST.fullmatch(by) or by.startswith(NOT_HERE)
            assert known or (by == ON_A_CASE and number in of_archive), (number, by)


def test_every_case_of_the_archive_is_in_the_matrix() -> None:
    rows = {case.row for case in CASES.values()} - {0}
    assert {
        n for n, row in matrix().items() if ON_A_CASE in row[-1].split("; ")
    } == rows


def test_an_outcome_in_the_matrix_is_that_of_the_case() -> None:
    for case in CASES.values():
        _, _, code = case.ended.partition(" ")
        if case.row and code:
            assert f"`{code}`" in matrix()[case.row][1], case
