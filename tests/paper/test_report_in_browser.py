"""The report in Chromium: on a phone, and printed."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import skip_without
from tests.paper.printed import faults, leaves
from tests.paper.run_folders import Report, write_run
from tests.paper.test_others import of_demo, write_named
from tests.patience import limit

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.mark.browser
def test_the_page_in_a_browser(made: Path, make: Report, tmp_path: Path) -> None:
    """No error on the console, no request beside the page itself, nothing wider than a phone of 390 pixels."""
    if CHROMIUM is None:
        skip_without("needs Chromium (apt-get install chromium)")
    demo = write_run(of_demo(variant="a-name-as-long-as-an-mlflow-run-id"), tmp_path / "others").parent
    make(made, demo, experiments="table6,fig6,fig7,table3")
    page, log = tmp_path / "page/report.html", tmp_path / "net.json"
    # In a frame, because a window is 500 pixels wide at least. The controls show that an error and a request would be seen.
    added = '<img src="http://control.invalid/"><script>console.error("a control")</script></body>'
    framed = html.escape(page.read_text().replace("</body>", added))
    wrapper = tmp_path / "frame.html"
    wrapper.write_text(
        f"""<title>none</title><iframe style="width: 390px; height: 844px; border: 0" srcdoc="{framed}"
        onload="document.title = [this.contentWindow.innerWidth, this.contentDocument.body.parentNode.scrollWidth].join()">
        </iframe>"""
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", f"--log-net-log={log}"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", wrapper.as_uri()]
    assert CHROMIUM is not None
    shown = subprocess.run([CHROMIUM, *options], capture_output=True, text=True, timeout=limit(120))
    console = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    assert console and all("control" in line for line in console), console
    events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    # Chromium's own requests (updates, dictionaries) have no page for an initiator.
    own = {one["url"] for one in events if "url" in one and one.get("initiator", "not an origin") != "not an origin"}
    assert own == {"http://control.invalid/"}
    title = re.search(r"<title>([\d,]+)</title>", shown.stdout)
    assert title is not None, shown.stdout[:500]
    width, content = map(int, title[1].split(","))
    assert width == 390 and content <= width
    assert page.read_text().count("<svg") > 10 and "NaN" not in page.read_text()


@pytest.mark.browser
def test_no_name_is_run_as_a_script(
    digits: Path, make: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control is the page with the name as markup."""
    if CHROMIUM is None:
        skip_without("needs Chromium (apt-get install chromium)")
    monkeypatch.chdir(tmp_path)
    run = "document.title=String(6*7)"
    evil = f"\"'><img src=x onerror={run}><svg onload={run}>"
    runs, experiment = write_named(digits, tmp_path, evil)
    make(runs, experiments=str(experiment))
    page = tmp_path / "page/report.html"
    control = tmp_path / "page/control.html"
    control.write_text(page.read_text().replace("<main>", f"<main {evil}"))
    titles = {path.name: re.search(r"<title>(.*?)</title>", shown(path)) for path in (page, control)}
    assert {name: title and title[1] for name, title in titles.items()} == {
        "report.html": "Deep Residual Learning: the paper and our runs",
        "control.html": "42",
    }


def shown(page: Path) -> str:
    """The page's content once Chromium has loaded it."""
    assert CHROMIUM is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={page.parent / 'profile'}", "--dump-dom"]
    return subprocess.run(
        [CHROMIUM, *options, page.as_uri()], capture_output=True, text=True, timeout=limit(120)
    ).stdout


@pytest.mark.browser
def test_nothing_on_paper_is_cut_or_parted_from_its_heading(made: Path, make: Report, tmp_path: Path) -> None:
    """Wherever the page breaks fall: a box at the top moves them. The control is the page without its rules for breaks."""
    if CHROMIUM is None:
        skip_without("needs Chromium (apt-get install chromium)")
    for seed in range(9):
        write_run(of_demo(seed=seed), tmp_path / "others", tested=seed < 3)
    make(made, tmp_path / "others", experiments="table6,fig6,fig7,table3,fig1")
    text = (tmp_path / "page/report.html").read_text()
    without = re.sub(r"break-(inside|after): avoid;?", "", text)
    assert without != text
    found: dict[str, list[str]] = {"page": [], "control": []}
    for millimetres in range(0, 240, 60):
        for name, content in (("page", text), ("control", without)):
            box = f'<main><div style="height: {millimetres}mm">.</div>'
            (tmp_path / "moved.html").write_text(content.replace("<main>", box))
            pdf = printed(tmp_path / "moved.html", tmp_path / "moved.pdf")
            assert len(leaves(pdf)) > 500
            found[name] += faults(pdf)
    assert found["page"] == [] and len(found["control"]) > 3


def printed(page: Path, out: Path) -> bytes:
    assert CHROMIUM is not None
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-pdf-header-footer",
    ]
    options += [f"--user-data-dir={page.parent / 'profile'}", f"--print-to-pdf={out}", page.as_uri()]
    subprocess.run([CHROMIUM, *options], capture_output=True, check=True, timeout=limit(120))
    return out.read_bytes()
