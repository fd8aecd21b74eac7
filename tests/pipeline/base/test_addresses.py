"""Addresses without their passwords."""

from __future__ import annotations

import pytest

from pipeline.base.addresses import without_password


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host:5000/x", "https://host:5000/x"),
        ("https://me:se@cret@host/x", "https://host/x"),
        ("train --uri=http://me:pw@a 's3://key:pw@b/c' --name x@y", "train --uri=http://a 's3://b/c' --name x@y"),
        ("sqlite:////me@work/mlflow.db", "sqlite:////me@work/mlflow.db"),
        ('["http://a","me@b"]', '["http://a","me@b"]'),
    ],
)
def test_no_password_is_left(text: str, shown: str) -> None:
    assert without_password(text) == shown
