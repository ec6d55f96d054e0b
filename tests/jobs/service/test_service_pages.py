"""The pages: what they say of runs, epochs and ranks; that they ask nothing of anybody else."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batchloom.dataplane import open_plan
from batchloom.jobs.service.ranks import RankBoard
from batchloom.jobs.service.refusals import RefusedError
from batchloom.samplers import ManifestLoader, open_signal_store
from batchloom.tests.jobs.service.running import (
    TOKEN,
    Served,
    ask,
    loss_of,
    wait_ready,
    write_run,
)

NOTE = {"world": 2, "epoch": 1, "step": 7, "samples": 900, "seconds": 3.0, "waited_seconds": 0.9}


@pytest.fixture(scope="module")
def served(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service of three runs: one of whose epochs the first is trained on, and two bad ones."""
    folder = tmp_path_factory.mktemp("pages") / "service"
    write_run(folder, "first", small)
    write_run(folder, "misspelt", small, job='dataset = "{data}"\n<b>')
    write_run(folder, "nowhere", folder / "no <i>data</i>")
    with Served(folder) as running:
        wait_ready(running.url, "first", 0)
        plan = open_plan(f"{running.url}/runs/first")
        loader = ManifestLoader(plan, small, columns=["label"], epochs=[0])
        with open_signal_store(f"{running.url}/runs/first", plan) as store:
            for batch in loader:
                losses = loss_of(batch.rows, 0)
                store.append(batch.rows, epoch=0, step=batch.step, loss=losses)
            store.seal(0)
        wait_ready(running.url, "first", 1)
        yield running


def page(url: str) -> str:
    status, data, headers = ask(url)
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in headers["content-security-policy"]
    text: str = data.decode()
    assert "<script" not in text
    assert not re.search(r"""(src|href)=["'](https?:)?//""", text)
    return text


def words(html: str) -> str:
    """Return what a page says, without its marks."""
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", text)


def test_all_runs(served: Served) -> None:
    said = words(page(f"{served.url}/"))
    assert "1 of 3 epochs sealed, 2 planned" in said
    assert "Epoch 1 is planned, and not sealed yet" in said
    assert "It cannot be planned." in said
    assert "job.toml is not TOML" in said


def test_what_users_wrote_is_escaped(served: Served) -> None:
    for _ in range(100):
        html = page(f"{served.url}/runs/nowhere")
        if "could not be planned" in html:
            break
        time.sleep(0.1)
    assert "no &lt;i&gt;data&lt;/i&gt;" in html
    assert 'role="alert"' in html


def test_epochs_and_why_they_hold_their_rows(served: Served) -> None:
    html = page(f"{served.url}/runs/first")
    said = words(html)
    assert "seta → shuffle" in said
    assert re.search(r"epoch 1 planned [\d,]+ rows, \d+%", said)
    assert re.search(r"seta kept [\d,]+ of 1,000 rows: groups \d to \d of 5 by loss", said)
    assert "epoch 0 sealed 900 rows, 90%" in said
    assert '<meta http-equiv="refresh" content="5">' in html  # the training goes on


def test_the_report_of_an_epoch(served: Served) -> None:
    said = words(page(f"{served.url}/runs/first/epochs/1/report"))
    assert "Training cost" in said
    assert ask(f"{served.url}/runs/first/epochs/2/report")[0] == 404
    assert ask(f"{served.url}/runs/first/epochs/9/report")[0] == 404


def test_ranks_say_where_they_are(served: Served) -> None:
    run = f"{served.url}/v1/runs/first"
    for rank in (1, 0):
        assert ask(f"{run}/ranks/{rank}", "PUT", {**NOTE, "step": 7 + rank})[0] == 200
    said = words(page(f"{served.url}/runs/first"))
    assert "0 epoch 1, step 7 300 30% now 1 epoch 1, step 8 300 30% now" in said


@pytest.mark.parametrize(
    ("rank", "body", "message"),
    [
        (2, NOTE, "no rank 2 of 2"),
        (0, {**NOTE, "step": -1}, "'step' must be an int from 0 on"),
        (0, {**NOTE, "epoch": 0.5}, "'epoch' must be"),
        (0, {**NOTE, "samples": True}, "'samples' must be"),
        (0, {**NOTE, "seconds": "3"}, "'seconds' must be a number"),
        (0, {}, "'world' must be"),
    ],
)
def test_notes_that_are_none(served: Served, rank: int, body: dict[str, Any], message: str) -> None:
    status, told, _ = ask(f"{served.url}/v1/runs/first/ranks/{rank}", "PUT", body)
    assert status == 400
    assert message in told["error"]["message"]


def test_a_loader_says_where_it_is(served: Served, small: Path) -> None:
    plan = open_plan(f"{served.url}/runs/first")
    for _ in ManifestLoader(plan, small, columns=["label"], epochs=[0]):
        pass
    until = time.monotonic() + 20
    steps = plan.manifest_for(0).records[0].steps
    while f"heard 0 epoch 0, step {steps} " not in words(page(f"{served.url}/runs/first")):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_the_board_keeps_the_newest_training_and_forgets() -> None:
    board = RankBoard()
    for rank in range(3):
        board.take("a", rank, {**NOTE, "world": 3})
    board.take("a", 0, NOTE)
    assert [(n.rank, n.world) for n in board.of("a")] == [(0, 2)]
    assert board.of("b") == []
    for rank in range(5000):
        board.take("b", rank, {**NOTE, "world": 5000})
    assert len(board.of("b")) == 4096
    assert board.of("a") == []
    with pytest.raises(RefusedError):
        board.take("b", 0, {**NOTE, "seconds": float("nan")})


def test_a_browser_sends_the_token_as_a_password(small: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    write_run(tmp_path / "service", "first", small)
    with Served(tmp_path / "service", "--token-file", tmp_path / "token") as running:
        for given, status in ((f"me:{TOKEN}", 200), (f"me:{TOKEN}x", 401), ("me", 401)):
            code = base64.b64encode(given.encode()).decode()
            assert ask(f"{running.url}/", Authorization=f"Basic {code}")[0] == status
        assert ask(f"{running.url}/", Authorization="Basic *")[0] == 401


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1000])
def test_in_a_browser(served: Served, tmp_path: Path, width: int) -> None:
    """A real browser lays the pages out: nothing is wider than its window."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium; on Debian: apt-get install chromium")
    measuring = (
        "<script>addEventListener('load',()=>{const w=document.documentElement;"
        "document.title=`${w.scrollWidth} ${w.clientWidth}`})</script>"
    )
    for number, place in enumerate(("/", "/runs/first", "/runs/first/epochs/1/report")):
        # A copy, since the service lets its pages run no script, ours neither.
        file = tmp_path / f"{number}.html"
        file.write_text(page(served.url + place).replace("</head>", f"{measuring}</head>"))
        shown = subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
             f"--screenshot={tmp_path / f'{number}.png'}", "--dump-dom", f"file://{file}"],
            capture_output=True, text=True, timeout=120, check=True,
        ).stdout  # fmt: skip
        whole, window = map(int, re.findall(r"<title>(\d+) (\d+)</title>", shown)[0])
        assert whole <= window, f"{place} is {whole} wide in a window of {window}"
        assert (tmp_path / f"{number}.png").stat().st_size > 5000
