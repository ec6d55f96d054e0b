"""A dataset several times larger than the cache is loaded within the cache's limit."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane import BatchPlan
from batchloom.tests.contracts.batches import write_plan

MB = 1 << 20
CACHE, DATASET = 24 * MB, 144 * MB

SCRIPT = """if True:
    import json, sys
    from batchloom.samplers import ManifestLoader

    def held():  # without the pages of mapped files, which the system takes back at will
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

    plan, data, cache = sys.argv[1:]
    loader = ManifestLoader(plan, data, window=4, prefetch=2, pack=False, cache_bytes=int(cache))
    iterator = iter(loader)
    next(iterator)
    before = most = held()
    rows = 0
    for number, batch in enumerate(iterator):
        rows += batch.num_rows
        if number % 8 == 0:
            most = max(most, held())
    stats = loader.stats()
    print(json.dumps([rows, most - before, stats.read_amplification, stats.hit_rate]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_memory_stays_within_the_limit(tmp_path):
    rows = DATASET // 512
    x = np.random.default_rng(0).random((rows, 128), dtype=np.float32)
    table = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 128)})
    (tmp_path / "data").mkdir()
    pq.write_table(
        table,
        tmp_path / "data" / "a.parquet",
        row_group_size=8192,
        compression="none",
        use_dictionary=False,
    )
    # Neighbouring row groups are read together, in a mixed order.
    order = np.arange(rows).reshape(-1, 4096)
    np.random.default_rng(1).permuted(order, axis=1, out=order)
    write_plan(
        tmp_path / "plan", tmp_path / "data", {0: BatchPlan.cut(order.ravel().astype("u8"), 256)}
    )
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "plan"), str(tmp_path / "data"), str(CACHE)],
        capture_output=True,
        check=True,
    )
    delivered, grown, amplification, hits = json.loads(ran.stdout)
    assert delivered == rows - 256  # the first was taken before
    assert grown < CACHE + 60 * MB < DATASET * 2 / 3
    assert amplification < 1.3  # each row group is decoded once
    assert hits > 0.8
