"""Requests to stop in a launcher whose ranks are in other processes' hands (submitit's, Ray's) and write to logs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.base.stopping import Requests, announcement, heeded, say


@contextmanager
def passing_on(saving: str, ask: Callable[[signal.Signals], None], end: Callable[[], None]) -> Iterator[Requests]:
    """While the block runs, a request to stop is answered on the terminal and passed on, once; a second Ctrl-C ends all.

    saving: what the ranks then do, such as "saving at the next iteration". ask: passes a request on. end: does what a second
    Ctrl-C asks for; it may end this process. Nothing happens outside of the main thread.
    """
    requests = Requests()

    def take(number: int, frame: FrameType | None) -> None:
        before = requests.first
        meaning = requests.take(number)
        if meaning == "end":
            end()
        elif meaning == "ask" and (before is None or number != before):
            say(announcement(number, saving))
            if before is None:
                ask(signal.Signals(number))

    main = threading.current_thread() is threading.main_thread()
    previous = {number: signal.signal(number, take) for number in heeded()} if main else {}
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
