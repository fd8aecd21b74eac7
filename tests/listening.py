"""Where processes listen: the addresses of their sockets, as the kernel lists them for each process's own network."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from tests.helpers import ROOT

EVERY, LOOPBACK, ONE = "every interface", "loopback", "the ranks' interface"
# State, in the kernel's numbers; UDP: without a peer
_LISTENING = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}


def family(pid: int) -> list[int]:
    """The process and all that it has started, and those have."""
    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]


def places(pids: Iterable[int]) -> set[str]:
    """Where these processes listen by TCP or receive by UDP, in the words of docs/clusters.md."""
    found = set()
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            found |= {_place(address) for address in _addresses(Path(f"/proc/{pid}"))}
    return found


def _addresses(process: Path) -> Iterator[str]:
    """As the kernel writes them. psutil reads the network of the test's own process, and a node may have another."""
    own = set()
    for descriptor in (process / "fd").iterdir():
        with suppress(FileNotFoundError):
            own.add(os.readlink(descriptor))
    for kind, state in _LISTENING.items():
        for line in (process / "net" / kind).read_text().splitlines()[1:]:
            _, address, _, its, *_, inode = line.split()[:10]
            if its == state and f"socket:[{inode}]" in own:
                yield address.partition(":")[0]


def _place(address: str) -> str:
    """address: in words of 32 bits, each written as a number of this machine."""
    words = [int(address[start : start + 8], 16).to_bytes(4, "little") for start in range(0, len(address), 8)]
    one = ipaddress.ip_address(b"".join(words))
    if isinstance(one, ipaddress.IPv6Address):
        one = one.ipv4_mapped or one
    return EVERY if one.is_unspecified else LOOPBACK if one.is_loopback else ONE


def documented(command: str) -> set[str]:
    """Where the command listens that begins a row of the table in docs/clusters.md."""
    text = (ROOT / "docs" / "clusters.md").read_text().partition("## What listens")[2]
    row = re.search(rf"^\| `{re.escape(command)}.*?\| (.*?) \|", text, re.MULTILINE)
    assert row, f"docs/clusters.md has no row of {command}"
    return {word for word in row[1].split(", ") if word != "nothing"}
