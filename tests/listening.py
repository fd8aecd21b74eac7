"""Where processes listen: the addresses of their sockets, as the kernel lists them in /proc/net/tcp and tcp6."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from contextlib import suppress

import psutil

from tests.helpers import ROOT

EVERY, LOOPBACK, ONE = "every interface", "loopback", "the ranks' interface"


def family(pid: int) -> list[int]:
    """The process and all that it has started, and those have."""
    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]


def places(pids: Iterable[int]) -> set[str]:
    """Where these processes listen by TCP or receive by UDP, in the words of docs/clusters.md."""
    found = set()
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            for connection in psutil.Process(pid).net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN or (connection.laddr and not connection.raddr):
                    found.add(_place(connection.laddr.ip))
    return found


def _place(address: str) -> str:
    one = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(one, ipaddress.IPv6Address):
        one = one.ipv4_mapped or one
    return EVERY if one.is_unspecified else LOOPBACK if one.is_loopback else ONE


def documented(command: str) -> set[str]:
    """Where the command listens that begins a row of the table in docs/clusters.md."""
    text = (ROOT / "docs" / "clusters.md").read_text().partition("## What listens")[2]
    row = re.search(rf"^\| `{re.escape(command)}.*?\| (.*?) \|", text, re.MULTILINE)
    assert row, f"docs/clusters.md has no row of {command}"
    return {word for word in row[1].split(", ") if word != "nothing"}
