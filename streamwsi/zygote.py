"""The parent's side of the worker processes: a zygote, and the workers that it forks.

A worker that is a new interpreter costs 0.3 CPU seconds before its first tile, most of it
importing numpy and the codecs; the zygote pays that once for all of them, and for those that take
the place of dead ones, while the parent loads the model.

A zygote of our own rather than multiprocessing's forkserver: that one is shared with the user's
code and outlives the run, and its workers import the user's main module.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from multiprocessing.connection import Connection, wait

from . import zygote_child
from .blocks import Arena
from .errors import ConfigError, WorkerDied

__all__ = ["Child", "NotTaken", "Zygote"]

_ANSWER_S = 120.0
"""How long a zygote may take for its imports, or for a fork."""

_END_S = 10.0
"""How long it may take to end its workers and itself; then all are killed."""


class Zygote:
    """A process that starts workers.

    Args:
        arena: the shared memory that workers get.
        nice: added to the processes' niceness.
        modules: what it imports for them.

    Starting it returns at once.
    """

    def __init__(self, arena: Arena, nice: int, modules: tuple[str, ...]) -> None:
        self._control, theirs = socket.socketpair()
        # One request at a time, whose answer comes next.
        self._turn = threading.Lock()
        self._ending = threading.Lock()
        with theirs:
            control = theirs.fileno()
            self._process = subprocess.Popen(
                zygote_child.command(control, arena.fd, arena.nbytes, nice, modules),
                pass_fds=(control, arena.fd),
                stdin=subprocess.DEVNULL,
                # Its own group: Ctrl-C in the terminal is the parent's business.
                process_group=0,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still serves; its workers end with it."""
        try:
            return self._control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def start(self) -> Child | None:
        """A new worker; None where the zygote was gone.

        Raises:
            ConfigError: the system allows none.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            answer = self._ask(0, [theirs.fileno()])
        if answer is not None and answer > 0:
            return Child(self, answer, Connection(ours.detach()))
        ours.close()
        if answer is None:
            return None
        raise ConfigError(
            f"no worker process can be started ({os.strerror(-answer)}); allow more processes or "
            "memory, set fewer workers, or run with worker_kind='threads'"
        )

    def end(self, pid: int) -> int | None:
        """Kill a worker; its exit code, or None where the zygote was gone, and so were they all."""
        return self._ask(pid, [])

    def _ask(self, request: int, pipes: list[int]) -> int | None:
        message, answer = zygote_child.MESSAGE, b""
        with self._turn, contextlib.suppress(OSError):
            socket.send_fds(self._control, [message.pack(request)], pipes)
            if wait([self._control], _ANSWER_S):
                answer = self._control.recv(message.size)
        if answer:
            return int(message.unpack(answer)[0])
        self.kill()
        return None

    def kill(self) -> None:
        """End the zygote and its workers now, from any thread: who waits finds a closed pipe."""
        with self._ending:
            if self._process.returncode is not None:
                return
            if self.alive:
                self._process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_END_S)
                    return
            # The group has the zygote's number, which is its own until it was waited for. (EPERM
            # is what macOS says of zombies.)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def close(self) -> None:
        """End all, and the socket; only while nobody waits for an answer."""
        self.kill()
        self._control.close()


class NotTaken(WorkerDied):
    """The process was dead before it took the call: it died while idle."""


class Child:
    """The parent's side of one worker process; made by `Zygote.start`."""

    def __init__(self, zygote: Zygote, pid: int, connection: Connection) -> None:
        self.pid = pid
        self._zygote = zygote
        self._connection = connection

    @property
    def alive(self) -> bool:
        """Whether it can take a call; asked between calls: it has nothing to say then."""
        return self._zygote.alive and not self._connection.poll(0)

    def call(self, request: bytes, timeout_s: float) -> bytes:
        """Run one call; blocks.

        Raises:
            WorkerDied: the process ended or took too long; it is dead now.
            NotTaken: it did not even read the request.
        """
        try:
            self._connection.send_bytes(request)
            if not self._connection.poll(timeout_s):
                self.end()
                raise WorkerDied(f"a worker was killed because a job took over {timeout_s:g} s")
            return self._connection.recv_bytes()
        except (BrokenPipeError, ConnectionResetError) as error:
            # The kernel says so where a socket was closed with the request unread.
            self.end()
            raise NotTaken("a worker process ended before it took a job") from error
        except (EOFError, OSError) as error:
            code = self.end()
            how = "with its zygote" if code is None else f"with status {code}"
            if code is not None and code < 0:
                how = f"by signal {-code}"
            raise WorkerDied(f"a worker process ended {how} in the middle of a job") from error

    def end(self) -> int | None:
        """End the process and the pipe, while nobody waits for an answer; see `Zygote.end`."""
        self._connection.close()
        return self._zygote.end(self.pid)

    def close(self) -> None:
        """Close the pipe of a process that ended with its zygote."""
        self._connection.close()
