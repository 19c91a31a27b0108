"""How long work begins and ends with its processes: told to stop, or left without their parent."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from crbp_d2.interruption import Interrupted, handling

logger = logging.getLogger(__name__)


@contextmanager
def orderly_end() -> Iterator[None]:
    """Makes SIGTERM end the block as an error would, with all that is cleaned up then.

    Without effect outside the main thread, and where the program handles SIGTERM itself.

    Raises:
        Interrupted: the process was told to end; the exit code is 143.
    """
    if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    try:
        with handling((signal.SIGTERM,)):
            yield
    except Interrupted:
        logger.warning("Ended, as told by SIGTERM. The same call starts again, or goes on")
        raise


def live_with_parent() -> None:
    """Ends this process with its parent, whatever ended that; to be called in a worker."""
    # Ctrl-C reaches all processes of a terminal; the parent ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A forked worker has that of its parent.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_after_parent, daemon=True).start()


def _end_after_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
