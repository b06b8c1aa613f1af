"""Write files in threads while the work that makes their content goes on."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class WriteBehind:
    """A few threads that call functions in the background; for ``with``, at whose end everything is written.

    An error in a function is raised at the latest at the end.

    Args:
        threads: number of threads.
        waiting: calls that may wait; one more waits for the oldest.
    """

    def __init__(self, threads: int = 2, waiting: int = 64) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._calls: deque[Future] = deque()
        self._waiting = waiting

    def __call__(self, write: Callable[..., None], *args: Any) -> None:
        """Call ``write(*args)`` in the background."""
        while len(self._calls) >= self._waiting:
            self._calls.popleft().result()
        self._calls.append(self._pool.submit(write, *args))

    def __enter__(self) -> "WriteBehind":
        return self

    def __exit__(self, *error: object) -> None:
        with self._pool:  # waits for all
            while self._calls and error[0] is None:
                self._calls.popleft().result()
