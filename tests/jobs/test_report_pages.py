"""A report's pages: plans of real methods, the command line, and what makes a page safe to open."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane import ManifestWriter, SignalStore, open_dataset
from batchloom.dataplane.plan import BatchPlan
from batchloom.dataplane.series import open_plan
from batchloom.jobs import plan
from batchloom.jobs.cli.app import build
from batchloom.jobs.report import difference_figures, difference_page, plan_figures, plan_page
from batchloom.jobs.report.pictures import percent, short

ROWS, EPOCHS = 900, 5
VOID = {"meta", "br", "img", "link", "input", "hr"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three named sources of rows in six heaps."""
    root = tmp_path_factory.mktemp("report")
    draw = np.random.default_rng(0)
    heap = draw.integers(0, 6, ROWS)
    x = (np.eye(6, 8)[heap] * 5 + draw.standard_normal((ROWS, 8))).astype(np.float32)
    table = pa.table(
        {
            "x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 8),
            "heap": heap.astype(np.int32),
            "name": [f"heap {i}" for i in heap],
        }
    )
    cuts = {"web": slice(0, 600), "books": slice(600, 840), "code": slice(840, 900)}
    for name, rows in cuts.items():
        (root / name).mkdir()
        pq.write_table(table[rows], root / name / "0.parquet")
    return {name: str(root / name) for name in cuts}


@pytest.fixture(scope="module")
def plans(sources: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A plan by each method; with SeTa a series and its signals."""
    root = tmp_path_factory.mktemp("plans")
    common: dict[str, Any] = {"workers": 0, "seed": 7, "batch_size": 32}
    by = {"columns": "x"}
    plan("shuffle", sources, out=root / "shuffle", epochs=(0, 3), **common)
    plan("kmeans", sources, out=root / "kmeans", k=6, **by, **common)
    plan("balanced", sources, out=root / "balanced", size=16, **by, **common)
    plan("colm", sources, out=root / "colm", k=12, **by, **common)
    plan("ngame", sources, out=root / "ngame", labels="heap", cluster_size=8, epochs=(0, 1),
         **by, **common)  # fmt: skip
    dataset, draw = open_dataset(sources), np.random.default_rng(1)
    base = draw.gamma(2, 0.5, ROWS)
    for epoch in range(EPOCHS):
        plan("seta", sources, out=root / "seta", signal=root / "signals", groups=4,
             epochs=(epoch, epoch + 1), training_epochs=6, weights="unbiased",
             **common)  # fmt: skip
        rows = open_plan(root / "seta").epoch(epoch).plan().rows
        with SignalStore.for_writing(root / "signals", dataset) as store:
            store.append(rows, epoch=epoch, step=0, loss=base[rows.astype(int)] * 0.9**epoch)
    return {path.name: path for path in root.iterdir()}


def given(sources: dict[str, str]) -> str:
    """Return the sources as the command line takes them."""
    return ",".join(f"{name}={path}" for name, path in sources.items())


def run(*arguments: object) -> None:
    texts = [str(a) for a in arguments]
    build(texts)(texts, standalone_mode=False)


class Page(HTMLParser):
    """Checks that tags are closed as they were opened, and gathers what a page could do."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.attributes: dict[str, list[str]] = {}
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def safe(text: str) -> Page:
    """Return a page that is checked to run nothing and to ask for nothing."""
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert not page.tags & {"script", "img", "iframe", "link", "object", "embed", "form", "base"}
    assert not [name for name in page.attributes if name.startswith("on") or name == "src"]
    assert all(
        v.startswith("#") for n in ("href", "xlink:href") for v in page.attributes.get(n, [])
    )
    assert not re.search(r"(?:https?:|@import|url\((?!#))", text)
    ids = page.attributes["id"]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
    assert set(used) <= set(ids)
    return page


# --- of real methods ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "sections"),
    [
        ("shuffle", {"cost", "rows", "coverage", "batches"}),
        ("kmeans", {"cost", "rows", "batches", "clusters", "facts"}),
        ("balanced", {"cost", "rows", "batches", "clusters", "facts"}),
        ("colm", {"cost", "rows", "batches", "choice", "facts"}),
        ("ngame", {"cost", "rows", "batches", "clusters", "hardness", "facts"}),
        ("seta", {"cost", "rows", "batches", "coverage", "weights", "windows", "facts"}),
    ],
)
def test_a_plan_has_the_sections_that_are_about_it(
    plans: dict[str, Path], method: str, sections: set[str]
) -> None:
    figures = plan_figures(plans[method])
    assert set(figures) - {"header"} == sections
    page = safe(plan_page(figures))
    assert set(page.attributes["id"]) >= sections
    assert f"{figures['cost']['rows']:,} of {figures['cost']['plain_rows']:,}" in page.text


