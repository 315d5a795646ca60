"""Arrays on the disk, mapped by several threads at once."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geounet.staged import mapped


def test_what_was_staged_is_mapped_and_cannot_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.arange(6).reshape(2, 3))
    array = mapped(path)
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match="read-only"):
        array[1, 2] = 9


def test_two_threads_never_read_headers_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.arange(6))
    load, inside, worst = np.load, [0], [0]
    meanwhile = threading.Event()

    def slow(*args: Any, **options: Any) -> Any:
        inside[0] += 1
        worst[0] = max(worst[0], inside[0])
        meanwhile.wait(0.01)
        try:
            return load(*args, **options)
        finally:
            inside[0] -= 1

    monkeypatch.setattr(np, "load", slow)
    threads = [threading.Thread(target=mapped, args=(path,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worst[0] == 1
