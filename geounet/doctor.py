"""What this machine offers, in the lines that a bug report needs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path

from geounet import __version__
from geounet.inference import best_precision, resolve_device
from geounet.model import DEFAULT_MODEL, SHIPPED, load_card
from geounet.planning import LARGEST_CORE
from geounet.raster import (
    MAX_BLOCK_BYTES,
    MAX_PIXELS,
    available_cores,
    gdal_version,
)
from geounet.recipes import shipped_recipes

PACKAGES = (
    "torch", "rasterio", "shapely", "pyproj", "geopandas", "pyogrio", "numpy", "numba",
    "dask", "distributed", "safetensors",
)  # fmt: skip


def diagnose() -> dict[str, str]:
    """Return versions, devices, memory and limits, in the order to be shown."""
    device = resolve_device("auto")
    card = load_card(DEFAULT_MODEL)
    found = {
        "geounet": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "gdal": f"{gdal_version()} (inside rasterio)",
    }
    found |= {name: importlib.metadata.version(name) for name in PACKAGES}
    return found | {
        "device": _describe(device),
        "precision": f"{best_precision(device)} ({_native_formats()})",
        "cores": f"{available_cores()} of {os.cpu_count()}",
        "memory": _memory(),
        "disk here": f"{shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB free",
        "model": f"{card.name}: {', '.join(card.class_names)} at {card.ground_size} m",
        "models in": str(SHIPPED),
        "recipes": ", ".join(shipped_recipes()),
        "limits": f"{MAX_PIXELS:.0e} px a scene, {MAX_BLOCK_BYTES >> 20} MiB a block "
        f"of the file, tile cores up to {LARGEST_CORE} px",
    }


def _describe(device: str) -> str:
    if device == "cpu":
        return "cpu (no CUDA device)"
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"cuda: {', '.join(names)}"


def _native_formats() -> str:
    """Say which of the processor's instructions for bfloat16 there are."""
    import torch

    there = torch.cpu.get_capabilities()
    formats = {"amx_bf16": "AMX-BF16", "avx512_bf16": "AVX512-BF16", "avx2": "AVX2"}
    return ", ".join(text for key, text in formats.items() if there.get(key)) or "none"


def _memory() -> str:
    if not hasattr(os, "sysconf") or sys.platform == "win32":
        return "unknown"
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES") / 2**30
    free = page * os.sysconf("SC_AVPHYS_PAGES") / 2**30
    return f"{total:.1f} GiB, {free:.1f} GiB free"
