"""What MkDocs is told beyond mkdocs.yml.

Pages link to recipes outside docs/, as ``../pipelines/train.toml``, so that the links
work where the repository is read. The site gets copies of those files, and the links
lead there.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

FOLDERS = ("pipelines", "training")
OUTSIDE = re.compile(rf"\]\(\.\./((?:{'|'.join(FOLDERS)})/[\w.]+)\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the recipes to the site."""
    root = Path(config.config_file_path).parent
    for folder in FOLDERS:
        for path in sorted((root / folder).glob("*.toml")):
            files.append(
                File.generated(config, f"{folder}/{path.name}", abs_src_path=str(path))
            )
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Let links to recipes lead to their copies."""
    return OUTSIDE.sub(r"](\1)", markdown)
