"""A cluster that is there already: reached by TLS, asked who it is, left running."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.archives import states, write_scenes
from tests.scenes import save_tiny

pytestmark = pytest.mark.slow
OPENSSL = shutil.which("openssl")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def certificate(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Dask's configuration for TLS, in the environment, with a certificate of ours."""
    if OPENSSL is None:
        pytest.skip("needs the openssl command to make a certificate")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            OPENSSL, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            "-subj", "/CN=127.0.0.1", "-keyout", str(key), "-out", str(cert),
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    settings = {"DASK_DISTRIBUTED__COMM__TLS__CA_FILE": str(cert)}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        settings[f"DASK_DISTRIBUTED__COMM__TLS__{role}__CERT"] = str(cert)
        settings[f"DASK_DISTRIBUTED__COMM__TLS__{role}__KEY"] = str(key)
    yield os.environ | settings | {"PYTHONPATH": str(ROOT)}


def batch(tmp_path: Path, environment: dict[str, str], address: str) -> tuple[int, str]:
    model = save_tiny(tmp_path / "tiny.safetensors")
    scenes = write_scenes(tmp_path / "in", 3)
    ended = subprocess.run(
        [
            sys.executable, "-m", "geounet", "batch", str(scenes),
            "-o", str(tmp_path / "out"), "--model", str(model), "--scheduler", address,
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )  # fmt: skip
    return ended.returncode, ended.stderr


def test_a_batch_runs_on_a_cluster_that_speaks_tls_and_only_with_its_certificate(
    tmp_path: Path, certificate: dict[str, str]
) -> None:
    file = tmp_path / "scheduler.json"
    with ExitStack() as stack:

        def start(*words: str) -> None:
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{words[0]}", *words[1:]],
                env=certificate,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)

        start(
            "scheduler", "--protocol", "tls", "--host", "127.0.0.1", "--port", "8799",
            "--no-dashboard", "--scheduler-file", str(file),
        )  # fmt: skip
        start(
            "worker", "tls://127.0.0.1:8799", "--nthreads", "1", "--no-dashboard",
            "--no-nanny", "--local-directory", str(tmp_path),
        )  # fmt: skip
        while not file.exists():
            time.sleep(0.1)
        code, words = batch(tmp_path, certificate, "tls://127.0.0.1:8799")
        assert code == 0, words
        assert set(states(tmp_path / "out").values()) == {"done"}
        assert "not encrypted" not in words
        plain = os.environ | {"PYTHONPATH": str(ROOT)}
        code, words = batch(tmp_path, plain, "tls://127.0.0.1:8799")
        assert code == 2, words
        assert words.startswith("Error: ")
        assert "Traceback" not in words


def test_a_cluster_with_other_versions_is_refused_before_anything_is_done(
    tmp_path: Path,
) -> None:
    """Its workers say another numerics epoch of themselves."""
    (tmp_path / "preload.py").write_text(
        "import geounet.planning\ngeounet.planning.NUMERICS_EPOCH = 0\n"
    )
    file = tmp_path / "scheduler.json"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    with ExitStack() as stack:
        for words in (
            ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"],
            ["worker", "--nthreads", "1", "--no-dashboard", "--no-nanny",
             "--local-directory", str(tmp_path), "--preload", "preload"],
        ):  # fmt: skip
            command = [sys.executable, "-m", f"distributed.cli.dask_{words[0]}"]
            process = subprocess.Popen(
                [*command, *words[1:], "--scheduler-file", str(file)],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            while not file.exists():
                time.sleep(0.1)
        code, said = batch(tmp_path, environment, str(file))
    assert code == 2, said
    assert "has other versions" in said
    assert "numerics 0 (here " in said
    assert not (tmp_path / "out" / "000.json").exists()
