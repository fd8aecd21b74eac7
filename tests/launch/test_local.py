"""The start of the ranks of one machine, and the port where they meet."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys

import pytest
import torch.distributed as dist

from launch.local import reserve_port
from tests.helpers import ROOT


def test_a_reserved_port_is_free_for_our_ranks_alone() -> None:
    with reserve_port() as port:
        for address in ("127.0.0.1", "127.0.0.2", ""):
            with socket.socket() as stranger, pytest.raises(OSError) as refused:
                stranger.bind((address, port))
            assert refused.value.errno == errno.EADDRINUSE
        store = dist.TCPStore("127.0.0.1", port, 1, is_master=True)
        store.set("key", "value")
        assert store.get("key") == b"value"


def test_the_launcher_starts_without_torch() -> None:
    """Its ranks import torch side by side, each for seconds; an import before they start would delay them all."""
    program = "import launch.local, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
