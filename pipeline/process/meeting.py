"""Where the ranks of a job meet: a store of torch at MASTER_ADDR:MASTER_PORT, which rank 0 or torchrun's agent serves.

Whoever can connect to the store can read and replace what ranks tell one another there. The ranks of one machine
therefore meet at its loopback address, where nobody else can connect, and connect to one another there alone.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from datetime import timedelta
from functools import partial

import torch.distributed as dist

from pipeline.base.command import UserError
from pipeline.base.loopback import INTERFACE, is_loopback, listener, loopback
from pipeline.base.stopping import say
from pipeline.process.notes import StoreBoard
from pipeline.process.waiting import Reminder, listed

_LOOK_SECONDS = 0.05


def stay_on_this_machine() -> None:
    """Let gloo and NCCL listen and connect by the loopback interface alone, unless the environment names another."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", INTERFACE)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={INTERFACE}")  # =: NCCL takes a bare name for a prefix


class MeetingPlace:
    """The store where ranks 0 to `size` - 1 meet. A rank says, in its log, if rank 0 is missing; rank 0 says who is.

    store: for what ranks tell one another before they have a group.
    """

    def __init__(self, rank: int, size: int, timeout: timedelta, *, one_machine: bool) -> None:
        """Returns on rank 0 when all have come, on the others when rank 0 has. one_machine: all ranks are on this machine.

        Raises UserError where the environment gives no place, torch's DistError where one does not come within `timeout`.
        """
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)  # torchrun's agent serves the store
        self.address, self.port = _address(one_machine and not agent), _port()
        self.rank, self.size, self.timeout = rank, size, timeout
        self.store: dist.Store = self._serve() if rank == 0 and not agent else self._connect()
        self.store.set(f"host of {rank}", socket.gethostname())
        if rank == 0:
            self._wait_for_all()

    def board(self) -> StoreBoard:
        """For the notes of the ranks."""
        return StoreBoard(dist.PrefixStore("notes", self._client()), self.size)

    def _serve(self) -> dist.TCPStore:
        make = partial(
            dist.TCPStore,
            self.address,
            self.port,
            self.size,
            is_master=True,
            timeout=self.timeout,
            wait_for_workers=False,
        )
        if is_loopback(self.address):
            try:
                return make(master_listen_fd=listener(self.address, self.port).detach())
            except OSError as error:
                raise UserError(
                    f"rank 0 cannot listen at {self.address}:{self.port} ({error.strerror or error}): start again, or give "
                    "another MASTER_PORT"
                ) from None
        return make(multi_tenant=True)  # by torch's own socket, at every interface: other machines may come by any

    def _connect(self) -> dist.TCPStore:
        started, reminder = time.monotonic(), Reminder()
        while (problem := self._problem()) and (waited := time.monotonic() - started) < self.timeout.total_seconds():
            if reminder.due(waited):
                where = f"{self.address}:{self.port} ({problem})"
                print(f"waiting for rank 0 for {waited:.0f} s: nobody answers at {where}", file=sys.stderr, flush=True)
            time.sleep(_LOOK_SECONDS)
        return self._client()

    def _client(self) -> dist.TCPStore:
        return dist.TCPStore(self.address, self.port, is_master=False, timeout=self.timeout, wait_for_workers=False)

    def _problem(self) -> str:
        """Why the store cannot be reached; empty where it can."""
        try:
            socket.create_connection((self.address, self.port), timeout=2.0).close()
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def _wait_for_all(self) -> None:
        started, reminder = time.monotonic(), Reminder()
        missing = list(range(1, self.size))
        while missing := [rank for rank in missing if not self.store.check([f"host of {rank}"])]:
            waited = time.monotonic() - started
            if waited > self.timeout.total_seconds():
                return  # what follows waits for them, too, and fails
            if reminder.due(waited):
                what = "it has" if len(missing) == 1 else "they have"
                say(f"waiting for {listed(missing)} of {self.size} for {waited:.0f} s: {what} not come yet")
            time.sleep(_LOOK_SECONDS)


def _address(one_machine: bool) -> str:
    given = os.environ.get("MASTER_ADDR")
    if not given:
        raise UserError("RANK is set but MASTER_ADDR is not: start ranks with a launcher (launch/local.py, torchrun)")
    return loopback() if one_machine else given


def _port() -> int:
    text = os.environ.get("MASTER_PORT", "")
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise UserError(
            f"MASTER_PORT is '{text}': start ranks with a launcher (launch/local.py, torchrun), which gives a port"
        )
    return int(text)
