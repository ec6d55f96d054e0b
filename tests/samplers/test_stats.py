"""What a loader says of itself."""

import io
import logging
import time

import pytest
from batchloom.samplers import LoaderStats, ManifestLoader, SourceStats, stats
from batchloom.samplers.progress import LiveLine, describe
from batchloom.samplers.state import LoaderState
from batchloom.tests.contracts.batches import drain, shuffled, write_plan
from rich.console import Console


@pytest.mark.parametrize("window", [1, 4, None])
@pytest.mark.parametrize("prefetch", [0, 3])
def test_counts_are_of_what_was_delivered(awkward_data, tmp_path, window, prefetch):
    data = awkward_data("parquet")
    plan = write_plan(tmp_path / "p", data, {e: shuffled(e, rows=200, batch=20) for e in (0, 1)})
    options = {"columns": ["x"], "window": window, "prefetch": prefetch}
    loader = ManifestLoader(plan, data, pack=False, **options)
    assert loader.stats() == LoaderStats()
    for number, _ in enumerate(loader, start=1):
        found = loader.stats()
        assert (found.batches, found.samples) == (number, 20 * number)
        assert found.bytes == 20 * number * 16
        if number == 7:
            break
    assert loader.stats().batches == 7
    loader.close()
    assert loader.stats().batches == 7
    assert len(drain(loader)) == 20
    found = loader.stats()
    assert (found.batches, found.samples, found.bytes) == (27, 540, 540 * 16)
    assert found.misses >= 1
    assert found.hits + found.misses >= 20 // (window or 20)
    assert 0 < found.hit_rate < 1 or window is None
    assert found.bytes_read > 0
    assert found.read_amplification == found.bytes_read / found.bytes
    assert found.seconds > 0
    assert found.samples_per_second == pytest.approx(540 / found.seconds)
    assert found.gb_per_second == pytest.approx(540 * 16 / 1e9 / found.seconds)


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("prefetch", [0, 3])
def test_time_is_told_by_stage_and_waits_by_who_waits(plan, data, threads, prefetch):
    def slow(batch):
        time.sleep(0.005)
        return batch

    drain(ManifestLoader(plan, data, columns=["x"]))  # the gather's kernels are loaded
    loader = ManifestLoader(
        plan,
        data,
        columns=["x"],
        transform=slow,
        transform_threads=threads,
        prefetch=prefetch,
    )
    drain(loader)
    found = loader.stats()
    assert found.transform_seconds >= 20 * 0.005
    assert found.bottleneck == "transform"
    assert 0.5 < found.waited <= 1  # nobody did anything else


def test_a_busy_caller_does_not_wait(plan, data):
    loader = ManifestLoader(plan, data, columns=["x"], prefetch=0)
    for _ in loader:
        time.sleep(0.01)
    found = loader.stats()
    assert found.waited_seconds < found.seconds
    assert found.seconds > 0.1


def meter(storage=0.0, transform=0.0, transfer=0.0, *, waited, seconds):
    made = stats.Meter()
    for stage, spent in zip(
        ("storage", "transform", "transfer"), (storage, transform, transfer), strict=True
    ):
        made.spent(stage, spent)
    made._waited, made._seconds = waited, seconds
    return made


@pytest.mark.parametrize(
    ("stage", "spent", "advice"),
    [
        ("storage", (5, 1, 2), "batchloom pack"),
        ("transform", (1, 5, 2), "transform_threads"),
        ("transfer", (1, 2, 5), "fewer columns"),
    ],
)
def test_one_warning_names_the_bottleneck(caplog, stage, spent, advice):
    slow = meter(*spent, waited=3, seconds=11)
    with caplog.at_level(logging.WARNING, "batchloom"):
        slow.warn(SourceStats)
        slow.warn(SourceStats)
    (record,) = caplog.records
    assert "waited for the loader 27 % of the last 11 seconds" in record.getMessage()
    assert f"the bottleneck is {stage}: " in record.getMessage()
    assert advice in record.getMessage()


@pytest.mark.parametrize(("waited", "seconds"), [(1.9, 10), (9, 9.9)])
def test_no_warning_where_it_waits_little_or_not_long(caplog, waited, seconds):
    with caplog.at_level(logging.WARNING, "batchloom"):
        meter(5, waited=waited, seconds=seconds).warn(SourceStats)
    assert not caplog.records


def test_a_loop_that_waits_is_warned(plan, data, caplog, monkeypatch):
    monkeypatch.setattr(stats, "_PATIENCE", 0.0)
    with caplog.at_level(logging.WARNING, "batchloom"):
        drain(ManifestLoader(plan, data, columns=["x"]))
    assert len(caplog.records) == 1


def test_nothing_asked_for():
    nothing = LoaderStats()
    assert (nothing.hit_rate, nothing.read_amplification) == (None, None)
    assert (nothing.waited, nothing.samples_per_second, nothing.gb_per_second) == (0, 0, 0)


# --- the live line --------------------------------------------------------------------------------


def test_what_the_line_says():
    found = LoaderStats(10, 2560, 1_310_720, 2.0, 0.5, hits=3, misses=1)
    assert describe(3, 17, found) == (
        "epoch 3, step 17 · 2,560 samples · 1,280/s · 0.00 GB/s · waited 25% · hits 75%"
    )


def test_line_is_drawn_on_a_terminal_and_nowhere_else(plan, data, monkeypatch):
    for terminal in (True, False):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=60)
        loader = ManifestLoader(plan, data, columns=[], window=1)
        loader._line = LiveLine(console)
        drain(loader)
        if terminal:
            assert out.getvalue().count("epoch 0, step") >= 1
            assert out.getvalue().endswith("\n")
            assert max(map(len, out.getvalue().split("\r"))) <= 60
        else:
            assert out.getvalue() == ""


def test_line_is_not_drawn_too_often():
    out = io.StringIO()
    line = LiveLine(Console(file=out, force_terminal=True, width=60))
    for _ in range(100):
        line.show(LoaderState("a", 0), LoaderStats())
    assert out.getvalue().count("epoch") <= 10
    line.end()
    line.end()
    assert out.getvalue().count("\n") == 1


def test_progress_on_request(plan, data, capsys):
    drain(ManifestLoader(plan, data, columns=[], progress=True))
    assert capsys.readouterr().err == ""  # no terminal
