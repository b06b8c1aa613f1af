"""Background threads: a network's results are written while it processes the next images."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from .devices import worker_threads

MOST_THREADS = 8


class BackgroundWork:
    """Threads that run submitted functions; ``finish``, or the end of a ``with`` block, waits until all are done.

    Errors are raised by a later ``submit`` or at the end; a block that ends with an error cancels pending work.
    """

    def __init__(self) -> None:
        self.threads = worker_threads(MOST_THREADS)
        self._pool = ThreadPoolExecutor(self.threads)
        self._pending: deque[Future] = deque()

    def __enter__(self) -> "BackgroundWork":
        return self

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Let a thread call ``function``; waits if the threads fall behind, so that memory stays bounded."""
        while self._pending and (self._pending[0].done() or len(self._pending) > 2 * self.threads):
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(function, *arguments))

    def finish(self) -> None:
        """Wait until all work is done."""
        while self._pending:
            self._pending.popleft().result()

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self._pool.shutdown(cancel_futures=True)
