"""The port where the ranks of one machine meet."""

from __future__ import annotations

import errno
import socket

import pytest
import torch.distributed as dist

from launch.local import reserve_port


def test_a_reserved_port_is_free_for_our_ranks_alone() -> None:
    with reserve_port() as port:
        for address in ("127.0.0.1", "127.0.0.2", ""):
            with socket.socket() as stranger, pytest.raises(OSError) as refused:
                stranger.bind((address, port))
            assert refused.value.errno == errno.EADDRINUSE
        store = dist.TCPStore("127.0.0.1", port, 1, is_master=True)
        store.set("key", "value")
        assert store.get("key") == b"value"
