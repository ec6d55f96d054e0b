"""Transforms on threads and in worker processes: the same results in the same order."""

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import replace

import psutil
import pytest
import torch
from batchloom.dataplane.errors import BatchloomError, ParameterError
from batchloom.samplers import ManifestLoader
from batchloom.samplers.workers import Workers
from batchloom.tests.contracts import transforms
from batchloom.tests.contracts.batches import drain, fingerprints, prefetch_threads


def take(loader, seen):
    for batch in loader:
        seen.append((batch.epoch, batch.step))  # one at a time: it may end in an error


def transform_threads():
    return [t for t in threading.enumerate() if t.name.startswith("batchloom-transform")]


def children():
    return [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]


@pytest.fixture(scope="module")
def workers():
    """Loaders that share two worker processes, since each takes seconds to start."""
    pool = Workers(transforms.chosen, 2)

    def get(plan, data, columns, **options):
        loader = ManifestLoader(plan, data, columns=columns, transform=transforms.chosen, **options)
        loader._pipeline = replace(loader._pipeline, workers=pool)
        return loader

    yield get
    pool.close()
    assert children() == []


@pytest.mark.parametrize("window", [1, 5, 16])
@pytest.mark.parametrize("prefetch", [0, 3, None])
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_keep_the_order(plan, data, window, prefetch, threads):
    expected = fingerprints(ManifestLoader(plan, data, columns=["x"]))
    loader = ManifestLoader(
        plan,
        data,
        columns=["x"],
        window=window,
        prefetch=prefetch,
        transform=transforms.slower_for_even_steps,
        transform_threads=threads,
    )
    assert fingerprints(loader) == expected
    assert loader.state_dict()["next_step"] == 10
    assert transform_threads() == []


@pytest.mark.parametrize("threads", [0, 2])
def test_resume_at_every_step(plan, data, threads):
    options = {"columns": ["y"], "window": 4, "transform_threads": threads}
    options["transform"] = transforms.slower_for_even_steps
    expected = fingerprints(ManifestLoader(plan, data, columns=["y"]))
    running = ManifestLoader(plan, data, **options)
    for index, _ in enumerate(running, start=1):
        resumed = ManifestLoader(plan, data, **options)
        resumed.load_state_dict(running.state_dict())
        assert fingerprints(resumed) == expected[index:]


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("prefetch", [0, 4])
def test_error_names_its_batch_and_comes_after_those_before_it(plan, data, threads, prefetch):
    loader = ManifestLoader(
        plan,
        data,
        columns=[],
        prefetch=prefetch,
        transform=transforms.fails,
        transform_threads=threads,
    )
    seen = []
    with pytest.raises(ZeroDivisionError, match="no") as caught:
        take(loader, seen)
    assert seen == [(0, s) for s in range(transforms.FAILS_AT)]
    assert loader.state_dict()["next_step"] == transforms.FAILS_AT
    assert caught.value.__notes__ == [
        "Raised by the loader's transform of epoch 0, step 7, micro 0."
    ]
    assert "fails" in [f.name for f in traceback.extract_tb(caught.value.__traceback__)]
    assert transform_threads() == prefetch_threads() == []


@pytest.mark.parametrize("prefetch", [0, 4])
def test_leaving_early_ends_the_threads(plan, data, prefetch):
    loader = ManifestLoader(
        plan,
        data,
        columns=[],
        prefetch=prefetch,
        transform=transforms.slower_for_even_steps,
        transform_threads=2,
    )
    for batch in loader:
        if batch.step == 2:
            break
    assert loader.state_dict()["next_step"] == 3
    loader.close()
    assert transform_threads() == []


def test_threads_need_a_transform(plan, data):
    for name in ("transform_threads", "transform_workers"):
        with pytest.raises(ParameterError, match="no transform for transform_threads"):
            ManifestLoader(plan, data, **{name: 2})
        with pytest.raises(ParameterError, match=f"'{name}' parameter must be an int in"):
            ManifestLoader(plan, data, transform=transforms.half, **{name: -1})

    options = {"transform": transforms.half, "transform_threads": 1, "transform_workers": 1}
    with pytest.raises(ParameterError, match="both were given: leave one out"):
        ManifestLoader(plan, data, **options)


# --- worker processes -----------------------------------------------------------------------------