def test_what_the_methods_tell(plans: dict[str, Path], sources: dict[str, str]) -> None:
    seta = plan_figures(plans["seta"], signal=plans["signals"])
    epochs = seta["windows"]["epochs"]
    assert [e["epoch"] for e in epochs] == list(range(EPOCHS))
    assert epochs[3]["selected"] == open_plan(plans["seta"]).epoch(3).record.samples
    assert len(epochs[3]["group_rows"]) == 4
    assert seta["losses"]["kept_rows"] + seta["losses"]["dropped_rows"] == seta["losses"]["scored"]
    assert [e["seen"] for e in seta["coverage"]["epochs"]] == sorted(
        e["seen"] for e in seta["coverage"]["epochs"]
    )
    colm = plan_figures(plans["colm"])["choice"]
    assert {s["source"]: s["rows"] for s in colm["sources"]} == {
        "web": 600, "books": 240, "code": 60,
    }  # fmt: skip
    kmeans = plan_figures(plans["kmeans"], sources, column="name")
    assert sum(kmeans["clusters"]["sizes"]) == ROWS
    assert kmeans["chi_square"]["warning"]
    assert "above 2" in plan_page(kmeans)
    shuffled = plan_figures(plans["shuffle"], sources, column="name")
    assert shuffled["chi_square"]["mean"] == pytest.approx(1, abs=0.35)
    assert "above 2" not in plan_page(shuffled)
    ngame = plan_figures(plans["ngame"])
    assert sum(ngame["hardness"]["negatives"]["counts"]) == ROWS
    assert -1 <= ngame["hardness"]["hardest"]["mean"] <= 1


def test_evidence_is_read_from_any_method(plans: dict[str, Path]) -> None:
    opened = open_plan(plans["kmeans"])
    table = [
        {"k": 3, "stability": 0.4, "inertia": 9.5, "failed": ["stability"], "chosen": False},
        {"k": 2, "stability": 0.9, "inertia": 12.5, "failed": [], "chosen": True},
    ]
    opened.provenance["reports"]["own"] = {
        "k": 2, "limits": {"stability": 0.8}, "evidence": table,
    }  # fmt: skip
    figures = plan_figures(opened)
    assert [line["k"] for line in figures["evidence"]["evidence"]] == [2, 3]
    text = safe(plan_page(figures)).text
    assert "chosen: 2" in text
    assert "limit of stability 0.8" in text


# --- the command line -----------------------------------------------------------------------------


