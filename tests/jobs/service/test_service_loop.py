"""The loop: signals in, the next epoch planned from them; kills, faults, several runs."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchloom.dataplane import Manifest, Series, SignalStore, open_dataset, open_plan
from batchloom.dataplane.errors import (
    DatasetChangedError,
    ManifestError,
    RowIdError,
    SelectionError,
    SignalError,
)
from batchloom.dataplane.remote_signals import RemoteSignals
from batchloom.jobs import plan
from batchloom.jobs.service.refusals import RefusedError
from batchloom.jobs.service.seals import Seals
from batchloom.samplers import ManifestLoader
from batchloom.tests.contracts.batches import fingerprints
from batchloom.tests.jobs.service.running import (
    Served,
    ask,
    body_of,
    free_port,
    loss_of,
    wait_ready,
    write_run,
)

EPOCHS = 3


def train(url: str, data: Path, epochs: range = range(EPOCHS), **options: Any) -> list[str]:
    """Train on a run with losses that rows and epochs decide; return what was delivered."""
    opened = open_plan(f"{url}/runs/first")
    loader = ManifestLoader(
        opened, data, columns=["row"], follow=True, epochs=EPOCHS, poll_seconds=0.05, pack=False
    )
    seen = []
    with SignalStore.for_writing(f"{url}/runs/first", opened, **options) as store:
        assert isinstance(store, RemoteSignals)
        for epoch in epochs:
            loader.set_epoch(epoch)
            for batch in loader:
                seen.append(batch)
                losses = loss_of(batch.rows, epoch)
                store.append(batch.rows, epoch=batch.epoch, step=batch.step, loss=losses)
            assert store.seal(epoch)
    return fingerprints(seen)


def by_hand(home: Path, data: Path) -> tuple[list[str], list[str]]:
    """Do the same with files and the planning jobs; return (ids, what was delivered)."""
    seen = []
    for epoch in range(EPOCHS):
        plan(
            "seta", data, out=home / "plan", batch_size=32, seed=7, epochs=(epoch, epoch + 1),
            training_epochs=EPOCHS, signal=str(home / "signals"), workers=0,
        )  # fmt: skip
        opened = open_plan(home / "plan")
        with SignalStore.for_writing(home / "signals", opened) as store:
            loader = ManifestLoader(opened, data, columns=["row"], epochs=[epoch], pack=False)
            for batch in loader:
                seen.append(batch)
                losses = loss_of(batch.rows, epoch)
                store.append(batch.rows, epoch=epoch, step=batch.step, loss=losses)
    return [m.manifest_id for m in Series(home / "plan").members], fingerprints(seen)


@pytest.fixture(scope="module")
def hand_made(small: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    return by_hand(tmp_path_factory.mktemp("by-hand"), small)


def ids_of(folder: Path) -> list[str]:
    series = Series(folder / "runs" / "first" / "plan")
    series.verify(deep=True)
    return [m.manifest_id for m in series.members]


def test_the_loop_is_the_one_of_files(
    small: Path, tmp_path: Path, hand_made: tuple[list[str], list[str]]
) -> None:
    write_run(tmp_path / "service", "first", small)
    with Served(tmp_path / "service") as served:
        assert train(served.url, small) == hand_made[1]
        assert ids_of(served.folder) == hand_made[0]
        # A training that begins anew may say all of it again: another attempt, the same plans.
        assert train(served.url, small) == hand_made[1]
        assert ids_of(served.folder) == hand_made[0]
        told = ask(f"{served.url}/v1/runs/first")[1]
        assert (told["sealed"], len(told["members"])) == ([0, 1, 2], 3)
        assert served.stop() == 0
    stored = SignalStore.open(served.folder / "runs" / "first" / "signals")
    rows = np.concatenate([found.rows for found in stored.latest()])
    assert len(rows) == 1000
    assert [e["event"] for e in served.events()].count("planned") == EPOCHS


def test_a_killed_service_loses_nothing_that_it_acknowledged(
    small: Path, tmp_path: Path, hand_made: tuple[list[str], list[str]]
) -> None:
    write_run(tmp_path / "service", "first", small)
    served = Served(tmp_path / "service", port=free_port())
    stop, draw = threading.Event(), random.Random(1)

    def kill() -> None:
        for _ in range(3):
            if stop.wait(draw.uniform(0.2, 1.0)):
                return
            served.kill()
            served.start()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert train(served.url, small, part_rows=64) == hand_made[1]
    finally:
        stop.set()
        killer.join()
    assert ids_of(served.folder) == hand_made[0]
    served.stop()
    store = SignalStore.open(served.folder / "runs" / "first" / "signals")
    assert store.torn() == []
    for epoch in range(EPOCHS):
        series = Series(served.folder / "runs" / "first" / "plan")
        assert store.completeness(series, epoch).missing.words.sum() == 0


def test_a_sealed_epoch_is_planned_when_the_service_starts_again(
    small: Path, tmp_path: Path, hand_made: tuple[list[str], list[str]]
) -> None:
    write_run(tmp_path / "service", "first", small)
    with Served(tmp_path / "service") as served:
        train(served.url, small)
    folder = served.folder / "runs" / "first"
    shutil.rmtree(folder / "plan" / "epochs-000002-000003")
    (folder / "seals" / "epoch-000001.json").unlink()  # killed between the ranks' words and this
    with Served(tmp_path / "service") as served:
        assert wait_ready(served.url, "first", 2) == hand_made[0][2]


def test_signals_that_were_compacted_still_count(small: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "service", "first", small)
    signals = tmp_path / "service" / "runs" / "first" / "signals"
    with Served(tmp_path / "service", port=free_port()) as served:
        run = f"{served.url}/runs/first"
        with SignalStore.for_writing(run, open_plan(run), part_rows=100) as store:
            assert isinstance(store, RemoteSignals)
            for start in range(0, 1000, 100):
                rows = np.arange(start, start + 100)
                store.append(rows, epoch=0, step=start, loss=loss_of(rows, 0))
                store.flush()
            for _ in range(2):
                SignalStore.open(signals).compact()
                served.kill()
                served.start()
            assert store.seal(0)


def test_all_ranks_of_one_attempt_seal(small: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "service", "first", small)
    with Served(tmp_path / "service") as served:
        run = f"{served.url}/runs/first"
        opened = open_plan(run)
        zero = SignalStore.for_writing(run, opened)
        one = SignalStore.for_writing(run, opened, writer=1, attempt=zero.attempt)
        assert isinstance(zero, RemoteSignals)
        assert isinstance(one, RemoteSignals)
        for rank, store in enumerate((zero, one)):
            rows = np.arange(rank, 1000, 2)
            store.append(rows, epoch=0, step=0, loss=loss_of(rows, 0))
        assert not zero.seal(0, world=2)
        assert ask(f"{served.url}/v1/runs/first/epochs/1")[1]["step"] == "not sealed yet"
        body = {"attempt": zero.attempt, "rank": 2, "world": 3, "parts": {}}
        status, told, _ = ask(f"{served.url}/v1/runs/first/epochs/0/seal", "POST", body)
        assert (status, "another rank of attempt" in str(told)) == (409, True)
        body = {"attempt": zero.attempt, "rank": 1, "world": 2, "parts": {"loss": 3}}
        status, told, _ = ask(f"{served.url}/v1/runs/first/epochs/0/seal", "POST", body)
        assert (status, "loss 0, loss 1, loss 2" in str(told)) == (409, True)
        assert one.seal(0, world=2)
        assert one.seal(0, world=2)  # again is fine
        zero.close()
        one.close()
        assert wait_ready(served.url, "first", 1)


def test_signals_that_cannot_be_taken(small: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "service", "first", small)
    with Served(tmp_path / "service") as served:
        run = f"{served.url}/runs/first"
        opened = open_plan(run)
        with SignalStore.for_writing(run, opened) as store:
            store.append([0, 5000], epoch=0, step=0, loss=[1.0, 2.0])
            with pytest.raises(RowIdError, match="1 of the rows whose 'loss'.*5000"):
                store.flush()
            for read in (store.parts, store.latest, store.digest, store.history):
                with pytest.raises(SignalError, match="are read where the service runs"):
                    list(read(1) if read == store.history else read())  # type: ignore[operator]
        other = tmp_path / "other"
        shutil.copytree(small, other)
        os.unlink(other / "part-0.parquet")
        with pytest.raises(DatasetChangedError, match="planned from another dataset"):
            SignalStore.for_writing(run, open_dataset(other))
        store = SignalStore.for_writing(run, opened)
        store.append([3, 4], epoch=7, step=0, loss=[1.0, 2.0])
        with pytest.raises(SelectionError, match="no plan of epoch 7"):
            store.flush()
        with pytest.raises(SelectionError, match="no plan of epoch 7"):
            store.close()  # it was tried again, and is given up


def test_a_plan_that_fails_says_why_and_is_retried(small: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(small, data)
    write_run(tmp_path / "service", "first", data)
    with Served(tmp_path / "service") as served:
        run = f"{served.url}/runs/first"
        opened = open_plan(run)
        away = tmp_path / "away.parquet"
        os.rename(data / "part-0.parquet", away)
        with SignalStore.for_writing(run, opened) as store:
            assert isinstance(store, RemoteSignals)
            store.append(np.arange(1000), epoch=0, step=0, loss=loss_of(np.arange(1000), 0))
            (data / "part-0.parquet").write_bytes(b"not parquet at all")
            assert store.seal(0)
        loader = ManifestLoader(
            opened, small, columns=["row"], follow=True, epochs=2, poll_seconds=0.05, pack=False
        )
        loader.set_epoch(1)
        with pytest.raises(ManifestError, match="could not be planned: .*part-0.*epochs/1/retry"):
            next(iter(loader))
        told = ask(f"{served.url}/v1/runs/first")[1]["planning"]
        assert (told["state"], told["start"]) == ("failed", 1)
        os.replace(away, data / "part-0.parquet")
        assert ask(f"{served.url}/v1/runs/first/epochs/1/retry", "POST")[0] == 200
        assert wait_ready(served.url, "first", 1)
        assert len(fingerprints(loader)) > 0


def test_several_runs_and_one_that_is_wrong(small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "service"
    job = 'dataset = "{data}"\nbatch_size = 50\nepochs = "0:{epochs}"\n[[stages]]\nmethod = '
    write_run(folder, "all-at-once", small, job=job + '"shuffle"\n')
    write_run(folder, "soft", small, job=job + '"infobatch"\n')
    write_run(folder, "wrong", small, job=job + '"nonsense"\n')
    (folder / "runs" / "not a name!").mkdir()
    with Served(folder) as served:
        whole = (
            Manifest.open(folder / "runs" / "all-at-once" / "plan" / "epochs-000000-000003")
            if wait_ready(served.url, "all-at-once", 2)
            else None
        )
        assert whole is not None
        assert whole.epochs == (0, 1, 2)
        hand = plan(
            "shuffle", small, out=tmp_path / "hand", batch_size=50, epochs=(0, 3), workers=0
        )
        assert whole.manifest_id == hand.manifest_id
        wait_ready(served.url, "soft", 0)
        status, told, _ = ask(f"{served.url}/v1/runs/wrong")
        assert (status, "nonsense" in told["problem"]) == (200, True)
        assert ask(f"{served.url}/v1/runs/wrong/epochs/0")[0] == 409
        assert ask(f"{served.url}/v1/runs")[1] == {"runs": ["all-at-once", "soft", "wrong"]}
        write_run(folder, "late", small, epochs=2)  # found without a restart
        wait_ready(served.url, "late", 0)
        fixed = (job + '"shuffle"\n').format(data=small, epochs=1)
        (folder / "runs" / "wrong" / "job.toml").write_text(fixed)
        time.sleep(2.5)
        assert wait_ready(served.url, "wrong", 0)


def test_a_folder_is_kept_by_one_service(small: Path, tmp_path: Path) -> None:
    with Served(tmp_path / "service"), pytest.raises(AssertionError, match="another service"):
        Served(tmp_path / "service")


def test_a_full_disk_acknowledges_nothing(small: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "service", "first", small)
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
        "from batchloom.jobs.cli import main; main()"
    )
    with Served(tmp_path / "service") as served:
        wait_ready(served.url, "first", 0)
        served.stop()
        served.script = script
        served.start()
        attempt = ask(f"{served.url}/v1/runs/first/attempts", "POST", {})[1]["attempt"]
        place = f"{served.url}/v1/runs/first/signals/loss/{attempt}/0"
        rows = np.tile(np.arange(1000), 20)
        big = body_of(np.sort(rows), attempt=attempt)
        status, told, _ = ask(f"{place}/0", "PUT", big)
        assert (status, told["error"]["type"]) == (507, "StorageError")
        folder = served.folder / "runs" / "first" / "signals"
        assert list(folder.glob("loss/*")) == []
        assert ask(f"{place}/0", "PUT", body_of([1, 2], attempt=attempt))[0] == 200
        assert len(list(folder.glob("loss/part-*"))) == 1


def test_seals_are_facts(tmp_path: Path) -> None:
    seals = Seals(tmp_path / "seals")
    assert seals.seal(0, 1, 1, 2, {"loss": 3}) == [0]
    assert Seals(tmp_path / "seals").sealed(0) is None
    with pytest.raises(RefusedError, match="another rank of attempt 1 said 2"):
        seals.seal(0, 1, 0, 4, {})
    assert seals.seal(0, 2, 0, 1, {}) == []  # another attempt, alone
    assert seals.seal(0, 1, 0, 2, {}) == []
    again = Seals(tmp_path / "seals")
    assert again.sealed(0) == {"attempt": 2, "world": 1}
    assert again.all_sealed() == [0]
