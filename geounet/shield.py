"""What a worker's process is told before it gets its first task."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

from distributed import WorkerPlugin


class Shield(WorkerPlugin):
    """Makes worker processes deaf to Ctrl-C, and keeps them from printing.

    A terminal sends Ctrl-C to every process that it has. The parent hears it and says
    when work should stop; without this Dask's workers end under their tasks
    (distributed #1925, #3384). What they log travels with their answers.

    Args:
        parent: the process that hears Ctrl-C, in which workers may be threads.
    """

    name = "geounet"

    def __init__(self, parent: int) -> None:
        self.parent = parent

    def setup(self, worker: Any) -> None:
        """Do it, in the process of ``worker``."""
        del worker
        alone = threading.current_thread() is threading.main_thread()
        if os.getpid() == self.parent or not alone:
            return
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        logger = logging.getLogger("geounet")
        logger.propagate = False
        logger.addHandler(logging.NullHandler())
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