def test_workers_give_the_same(plan, data, workers):
    columns = ["x", "y"]
    expected = fingerprints(
        ManifestLoader(plan, data, columns=columns, transform=transforms.doubled)
    )
    for window, prefetch in [(1, 0), (5, 1), (16, 8), (None, None)]:
        loader = workers(plan, data, columns, window=window, prefetch=prefetch)
        iterator = iter(loader)
        first = next(iterator)
        assert len(children()) == 2
        batches = [first, *iterator]
        assert fingerprints(batches) == expected
        first["x"].zero_()  # memory of its own, and writable
        assert loader.state_dict()["epoch"] == 1
    for batch in workers(plan, data, columns):
        if batch.step == 3:
            break
    assert fingerprints(workers(plan, data, columns)) == expected


def test_what_workers_send(plan, data, workers):
    loader = ManifestLoader(plan, data, columns=["x"])
    for batch, (low, none, step) in zip(loader, workers(plan, data, ["x"]), strict=True):
        assert torch.equal(low, batch["x"].to(torch.bfloat16))
        assert (none.shape, none.dtype, step.item()) == ((0, 4), torch.float32, batch.step)


def test_workers_fail_as_threads_do(plan, data, workers):
    loader, seen = workers(plan, data, ["y"]), []
    with pytest.raises(ZeroDivisionError, match="no") as caught:
        take(loader, seen)
    assert seen == [(0, s) for s in range(transforms.FAILS_AT)]
    where, there = caught.value.__notes__
    assert where == "Raised by the loader's transform of epoch 0, step 7, micro 0."
    assert "In the worker process:\nTraceback" in there
    assert "in fails" in there


def test_what_cannot_be_sent(plan, data, workers):
    with pytest.raises(BatchloomError, match="UnsendableError: this and that") as caught:
        drain(workers(plan, data, ["u8"]))
    assert "in fails_unsendably" in caught.value.__notes__[-1]
    with pytest.raises(ParameterError, match=r"epoch 0, step 0, micro 0 cannot be sent from its"):
        drain(workers(plan, data, ["i8"]))


@pytest.mark.slow
def test_a_worker_that_dies(plan, data):
    loader = ManifestLoader(
        plan, data, columns=["flag"], transform=transforms.chosen, transform_workers=2
    )
    for _ in range(2):  # they are started anew
        with pytest.raises(BatchloomError, match=r"exit code 9 .* epoch 0, step 0, .* step 7"):
            drain(loader)
    loader.close()


def test_transform_that_no_worker_can_import(plan, data):
    with pytest.raises(ParameterError, match=r"importable from a module.*transform_threads"):
        ManifestLoader(plan, data, transform=lambda b: b, transform_workers=1)


# --- interrupts -----------------------------------------------------------------------------------

SCRIPT = """if True:
    import signal, sys
    from batchloom.samplers import ManifestLoader
    from batchloom.tests.contracts import transforms

    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # wherever the tests run
        plan, data, kind = sys.argv[1:]
        options = {
            "threads": {
                "transform": transforms.slower_for_even_steps,
                "transform_threads": 2,
                "prefetch": 4,
            },
            "workers": {"transform": transforms.sleeps, "transform_workers": 2, "prefetch": 4},
        }[kind]
        loader = ManifestLoader(plan, data, **options)
        print("ready", flush=True)
        while True:
            for batch in loader:
                pass
"""


@pytest.mark.parametrize("kind", ["threads", "workers"])
def test_interrupt_leaves_nothing(plan, data, tmp_path, kind):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    (tmp_path / "tmp").mkdir()
    shared = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    process = subprocess.Popen(
        [sys.executable, str(script), str(plan), str(data), kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n"
    family = psutil.Process(process.pid)
    for _ in range(200):
        if kind != "workers" or len(family.children(recursive=True)) >= 3:
            break
        time.sleep(0.05)
    time.sleep(0.3)
    started = family.children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    try:
        _, complaints = process.communicate(timeout=30)
    finally:
        if process.poll() is None:  # a failed test leaves nothing, either
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    assert complaints.count("Traceback") == 1, complaints
    assert complaints.rstrip().endswith("KeyboardInterrupt")
    _, alive = psutil.wait_procs(started, timeout=10)
    assert alive == []
    if os.path.isdir("/dev/shm"):
        assert not {n for n in set(os.listdir("/dev/shm")) - shared if "batchloom" in n}
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(plan, data, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(plan), str(data), "workers"], stdout=subprocess.PIPE
    )
    family, started = psutil.Process(process.pid), []
    for _ in range(400):
        started = family.children(recursive=True)
        if len(started) >= 2:
            break
        time.sleep(0.05)
    time.sleep(0.5)  # still importing: they find their pipe closed when they first read it
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(started, timeout=60)
    assert alive == []
