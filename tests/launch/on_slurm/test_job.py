"""What submitit ships to the nodes: the port where the ranks meet."""

from __future__ import annotations

from launch.on_slurm.job import FIRST_PORT, LAST_PORT, port_of


def test_ports_of_neighbouring_jobs_and_attempts_differ() -> None:
    """Jobs of one array share nodes, and each may have been requeued: no sum of both numbers, which are then the same."""
    attempts = [(str(job), restarts) for job in range(1000, 1100) for restarts in range(4)]
    ports = [port_of(*one) for one in attempts]
    assert ports == [port_of(*one) for one in attempts]
    assert all(FIRST_PORT <= port < LAST_PORT for port in ports)
    assert len(set(ports)) > 380
