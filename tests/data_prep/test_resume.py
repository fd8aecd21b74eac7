"""Interrupted at any moment and started again, a preparation ends in the bytes of one that never was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import prepare as prepare_module
from data_prep import shard_imagenet, workspace
from pipeline.command import UserError

REPOSITORY = Path(__file__).parents[2]
OPTIONS = ["--samples-per-shard", "5", "--statistics-size", "32", "--statistics-short-side", "32", "--workers", "2"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """80 images that take a while each: some 20 ms to decode."""
    root = tmp_path_factory.mktemp("large") / "source"
    generator = np.random.default_rng(0)
    coarse = [Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)) for _ in range(4)]
    large = [one.resize((1600, 1200), Image.Resampling.BICUBIC) for one in coarse]
    for number in range(80):
        folder = root / ("val" if number % 8 == 0 else "train") / "abcd"[number % 4]
        if number % 8 == 0:
            folder = root / "val" / "a"
        folder.mkdir(parents=True, exist_ok=True)
        large[number % 4].save(folder / f"{number}.jpg", quality=80, comment=str(number))
    return root


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, source, hashes):
    destination = tmp_path_factory.mktemp("uninterrupted") / "dataset"
    shard_imagenet.main([str(source), str(destination), *OPTIONS])
    return hashes(destination)


def started(source, destination):
    command = [sys.executable, REPOSITORY / "data_prep/shard_imagenet.py", source, destination, *OPTIONS]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finished_shards(destination):
    """Inodes of the finished shards of a running preparation, by name."""
    records = (destination / ".partial" / "records").glob("*/*.npz")
    tars = [destination / ".partial" / path.parent.name / f"{path.stem}.tar" for path in records]
    return {path.name: path.stat().st_ino for path in tars}


def wait_for_shards(destination, count):
    deadline = time.monotonic() + 60
    while len(finished_shards(destination)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def processes_of(destination):
    """Processes that have a file of the destination open."""
    found = set()
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            links = [os.readlink(f"/proc/{process}/fd/{number}") for number in os.listdir(f"/proc/{process}/fd")]
        except OSError:  # it ended, or closed a file, meanwhile
            continue
        if any(link.startswith(str(destination)) for link in links):
            found.add(int(process))
    return found


def test_killed_twice_and_started_again(source, uninterrupted, hashes, tmp_path):
    destination = tmp_path / "dataset"
    for count in (2, 6):
        process = started(source, destination)
        wait_for_shards(destination, count)
        os.kill(process.pid, signal.SIGKILL)  # the command alone: its workers must end by themselves
        process.communicate()
        deadline = time.monotonic() + 10
        while processes_of(destination):
            assert time.monotonic() < deadline, "workers outlived their parent"
            time.sleep(0.02)
        assert not (destination / "manifest.json").exists() and not (destination / "train").exists()
    # One of the finished shards is damaged meanwhile: it must be made again, the others kept.
    kept = finished_shards(destination)
    damaged = min(kept)
    path = next((destination / ".partial").glob(f"*/{damaged}"))
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    shard_imagenet.main([str(source), str(destination), *OPTIONS])
    assert hashes(destination) == uninterrupted
    for name, inode in kept.items():
        assert (next(destination.glob(f"*/{name}")).stat().st_ino == inode) == (name != damaged)


def test_interrupted_with_ctrl_c(source, uninterrupted, hashes, tmp_path):
    destination = tmp_path / "dataset"
    process = started(source, destination)
    wait_for_shards(destination, 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted" in said and "Traceback" not in said
    assert not processes_of(destination)
    shard_imagenet.main([str(source), str(destination), *OPTIONS])
    assert hashes(destination) == uninterrupted


def test_cut_off_at_every_step_of_the_publication(source, uninterrupted, hashes, tmp_path, monkeypatch):
    destination = tmp_path / "dataset"

    class Killed(BaseException):
        pass

    def publish_until(step):
        steps = iter(range(step))

        def replace(origin, target):
            if next(steps, None) is None:
                raise Killed
            os.rename(origin, target)

        return replace

    moves = len(prepare_module.published_names([])) + 4  # train, val: a folder and a table each
    for step in range(moves):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            publish = workspace.publish

            def cut(*arguments, step=step, publish=publish, patch=patch):
                patch.setattr(workspace.os, "replace", publish_until(step))
                publish(*arguments)

            patch.setattr(prepare_module, "publish", cut)
            shard_imagenet.main([str(source), str(destination), *OPTIONS])
        assert not (destination / "manifest.json").exists()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(prepare_module, "discard", lambda _: publish_until(0)(None, None))
        shard_imagenet.main([str(source), str(destination), *OPTIONS])
    assert (destination / "manifest.json").exists() and (destination / ".partial").exists()
    shard_imagenet.main([str(source), str(destination), *OPTIONS])
    assert hashes(destination) == uninterrupted


def test_a_second_run_is_refused_while_the_first_works(source, uninterrupted, hashes, tmp_path, command):
    destination = tmp_path / "dataset"
    process = started(source, destination)
    wait_for_shards(destination, 1)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        second = command("data_prep/shard_imagenet.py", source, destination, *OPTIONS)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert second.returncode == 2
    assert f"another process is preparing {destination}" in second.stderr
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert hashes(destination) == uninterrupted


def test_a_killed_worker_ends_the_run_with_a_sentence(source, uninterrupted, hashes, tmp_path):
    destination = tmp_path / "dataset"
    process = started(source, destination)
    wait_for_shards(destination, 1)
    while not (workers := processes_of(destination) - {process.pid}):
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(min(workers), signal.SIGKILL)  # as the kernel does when the memory runs out
    _, said = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "a worker process was killed" in said and "Traceback" not in said
    shard_imagenet.main([str(source), str(destination), *OPTIONS])
    assert hashes(destination) == uninterrupted


def test_other_settings_take_nothing_over(source, hashes, tmp_path):
    destination = tmp_path / "dataset"
    process = started(source, destination)
    wait_for_shards(destination, 4)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    other = [*OPTIONS, "--seed", "3", "--samples-per-shard", "40"]
    shard_imagenet.main([str(source), str(destination), *other])
    shard_imagenet.main([str(source), str(tmp_path / "fresh"), *other])
    assert hashes(destination) == hashes(tmp_path / "fresh")


def test_a_disk_that_is_too_small_is_noticed_before_the_work(source, tmp_path, monkeypatch):
    usage = prepare_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(prepare_module.shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(UserError, match=r"needs 0\.\d\d GB and the disk of .*dataset has 0\.00 GB"):
        shard_imagenet.main([str(source), str(tmp_path / "dataset"), *OPTIONS])
    assert not list(tmp_path.rglob("*.tar"))
