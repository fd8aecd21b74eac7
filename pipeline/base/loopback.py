"""This machine's address for itself, which nobody else can connect to."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress

from pipeline.base.command import UserError

INTERFACE = "lo"
_CONNECTS_WITHIN_SECONDS = 2.0


def loopback() -> str:
    """127.0.0.1, or ::1 where there is no IPv4. Raises UserError where the loopback interface is down."""
    for address in ("127.0.0.1", "::1"):
        with suppress(OSError), listener(address, 0) as server:
            socket.create_connection(server.getsockname()[:2], _CONNECTS_WITHIN_SECONDS).close()
            return address
    raise UserError(
        f"this machine cannot connect to itself: its loopback interface is down (as root: ip link set {INTERFACE} up), "
        "or start one process, which connects to none"
    )


def is_loopback(address: str) -> bool:
    """Whether an address, as MASTER_ADDR gives it, is this machine's for itself. Host names but localhost are not."""
    with suppress(ValueError):
        return ipaddress.ip_address(address).is_loopback
    return address == "localhost"


def listener(address: str, port: int) -> socket.socket:
    """A socket that listens at one address of this machine (numeric, or localhost), and at no other. Raises OSError."""
    family, kind, protocol, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    server = socket.socket(family, kind, protocol)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(place)
        server.listen(socket.SOMAXCONN)
    except OSError:
        server.close()
        raise
    return server
