"""How the ranks of a host share its cores."""

from __future__ import annotations

import pytest

from pipeline.base import cores
from pipeline.base.cores import cores_together, share_of_cores


@pytest.fixture(autouse=True)
def without_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: 16)


def span(first: int, count: int) -> frozenset[int]:
    return frozenset(range(first, first + count))


@pytest.mark.parametrize(
    ("masks", "share"),
    [
        pytest.param([span(0, 16)], 16, id="alone"),
        pytest.param([span(0, 16)] * 4, 4, id="all on the same cores"),
        pytest.param([span(0, 16)] * 3, 5, id="no fractions"),
        pytest.param([span(0, 16), span(16, 16), span(32, 16)], 16, id="each bound to its own"),
        pytest.param([span(0, 16), span(8, 16)], 12, id="eight cores shared by two"),
        pytest.param([span(0, 16)] * 40, 1, id="more ranks than cores"),
    ],
)
def test_a_core_is_divided_among_those_that_may_use_it(masks: list[frozenset[int]], share: int) -> None:
    assert share_of_cores(masks[0], masks) == share


def test_a_quota_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: 4)
    assert share_of_cores(span(0, 16), [span(0, 16)] * 2) == 2


def test_the_cores_of_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cores_together(span(0, 16), [span(0, 16)] * 4) == 16
    assert cores_together(span(0, 16), [span(0, 16), span(8, 16)]) == 24
    monkeypatch.setattr(cores, "available_cores", lambda: 4)
    assert cores_together(span(0, 16), [span(0, 16)] * 4) == 4
