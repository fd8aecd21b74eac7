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
    config.pluginmanager.register(budget.Budget(None))
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


def test_a_dear_case_needs_a_reason(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "CPU_SECONDS", 0.1)
    pytester.makeconftest(PLUGIN)
    pytester.makepyfile(BURN + CASES)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=4, errors=2)
    result.stdout.fnmatch_lines(["*test_dear took*say why it cannot be*", "*test_dear_by_its_process took*"])


def test_a_dear_shared_fixture_fails(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "SHARED_CPU_SECONDS", 0.1)
    pytester.makeconftest(PLUGIN)
    pytester.makepyfile(BURN + CASES)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-k", "pays")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*the fixture shared took*"])


def test_a_mark_without_a_reason_is_refused(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(PLUGIN)
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
