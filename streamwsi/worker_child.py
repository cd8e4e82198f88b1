"""A worker process: it receives calls over a pipe, runs them, and sends back what they return.

It begins in `streamwsi.zygote_child`, its parent. It ends when the pipe closes, and also when its
parent is gone while a codec hangs.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import pickle
import signal
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from .blocks import ArrayRef

__all__ = ["describe", "main"]


def main(pipe: int, arena: int, nbytes: int, parent: int) -> None:
    """Serve calls until the pipe closes.

    Args:
        pipe: file descriptor of this end of the pipe.
        arena: file descriptor of the arena.
        nbytes: the arena's size.
        parent: process id of who started it.
    """
    gc.enable()  # off while modules are imported
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    buffer = mmap.mmap(arena, nbytes)
    connection = Connection(pipe)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            connection.send_bytes(_answer(connection.recv_bytes(), buffer))
    # Skip the interpreter's tear-down: nothing here needs it, and threads of codecs may hang.
    os._exit(0)


def _answer(request: bytes, buffer: mmap.mmap) -> bytes:
    try:
        function, args = pickle.loads(request)  # from our own parent only
        result = function(
            *(arg.resolve(buffer) if isinstance(arg, ArrayRef) else arg for arg in args)
        )
        return pickle.dumps((True, result), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        return _failure(error)


def _failure(error: Exception) -> bytes:
    try:
        answer = pickle.dumps((False, error), pickle.HIGHEST_PROTOCOL)
        pickle.loads(answer)  # some exceptions pickle but do not come back
    except Exception:
        text = f"{type(error).__name__}: {error}"
        answer = pickle.dumps((False, RuntimeError(text)), pickle.HIGHEST_PROTOCOL)
    return answer


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def describe(function: Any) -> str:
    """The name under which a worker would import a function."""
    return f"{function.__module__}.{getattr(function, '__qualname__', function)}"
