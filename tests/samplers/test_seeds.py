import numpy as np
from batchloom.samplers.seeds import occurrence_seeds, row_seeds

ROWS = np.array([0, 1, 2**40, 2**63 + 5], np.uint64)

# Frozen: augmentation of runs that were recorded depends on these.
GOLDEN_ROWS = [
    6895466558201503680,
    5521492964089244642,
    4468830966248221317,
    1027937192117714815,
]
GOLDEN_OCCURRENCES = [
    7855650933339413020,
    5104268918820820612,
    4292459858893884482,
    2018268259198700412,
]


def test_golden_values():
    assert row_seeds(7, 3, ROWS).tolist() == GOLDEN_ROWS
    seeds = occurrence_seeds(7, 3, ROWS, step=5, micro=2, first_position=10)
    assert seeds.tolist() == GOLDEN_OCCURRENCES


def test_seeds_are_63_bits():
    rows = np.arange(20_000, dtype=np.uint64)
    seeds = row_seeds(1, 0, rows)
    assert seeds.dtype == np.int64
    assert seeds.min() >= 0
    assert seeds.max() > 2**62
    assert len(np.unique(seeds)) == len(rows)


def test_each_part_of_the_key_counts():
    rows = np.full(3, 9, np.uint64)

    def seeds(seed=1, epoch=0, step=0, micro=0, first=0):
        found = occurrence_seeds(seed, epoch, rows, step=step, micro=micro, first_position=first)
        return found.tolist()

    base = seeds()
    assert len(set(base)) == 3  # one row, three positions
    for other in (seeds(seed=2), seeds(epoch=1), seeds(step=1), seeds(micro=1)):
        assert not set(base) & set(other)
    assert seeds(first=1)[:2] == base[1:]  # a slice has the seeds of its place
    assert row_seeds(1, 0, rows).tolist() != row_seeds(1, 1, rows).tolist()
    assert seeds(step=1) != seeds(micro=1)
    assert len(set(seeds(step=2**60))) == 3  # step << 16 wraps; still distinct by position
