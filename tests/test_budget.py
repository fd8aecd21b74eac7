"""The guards of `make test`'s time: dear cases are found with what their processes take, limits are stretched together."""

from __future__ import annotations

import pytest

from pipeline.base.command import UserError
from tests import budget, patience

pytest_plugins = "pytester"

PLUGIN = """
from tests import budget

def pytest_configure(config):
    config.addinivalue_line("markers", "costly(why): dear")
    config.pluginmanager.register(budget.Budget(None, strict={strict}))
"""
BURN = """
import subprocess, sys, time
import pytest

BURN = "import time\\nwhile time.process_time() < 0.6: pass"

def burn():
    end = time.process_time() + 0.6
    while time.process_time() < end:
        pass
"""
CASES = """
def test_dear():
    burn()

def test_dear_by_its_process():
    subprocess.run([sys.executable, "-c", BURN], check=True)

@pytest.mark.costly("it burns")
def test_with_a_reason():
    burn()

@pytest.fixture(scope="module")
def shared():
    burn()

def test_that_pays_for_no_shared_fixture(shared):
    pass
"""


@pytest.fixture(params=[False, True], ids=["named", "strict"])
def strict(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(budget, "CPU_SECONDS", 0.1)
    monkeypatch.setattr(budget, "SHARED_CPU_SECONDS", 0.1)
    monkeypatch.setattr(budget, "_slowness", lambda: 1.0)
    return bool(request.param)


def test_dear_cases_without_a_reason_are_named_and_fail_where_asked(pytester: pytest.Pytester, strict: bool) -> None:
    pytester.makeconftest(PLUGIN.format(strict=strict))
    pytester.makepyfile(BURN + CASES)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-k", "not pays")
    result.assert_outcomes(passed=3, errors=2 if strict else 0)
    result.stdout.fnmatch_lines(["*test_dear took*say why it cannot be*", "*test_dear_by_its_process took*"])
    result.stdout.no_fnmatch_line("*test_with_a_reason took*")


def test_a_dear_shared_fixture_is_named_and_fails_where_asked(pytester: pytest.Pytester, strict: bool) -> None:
    pytester.makeconftest(PLUGIN.format(strict=strict))
    pytester.makepyfile(BURN + CASES)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-k", "pays")
    result.assert_outcomes(passed=1, errors=1 if strict else 0)
    result.stdout.fnmatch_lines(["*the fixture shared took*"])
    result.stdout.no_fnmatch_line("*::test_that_pays_for_no_shared_fixture took*")


def test_workers_tell_the_session_that_prints(pytester: pytest.Pytester, strict: bool) -> None:
    pytester.makeconftest(
        PLUGIN.format(strict=strict) + "    budget.CPU_SECONDS, budget._slowness = 0.1, lambda: 1.0\n"
    )
    pytester.makepyfile(BURN + CASES)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-k", "test_dear", "-n", "1")
    result.assert_outcomes(passed=2, errors=2 if strict else 0)
    result.stdout.fnmatch_lines(["*test_dear took*say why it cannot be*"])


def test_a_mark_without_a_reason_is_refused(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(PLUGIN.format(strict=False))
    pytester.makepyfile("import pytest\n@pytest.mark.costly\ndef test_it(): pass\n")
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*does not say why it is costly*"])


def test_one_knob_stretches_all_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(patience.KNOB, "7")
    assert patience.set_patience() == 7 and patience.limit(60) == 420
    monkeypatch.delenv(patience.KNOB)
    measured = patience.set_patience()
    assert patience.LEAST <= measured <= patience.MOST and patience.limit(10) == 10 * measured
    for wrong in ("much", "inf", "nan"):
        monkeypatch.setenv(patience.KNOB, wrong)
        with pytest.raises(UserError, match=f"PATIENCE is '{wrong}'"):
            patience.set_patience()
