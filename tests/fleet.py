"""A whole job as a launcher would start it, of processes forked from one that has imported everything: a start costs little.

Each rank calls the real `pipeline.train.train` and ends with its exit code; what it prints goes to a log. They may be
killed, stopped and sabotaged.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.process import BaseProcess
from pathlib import Path

from launch.local import rank_environment, reserve_port
from pipeline.run.config import Config
from tests.helpers import without_gloo
from tests.patience import limit
from tests.ranks import CONTEXT, start_server


class Fleet:
    """`size` ranks training `config`. `sabotage(rank)` is called in each of them first. Logs: `logs`/rank-K.txt."""

    def __init__(self, config: Config, size: int, logs: Path, sabotage: Callable[[int], object] | None = None) -> None:
        start_server()
        self._held = ExitStack()  # the port, until the ranks have ended
        port = self._held.enter_context(reserve_port())
        logs.mkdir(exist_ok=True)
        self.logs = [logs / f"rank-{rank}.txt" for rank in range(size)]
        self.ranks: list[BaseProcess] = []
        for rank, log in enumerate(self.logs):
            log.touch()  # read before the rank has begun
            environment = rank_environment(rank, size, port)
            process = CONTEXT.Process(target=_rank, args=(config, environment, log, sabotage), daemon=True)
            process.start()
            self.ranks.append(process)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """To all that are alive, as fast as they can be reached."""
        for process in self.ranks:
            if process.exitcode is None and process.pid is not None:
                os.kill(process.pid, number)

    def wait(self, seconds: float) -> list[int]:
        """The exit codes; fails where a rank is still alive after `limit(seconds)` (and kills it)."""
        for process in self.ranks:
            process.join(limit(seconds))
        alive = [rank for rank, process in enumerate(self.ranks) if process.exitcode is None]
        self.kill()
        self._held.close()
        assert not alive, f"ranks {alive} still run after {limit(seconds):.0f} s"
        return [int(process.exitcode or 0) for process in self.ranks]

    def said(self, rank: int) -> str:
        return without_gloo(self.logs[rank].read_text(errors="replace"))


def _rank(config: Config, environment: dict[str, str], log: Path, sabotage: Callable[[int], object] | None) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(environment)
    code = 1
    try:
        if sabotage:
            sabotage(int(environment["RANK"]))
        from pipeline.train import train

        code = train(config)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
