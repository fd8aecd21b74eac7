import io
import os
import subprocess
import tarfile

import pytest

from data_prep.tars import members, open_for_ranges
from pipeline.base.command import UserError


def listed(path, start=0, size=None, marked=True):
    with open_for_ranges(path) as (descriptor, file_size):
        return members(descriptor, start, file_size - start if size is None else size, str(path), marked=marked)


@pytest.fixture
def made_by_tar(tmp_path):
    """A tar written by tar itself, with a folder and a name of over 100 characters in it."""
    folder = tmp_path / "files" / "deep"
    folder.mkdir(parents=True)
    contents = {f"{number}.JPEG": os.urandom(number * 300) for number in range(5)} | {"x" * 150 + ".jpg": b"long"}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    subprocess.run(["tar", "-cf", tmp_path / "a.tar", "-C", tmp_path / "files", "."], check=True)
    return tmp_path / "a.tar", contents


def test_members_are_byte_ranges_of_the_file(made_by_tar):
    path, contents = made_by_tar
    data = path.read_bytes()
    assert {one.name: data[one.offset : one.offset + one.size] for one in listed(path)} == contents


def test_a_tar_inside_a_file(made_by_tar, tmp_path):
    path, contents = made_by_tar
    inner = path.read_bytes()
    (tmp_path / "outer").write_bytes(b"before" * 100 + inner + b"after")
    data = (tmp_path / "outer").read_bytes()
    found = listed(tmp_path / "outer", start=600, size=len(inner))
    assert {one.name: data[one.offset : one.offset + one.size] for one in found} == contents


def test_every_cut_is_noticed(made_by_tar, tmp_path):
    path, _ = made_by_tar
    data, last = path.read_bytes(), max(one.offset + one.size for one in listed(path))
    # At every block boundary (there, tarfile takes the rest for the end) and inside blocks.
    for length in [*range(512, last, 512), 100, 700, last - 1]:
        (tmp_path / "cut.tar").write_bytes(data[:length])
        with pytest.raises(UserError, match="cut off or damaged"):
            listed(tmp_path / "cut.tar")


def test_a_tar_inside_a_tar_needs_no_end_marker(made_by_tar, tmp_path):
    path, contents = made_by_tar
    end = max(-(-(one.offset + one.size) // 512) * 512 for one in listed(path))
    (tmp_path / "unmarked.tar").write_bytes(path.read_bytes()[:end])
    assert len(listed(tmp_path / "unmarked.tar", marked=False)) == len(contents)
    (tmp_path / "garbage.tar").write_bytes(path.read_bytes()[:end] + b"garbage" * 100)
    with pytest.raises(UserError, match="cut off or damaged"):
        listed(tmp_path / "garbage.tar", marked=False)


def test_not_a_tar(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(UserError, match="cut off or damaged"):
        listed(tmp_path / "a.tar")
    (tmp_path / "empty.tar").write_bytes(b"")
    with pytest.raises(UserError, match="cut off or damaged"):
        listed(tmp_path / "empty.tar")


@pytest.mark.parametrize("kind", ["SYMTYPE", "LNKTYPE", "CHRTYPE", "BLKTYPE", "FIFOTYPE"])
def test_what_is_no_file_is_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo("passwd.jpg")
        member.type, member.linkname = getattr(tarfile, kind), "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(UserError, match="a link or a device"):
        listed(tmp_path / "a.tar")


def test_names_are_taken_without_their_path(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("../../etc/evil.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    assert [one.name for one in listed(tmp_path / "a.tar")] == ["evil.jpg"]
