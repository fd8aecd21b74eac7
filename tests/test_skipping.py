"""What CI has installed its tests may not skip."""

from __future__ import annotations

import pytest

from tests.conftest import skip_without


def test_where_a_cluster_is_required_its_absence_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUIRE_CLUSTER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no munge"):
        skip_without("no munge")
    monkeypatch.setenv("REQUIRE_CLUSTER", "1")
    with pytest.raises(pytest.fail.Exception, match="no munge"):
        skip_without("no munge")
