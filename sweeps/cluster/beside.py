"""A call beside what the main thread does, which gets the signals."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def beside(function: Callable[[], T]) -> Future[T]:
    """What a function returns, called in a thread that keeps no process alive."""
    future: Future[T] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future
