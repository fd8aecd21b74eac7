"""Datasets on object storage: over HTTP with byte ranges, and on a local S3 server (moto) where that is installed."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.base.command import UserError
from pipeline.data.dataset import Dataset
from pipeline.data.loader import LoaderConfig, evaluation_batches
from pipeline.data.staging import staged
from pipeline.data.storage import open_dataset
from pipeline.data.views import CenterCrop
from tests.images import encode, photograph
from tests.patience import limit
from tests.pipeline.data.small_datasets import statistics_of_size


@pytest.fixture
def dataset(make_dataset: Callable[..., Dataset]) -> Dataset:
    return make_dataset([encode(photograph(number, 80, 100)) for number in range(20)], shard_size=6)


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Python's file server with the one header that it lacks: Range."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        wanted = self.headers.get("Range")
        if not path.is_file() or wanted is None:
            return super().do_GET()
        first, last = wanted.removeprefix("bytes=").split("-")
        data = path.read_bytes()[int(first) : int(last) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{path.stat().st_size}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def http_url(dataset: Dataset) -> Iterator[str]:
    handler = functools.partial(RangeHandler, directory=str(dataset.folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def s3_url(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    moto_server = pytest.importorskip("moto.server", reason="moto is not installed")
    import s3fs

    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3fs.S3FileSystem, "connect_timeout", limit(60))
    monkeypatch.setattr(s3fs.S3FileSystem, "read_timeout", limit(60))
    s3fs.S3FileSystem.clear_instance_cache()
    filesystem = s3fs.S3FileSystem()
    bucket = f"bucket-{os.urandom(4).hex()}"  # moto's memory outlives its server
    filesystem.mkdir(bucket)
    for path in dataset.folder.rglob("*"):
        if path.is_file():
            filesystem.put_file(str(path), f"{bucket}/imagenet/{path.relative_to(dataset.folder)}")
    yield f"s3://{bucket}/imagenet"
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(params=["http_url", "s3_url"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def test_samples_and_batches_equal_those_of_the_folder(dataset: Dataset, url: str, tmp_path: Path) -> None:
    remote, local = open_dataset(url, tmp_path).split("train"), dataset.split("train")
    assert [remote.read(sample) for sample in range(20)] == [local.read(sample) for sample in range(20)]
    blocks, cpu, config = [np.arange(12), np.arange(12, 20)], torch.device("cpu"), LoaderConfig(threads=2)
    view, statistics = CenterCrop(short_side=72, crop=64), statistics_of_size(64)
    images = []
    for split in (remote, local):
        with evaluation_batches(split, view, statistics, blocks, cpu, config) as batches:
            images.append(torch.cat([batch.images for batch in batches]))
    assert torch.equal(*images)


def test_remote_shards_are_staged(dataset: Dataset, url: str, tmp_path: Path) -> None:
    copy = staged(open_dataset(url, tmp_path / "cache").split("train"), str(tmp_path / "fast"))
    split = dataset.split("train")
    assert [copy.read(sample) for sample in range(20)] == [split.read(sample) for sample in range(20)]


def test_what_is_not_there_is_named(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not a dataset"):
        open_dataset(f"{url}/nowhere", tmp_path)


def test_a_shard_that_is_gone_is_named(dataset: Dataset, http_url: str, tmp_path: Path) -> None:
    split = open_dataset(http_url, tmp_path).split("train")
    (dataset.folder / split.info.shards[0].file).unlink()
    with pytest.raises(UserError, match=rf"sample image0003 \(bytes \d+ to \d+ of {http_url}/train/.*cannot be read"):
        split.read(3)


def test_small_files_are_kept_and_checked(dataset: Dataset, http_url: str, tmp_path: Path) -> None:
    remote = open_dataset(http_url, tmp_path)
    table, expected = remote.folder / "train.samples.npy", dataset.split("train").samples
    np.testing.assert_array_equal(remote.split("train").samples, expected)
    before = table.stat().st_mtime_ns
    open_dataset(http_url, tmp_path).split("train")
    assert table.stat().st_mtime_ns == before
    table.write_bytes(b"cut off")
    np.testing.assert_array_equal(open_dataset(http_url, tmp_path).split("train").samples, expected)
    assert table.read_bytes() == (dataset.folder / "train.samples.npy").read_bytes()
    with open(dataset.folder / "train.samples.npy", "ab") as original:
        original.write(b"x")
    table.unlink()
    with pytest.raises(UserError, match=rf"{http_url}/train.samples.npy does not match the SHA-256 in the manifest"):
        open_dataset(http_url, tmp_path).split("train")


def test_a_remote_shard_that_was_replaced_is_named(dataset: Dataset, http_url: str, tmp_path: Path) -> None:
    split = open_dataset(http_url, tmp_path).split("train")
    first, second = (dataset.folder / shard.file for shard in split.info.shards[:2])
    first.write_bytes(second.read_bytes())
    with pytest.raises(UserError, match=rf"sample image0000 \(.* of {http_url}/train/.*\) is not there: .*replaced"):
        split.read(0)


def test_an_unknown_scheme_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nosuch://place cannot be opened"):
        open_dataset("nosuch://place", tmp_path)


def test_a_server_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        open_dataset("http://127.0.0.1:9/imagenet", tmp_path)


def test_a_local_path_is_a_local_dataset(dataset: Dataset) -> None:
    assert type(open_dataset(dataset.folder)) is Dataset
    assert os.path.samefile(open_dataset(dataset.folder).folder, dataset.folder)
