"""A preparation that is interrupted at any moment and started again gives the bytes of one that was not interrupted."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from data_prep import prepare as prepare_module
from data_prep import shard_imagenet, workspace
from pipeline.base.command import UserError
from tests.data_prep import paused
from tests.data_prep.paused import finished
from tests.disks import fill, small_disk
from tests.helpers import ROOT, wait_for
from tests.images import encode, smooth
from tests.patience import limit

OPTIONS = ["--samples-per-shard", "5", "--statistics-size", "32", "--statistics-short-side", "32", "--workers"]
ALONE, PAIR = [*OPTIONS, "1"], [*OPTIONS, "2"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """80 small images: 14 shards of train, 2 of val."""
    root = tmp_path_factory.mktemp("resumed") / "source"
    generator = np.random.default_rng(0)
    for number in range(80):
        folder = root / "val" / "a" if number % 8 == 0 else root / "train" / "abcd"[number % 4]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(encode(smooth(generator, 48, 64)))
    return root


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, source, hashes):
    destination = tmp_path_factory.mktemp("uninterrupted") / "dataset"
    shard_imagenet.main([str(source), str(destination), *ALONE])
    return hashes(destination)


@pytest.fixture
def started(source, tmp_path):
    """`started(destination, after, options)`: a preparation that stands still in the middle of the shard behind `after`.

    It goes on once the file tmp_path/go is there.
    """
    processes = []

    def start(destination, after, options=PAIR):
        command = [sys.executable, "-m", "tests.data_prep.paused", tmp_path / "go", str(after), source, destination]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [*command, *options], cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )
        processes.append(process)

        def stands_still():
            return len(finished(destination / ".partial")) >= after and half_written(destination)

        wait_for(lambda: process.poll() is not None or stands_still(), "a preparation in the middle of a shard", 200)
        assert process.poll() is None, process.communicate()
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def finished_shards(destination):
    """Inodes of the finished shards of a running preparation, by name."""
    partial = destination / ".partial"
    tars = [partial / path.parent.name / f"{path.stem}.tar" for path in finished(partial)]
    return {path.name: path.stat().st_ino for path in tars}


def half_written(destination):
    """Tars that are being written."""
    return list((destination / ".partial").glob("*/*.tar.*.tmp"))


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


def test_killed_twice_and_started_again(source, uninterrupted, hashes, tmp_path, started):
    destination = tmp_path / "dataset"
    for count in (2, 6):
        process = started(destination, count)
        os.kill(process.pid, signal.SIGKILL)  # the command alone: its workers must end by themselves
        wait_for(lambda: not processes_of(destination), "the end of the workers of a killed preparation")
        assert not (destination / "manifest.json").exists() and not (destination / "train").exists()
    # One of the finished shards is damaged meanwhile: it must be made again, the others kept.
    kept = finished_shards(destination)
    damaged = min(kept)
    path = next((destination / ".partial").glob(f"*/{damaged}"))
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    os.link(path, tmp_path / "kept")  # so that its inode number is not given to the file that replaces it
    shard_imagenet.main([str(source), str(destination), *PAIR])
    assert hashes(destination) == uninterrupted
    for name, inode in kept.items():
        assert (next(destination.glob(f"*/{name}")).stat().st_ino == inode) == (name != damaged)


@pytest.mark.parametrize("options", [ALONE, PAIR], ids=["one worker", "two workers"])
def test_interrupted_with_ctrl_c(source, uninterrupted, hashes, tmp_path, started, options):
    destination = tmp_path / "dataset"
    process = started(destination, 2, options)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=limit(120))
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("interrupted: what is done is kept; to go on: ")
    assert "Traceback" not in said
    assert not processes_of(destination) and not half_written(destination)
    kept = finished_shards(destination)
    assert len(kept) >= 2
    shard_imagenet.main([str(source), str(destination), *ALONE])
    assert hashes(destination) == uninterrupted
    assert all(next(destination.glob(f"*/{name}")).stat().st_ino == inode for name, inode in kept.items())


def test_interrupted_while_a_worker_starts(source, tmp_path, started, monkeypatch):
    monkeypatch.setenv(paused.START, "1")
    destination = tmp_path / "dataset"
    process = started(destination, 2)
    wait_for((tmp_path / "go.second").exists, "the start of the second worker")
    os.killpg(process.pid, signal.SIGINT)
    (tmp_path / "go.started").touch()
    _, said = process.communicate(timeout=limit(120))
    assert process.returncode == 130 and "Traceback" not in said
    assert not processes_of(destination) and not half_written(destination)


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
            shard_imagenet.main([str(source), str(destination), *ALONE])
        assert not (destination / "manifest.json").exists()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(prepare_module.shutil, "rmtree", lambda _: publish_until(0)(None, None))
        shard_imagenet.main([str(source), str(destination), *ALONE])
    assert (destination / "manifest.json").exists() and (destination / ".partial").exists()
    shard_imagenet.main([str(source), str(destination), *ALONE])
    assert hashes(destination) == uninterrupted


def test_a_second_run_is_refused_while_the_first_works(source, uninterrupted, hashes, tmp_path, started, command):
    destination = tmp_path / "dataset"
    process = started(destination, 1, ALONE)
    second = command("data_prep/shard_imagenet.py", source, destination, *ALONE)
    assert second.returncode == 2
    assert f"another process is preparing {destination}" in second.stderr
    (tmp_path / "go").touch()
    _, said = process.communicate(timeout=limit(200))
    assert process.returncode == 0, said
    assert hashes(destination) == uninterrupted


def test_a_killed_worker_ends_the_run_with_a_sentence(source, uninterrupted, hashes, tmp_path, started):
    destination = tmp_path / "dataset"
    process = started(destination, 1)
    workers = set()
    wait_for(lambda: workers.update(processes_of(destination) - {process.pid}) or workers, "a worker")
    os.kill(min(workers), signal.SIGKILL)  # as the kernel does when the memory runs out
    _, said = process.communicate(timeout=limit(120))
    assert process.returncode == 2
    assert "a worker process was killed" in said and "Traceback" not in said
    shard_imagenet.main([str(source), str(destination), *ALONE])
    assert hashes(destination) == uninterrupted


def test_other_settings_take_nothing_over(source, hashes, tmp_path, started):
    destination = tmp_path / "dataset"
    process = started(destination, 4, ALONE)
    process.kill()
    process.communicate()
    other = [*ALONE, "--seed", "3", "--samples-per-shard", "40"]
    shard_imagenet.main([str(source), str(destination), *other])
    shard_imagenet.main([str(source), str(tmp_path / "fresh"), *other])
    assert hashes(destination) == hashes(tmp_path / "fresh")


def test_a_disk_that_is_too_small_is_noticed_before_the_work(source, tmp_path, monkeypatch):
    usage = prepare_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(prepare_module.shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(UserError, match=r"needs 0\.\d\d GB and the disk of .*dataset has 0\.00 GB"):
        shard_imagenet.main([str(source), str(tmp_path / "dataset"), *ALONE])
    assert not list(tmp_path.rglob("*.tar"))


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, 20 MB."""
    with small_disk(tmp_path / "disk", 20, lazy=True) as disk:
        yield disk


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_becomes_full(started, source, uninterrupted, disk, tmp_path, hashes, workers):
    destination, options = disk / "dataset", [*OPTIONS, str(workers)]
    process = started(destination, 3, options)
    of_others = fill(disk)
    (tmp_path / "go").touch()
    _, errors = process.communicate(timeout=limit(200))
    assert process.returncode == 2, errors
    assert "the disk is full: free some space and start the same command again" in errors
    assert "Traceback" not in errors
    assert not half_written(destination) and [path.name for path in destination.iterdir()] == [".partial"]
    kept = finished_shards(destination)
    assert len(kept) >= 3
    of_others.unlink()
    shard_imagenet.main([str(source), str(destination), *options])
    assert hashes(destination) == uninterrupted
    for name, inode in kept.items():  # they were not made again
        assert next(destination.rglob(name)).stat().st_ino == inode


def test_a_destination_that_vanishes(started, source, uninterrupted, tmp_path, hashes):
    destination = tmp_path / "dataset"
    process = started(destination, 3)
    destination.rename(tmp_path / "moved away")
    (tmp_path / "go").touch()
    _, errors = process.communicate(timeout=limit(200))
    assert process.returncode == 2, errors
    assert f"look after {destination}, then start the same command again" in errors and "Traceback" not in errors
    shard_imagenet.main([str(source), str(destination), *PAIR])
    assert hashes(destination) == uninterrupted


def test_a_read_only_destination(source, disk, command):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    done = command("data_prep/shard_imagenet.py", source, disk / "dataset", *ALONE)
    assert done.returncode == 2 and "the file system is read-only" in done.stderr and "Traceback" not in done.stderr
