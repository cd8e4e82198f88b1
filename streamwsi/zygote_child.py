"""The zygote process: it imports what workers need, once, and forks a worker whenever asked.

Started by `streamwsi.zygote` with a plain ``python -c``: nothing of the user's main module is
imported, so that scripts need no ``if __name__ == "__main__"`` and workers carry neither torch
nor zarr.

Forking is safe here because there is one thread: the libraries are imported and never called,
and numpy's BLAS is told to start no threads. Elsewhere than on Linux system libraries have
threads that nobody sees; there each worker is a new interpreter.

It ends, and its workers before it, when its end of the socket closes, when its parent is gone (a
copy of the socket may live on in a process that the parent forked), and at SIGTERM.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import os
import signal
import socket
import struct
import sys
import time

from . import worker_child

__all__ = ["FORKS", "MESSAGE", "command", "main"]

FORKS = sys.platform == "linux"

MESSAGE = struct.Struct("=i")
"""A request: 0 with the pipe of a worker to be started, or the process id of one to be ended.
The answer is its process id, or minus the error number; or its exit code."""

_LOOK_S = 1.0
_MOST_S = 5.0
"""How long a worker that was killed may take to be gone: one may wait for a disk."""


def main(
    control: int, arena: int, nbytes: int, parent: int, nice: int, modules: tuple[str, ...]
) -> None:
    """Serve requests until the parent is gone or wants no more.

    Args:
        control: file descriptor of this end of the socket.
        arena: file descriptor of the arena.
        nbytes: the arena's size.
        parent: process id of who started it.
        nice: added to the niceness of this process and of the workers.
        modules: imported before the first worker is started.
    """
    os.nice(nice)
    if sys.platform == "linux":
        # Decoding need not run the moment that its job comes. Without waking up into the turns of
        # the threads that run the model, a thin one's runs took a twentieth less on two cores.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for module in modules if FORKS else ():
        # A worker that needs it will say what is wrong with it.
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    # What was imported stays for good: collecting would cost time, and unshare its pages.
    gc.freeze()
    zygote = _Zygote(socket.socket(fileno=control), arena, nbytes)
    signal.signal(signal.SIGTERM, lambda *_: zygote.leave())
    try:
        zygote.serve(parent)
    finally:
        zygote.leave()


class _Zygote:
    """The workers that were started, and what they are given."""

    def __init__(self, control: socket.socket, arena: int, nbytes: int) -> None:
        self._control = control
        self._arena = arena
        self._nbytes = nbytes
        self._workers: set[int] = set()

    def serve(self, parent: int) -> None:
        """Answer requests until there will be no more."""
        self._control.settimeout(_LOOK_S)
        while os.getppid() == parent:
            try:
                request, pipes, *_ = socket.recv_fds(self._control, MESSAGE.size, 1)
            except TimeoutError:
                continue
            if not request:
                return
            (pid,) = MESSAGE.unpack(request)
            self._control.sendall(MESSAGE.pack(self._end(pid) if pid else self._start(pipes)))

    def leave(self) -> None:
        """End all workers, then this process."""
        for pid in self._workers:
            os.kill(pid, signal.SIGKILL)
        for pid in self._workers:
            _exit_code(pid)
        os._exit(0)

    def _start(self, pipes: list[int]) -> int:
        if not pipes:  # the system drops those that find no room
            return -errno.EMFILE
        (pipe,) = pipes
        try:
            pid = self._fork(pipe) if FORKS else self._spawn(pipe)
        except OSError as error:
            return -(error.errno or 1)
        finally:
            os.close(pipe)
        self._workers.add(pid)
        return pid

    def _end(self, pid: int) -> int:
        os.kill(pid, signal.SIGKILL)
        self._workers.remove(pid)
        return _exit_code(pid)

    def _fork(self, pipe: int) -> int:
        zygote = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._control.close()
            worker_child.main(pipe, self._arena, self._nbytes, zygote)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)

    def _spawn(self, pipe: int) -> int:
        os.set_inheritable(pipe, True)
        os.set_inheritable(self._arena, True)
        arguments = (pipe, self._arena, self._nbytes, os.getpid())
        line = _python(worker_child.__name__, arguments)
        return os.posix_spawn(line[0], line, os.environ)


def _exit_code(pid: int) -> int:
    """How a worker that was killed ended: as `subprocess` puts it, minus a signal's number."""
    until = time.monotonic() + _MOST_S
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return -signal.SIGKILL


def command(
    control: int, arena: int, nbytes: int, nice: int, modules: tuple[str, ...]
) -> list[str]:
    """The command line that starts a zygote with this interpreter and this import path."""
    return _python(__name__, (control, arena, nbytes, os.getpid(), nice, modules))


def _python(module: str, arguments: tuple[object, ...]) -> list[str]:
    path = [entry for entry in sys.path if isinstance(entry, str)]
    code = (
        f"import gc, sys; gc.disable(); sys.path[:] = {path!r}; "
        f"from {module} import main; main(*{arguments!r})"
    )
    return [sys.executable, "-c", code]