def test_json_is_what_the_page_shows(
    plans: dict[str, Path],
    sources: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--dataset", given(sources), "--column", "name", "--signal", plans["signals"])
    run("report", plans["seta"], *options, "--out", tmp_path / "a" / "r.html", "--quiet")
    assert capsys.readouterr().out.startswith(f"wrote {tmp_path / 'a' / 'r.html'}")
    run("report", plans["seta"], *options, "--json", "--quiet")
    figures = json.loads(capsys.readouterr().out)
    assert plan_page(figures) == (tmp_path / "a" / "r.html").read_text(encoding="utf-8")


def test_the_same_plan_gives_the_same_bytes(
    sources: dict[str, str], plans: dict[str, Path], tmp_path: Path
) -> None:
    plan("kmeans", sources, out=tmp_path / "again", k=6, columns="x", workers=0, seed=7,
         batch_size=32)  # fmt: skip
    for name, path in (("one", plans["kmeans"]), ("two", tmp_path / "again")):
        run("report", path, "--out", tmp_path / f"{name}.html", "--quiet")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert str(tmp_path) not in (tmp_path / "two.html").read_text()


def test_pages_stay_small(plans: dict[str, Path], sources: dict[str, str]) -> None:
    figures = plan_figures(plans["seta"], sources, column="name", signal=plans["signals"])
    assert len(plan_page(figures)) < 200_000


def test_a_difference(
    plans: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run("diff", plans["shuffle"], plans["colm"], "--html", tmp_path / "d.html")
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert out.startswith("wrote ")
    assert "stages.1.method: None → colm" in out
    page = safe((tmp_path / "d.html").read_text(encoding="utf-8"))
    assert {"rows", "batches", "sources", "settings"} <= set(page.attributes["id"])
    assert "epochs only in A 1, 2" in page.text
    run("diff", plans["colm"], plans["colm"], "--html", tmp_path / "same.html", "--json")
    assert json.loads(capsys.readouterr().out)["same"]
    assert "Both are the same decision." in (tmp_path / "same.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "--out report.html"),
        (("--column", "name", "--out", "r.html"), 2, "name it (--dataset), too"),
        (("--signal", "nowhere", "--out", "r.html"), 1, "no signal store"),
        (("--out", "/proc/nowhere/r.html"), 1, "Writing the page failed"),
    ],
)
def test_errors_are_one_sentence(
    plans: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        run("report", plans["shuffle"], *arguments)
    assert ended.value.code == code
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


# --- text of users --------------------------------------------------------------------------------


SCRIPT = '<script>alert("x")</script>'
IMAGE = '"><img src=x onerror=alert(1)> #040404 id="p" $a_b$ \x07'
VALUES = ["</svg><b>bold</b>", "&amp;", "{{ 1 + 1 }}", "x" * 500, "\N{SNOWMAN}", "", IMAGE, None]


def test_hostile_columns_and_values_are_text(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({SCRIPT: VALUES * 4}), tmp_path / "data" / "0.parquet")
    made = plan("shuffle", tmp_path / "data", out=tmp_path / "p", batch_size=8, workers=0)
    page = safe(plan_page(plan_figures(made, tmp_path / "data", column=SCRIPT)))
    assert "b" not in page.tags
    words = "".join(page.words)
    assert SCRIPT in words
    assert IMAGE[:-1] + "\N{REPLACEMENT CHARACTER}" in words
    assert IMAGE[-1] not in words
    assert {"{{ 1 + 1 }}", "&amp;", "(empty)", "no value"} <= set(page.words)


def test_hostile_headers_are_text(tmp_path: Path, sources: dict[str, str]) -> None:
    """A plan that came from elsewhere may hold anything in its header."""
    snapshot = open_dataset(sources).snapshot
    fragments = tuple(replace(f, source=f"{f.source} {IMAGE}") for f in snapshot.fragments)
    stages = [{"stage": SCRIPT, "method": SCRIPT, "parameters": {SCRIPT: [SCRIPT]}}]
    reports = {SCRIPT: {SCRIPT: SCRIPT, "sizes": [1], "epochs": {"0": {SCRIPT: IMAGE}}}}
    made = []
    for name, rows in (("p", [0, 1, 2]), ("q", [3, 1])):
        writer = ManifestWriter(
            tmp_path / name, snapshot=replace(snapshot, fragments=fragments), stages=stages
        )
        with writer:
            with writer.epoch(0):
                writer.append(BatchPlan.of([0, len(rows)], rows))
            made.append(writer.commit(reports=reports))
    words = "".join(safe(plan_page(plan_figures(made[0]))).words)
    assert SCRIPT in words
    assert f"web {IMAGE[:-1]}" in words
    safe(difference_page(difference_figures(*made)))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (950, "950"),
        (12_345, "12.3k"),
        (4.5e6, "4.5M"),
        (0.0312, "0.0312"),
        (-2.5, "-2.5"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0%"), (1, "100%"), (0.9999, ">99.9%"), (0.0001, "<0.1%"), (0.042, "4.2%"), (0.5, "50%")],
)
def test_shares_are_not_rounded_to_all_or_nothing(share: float, text: str) -> None:
    assert percent(share) == text
