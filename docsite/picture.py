"""Draw docs/demo.png, the picture at the top of the README: the preview of the demo.

python -m docsite.picture
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

from geounet.demo import run_demo

PICTURE = Path(__file__).parents[1] / "docs" / "demo.png"
WIDTH = 1400
"""Pixels; as wide as a page shows it, on a screen of two dots a pixel."""


def draw(path: Path) -> None:
    """Run the demo in a folder of its own, and keep its preview, made smaller."""
    with tempfile.TemporaryDirectory() as folder:
        made = run_demo(folder)
        with Image.open(made.result.outputs["preview"]) as image:
            size = WIDTH, round(image.height * WIDTH / image.width)
            small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    small.save(path, optimize=True)


if __name__ == "__main__":
    draw(PICTURE)
