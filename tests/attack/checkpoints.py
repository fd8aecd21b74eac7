"""Checkpoints: one to three of the newest are damaged, each in a drawn way; then the run goes on and saves."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch

from pipeline.base.command import UserError
from pipeline.base.layout import checkpoint_name, checkpoints_in
from pipeline.training.checkpoint import CheckpointConfig, Checkpoints, publish
from tests.attack.attack import Attack, Outcome
from tests.attack.isolated import Isolated

SECONDS = 10.0  # for one try
NUMBERS = range(10, 100, 10)


def state(number: int, width: int = 60) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(number)
    weights = {"w": torch.randn(width, generator=generator), "b": torch.randn(7, generator=generator)}
    return {"iteration": number, "model": weights, "training": {"lr": 0.1 / number, "names": ["a", "b"]}}


def misfit(state: dict[str, Any]) -> str | None:
    return None if len(state["model"]["w"]) == 60 else "another net"


def flip(path: Path, draw: Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def part_of(path: Path, draw: Random) -> tuple[bytes, int, int]:
    """The content, and the bounds of a drawn part of it."""
    content = path.read_bytes()
    start = draw.randrange(len(content))
    return content, start, min(len(content), start + 1 + draw.randrange(512))


def truncate(path: Path, draw: Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size))


def zero(path: Path, draw: Random) -> None:
    content, start, end = part_of(path, draw)
    path.write_bytes(content[:start] + bytes(end - start) + content[end:])


def duplicate(path: Path, draw: Random) -> None:
    content, start, end = part_of(path, draw)
    path.write_bytes(content[:end] + content[start:])


def insert(path: Path, draw: Random) -> None:
    content, start, _ = part_of(path, draw)
    path.write_bytes(content[:start] + draw.randbytes(1 + draw.randrange(64)) + content[start:])


def delete(path: Path, draw: Random) -> None:
    content, start, end = part_of(path, draw)
    path.write_bytes(content[:start] + content[end:])


def swap(path: Path, draw: Random) -> None:
    other = draw.choice([one for _, one in checkpoints_in(path.parent) if content_of(one) is not None])
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def folder(path: Path, draw: Random) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path, draw: Random) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path, draw: Random) -> None:
    path.unlink()
    path.symlink_to(draw.choice([path.name, "nowhere", "/dev/zero", "/dev/full", "/proc/self/mem", "."]))


def other_net(path: Path, draw: Random) -> None:
    path.unlink()
    publish(path.parent, int(path.name[:8]), state(int(path.name[:8]), width=61))


def misname(path: Path, draw: Random) -> None:
    path.rename(path.with_name(f"{draw.randrange(100, 10_000):08d}{path.name[8:]}"))


def right_digest(path: Path, draw: Random) -> None:
    """Of a file that is none of torch's, or holds no state."""
    contents = io.BytesIO()
    torch.save(draw.choice([[1], {"a": 2}, "text"]), contents)
    made = draw.choice([draw.randbytes(100), b"", contents.getvalue()])
    number = int(path.name[:8])
    path.unlink()
    path.with_name(checkpoint_name(number, hashlib.sha256(made).hexdigest())).write_bytes(made)


WAYS: tuple[Callable[[Path, Random], None], ...] = (
    flip, truncate, zero, duplicate, insert, delete, swap, folder, pipe, link, other_net, misname, right_digest,
)  # fmt: skip


def one_try(seed: str, place: Path) -> str:
    """What came of it; raises AssertionError where it is wrong."""
    draw = Random(seed)
    shutil.rmtree(place, ignore_errors=True)
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        published = {
            path.name: path.read_bytes()
            for path in (publish(place, number, state(number)) for number in NUMBERS[: draw.randrange(2, 6)])
        }
        newest = [path for _, path in checkpoints_in(place)][-draw.randrange(1, 4) :]
        ways = [draw.choice(WAYS) for _ in newest]
        for path, damage in zip(newest, ways, strict=True):
            if path.is_file():  # `swap` has damaged it already
                damage(path, draw)
        sound = [path for _, path in checkpoints_in(place) if published.get(path.name) == content_of(path)]
        listed = [path for _, path in checkpoints_in(place)]
        what = f"{', '.join(way.__name__ for way in ways)} of {len(published)}"
        keep = draw.randrange(1, 4)
        checkpoints = Checkpoints(place, CheckpointConfig(keep_last=keep, keep_best=False), misfit=misfit)
        try:
            found = checkpoints.newest()
        except UserError as refused:
            assert not sound, f"{what}: refused though {sound[-1].name} is sound: {refused}"
            assert [path for _, path in checkpoints_in(place)] == listed, f"{what}: a refusal changed the folder"
            return "none sound: refused, nothing touched"
        assert found is not None and sound, f"{what}: {found} was found where {len(sound)} are sound"
        assert found.path == sound[-1], f"{what}: {found.path.name} was found, not {sound[-1].name}"
        wanted = state(found.iteration)
        assert found.state["training"] == wanted["training"] and all(
            torch.equal(found.state["model"][name], wanted["model"][name]) for name in ("w", "b")
        ), f"{what}: another state was read"
        checkpoints.go_on_from(found)
        saved = found.iteration
        for _ in range(draw.randrange(1, 4)):
            saved += draw.randrange(1, 8)
            checkpoints.save(saved, state(saved))
            assert checkpoints.wait(), f"{what}: {saved} was not saved: {said.getvalue()}"
            published |= {path.name: path.read_bytes() for it, path in checkpoints_in(place) if it == saved}
            left = [path for _, path in checkpoints_in(place)]
            good = [path for path in left if published.get(path.name) == content_of(path)]
            assert left and good[-1:] == left[-1:] and int(left[-1].name[:8]) == saved, f"{what}: {saved} is not newest"
            assert len(good) >= min(keep, len(sound) + 1), f"{what}: {len(good)} sound ones are left, keep_last {keep}"
            sound = good
        checkpoints.close()
    return "the newest sound one found, sound ones kept"


def content_of(path: Path) -> bytes | None:
    """None where it is no file, or cannot be read."""
    if not path.is_file():
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        assert error.errno == errno.EIO, error
        return None


def run(draw: Random, tries: int, folder: Path, outcome: Outcome) -> None:
    with Isolated(one_try, SECONDS) as isolated:
        for number in range(tries):
            seed = f"{draw.getrandbits(64)}"
            ended = isolated(seed, folder / "checkpoints")
            if ended.how == "returned":
                outcome.right(ended.value)
            else:
                reason = ended.said.strip().splitlines()[-1] if ended.said else ended.how
                outcome.wrong(f"try {number}, seed {seed!r} of one_try: {ended.how}: {reason}")


CHECKPOINTS = Attack(
    name="checkpoints",
    what="1 to 3 of the newest checkpoints damaged, then continued and saved",
    run=run,
    short=300,
    full=10_000,
)
