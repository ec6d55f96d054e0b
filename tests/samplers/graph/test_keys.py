from __future__ import annotations

import numpy as np
import pytest
from batchloom.dataplane.errors import ParameterError, SelectionError
from batchloom.samplers.graph import PlannedBatches
from batchloom.samplers.graph.keys import key_of_inputs, key_of_step


def test_golden_keys() -> None:
    """What is planned today is sampled the same for ever."""
    assert key_of_step(0, 0, 0) == 0x94C9D2440679E3D8
    assert key_of_step(7, 1, 2, 3) == 0x302D29DE28F3666F
    assert key_of_inputs(7, np.array([4, 5, 6])) == 0xE812D1A8A227BA5E


def test_keys_differ_in_each_part() -> None:
    steps = [key_of_step(*parts) for parts in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]]
    steps.append(key_of_step(0, 0, 0, 1))
    inputs = [[], [0], [0, 0], [1], [0, 1], [1, 0]]
    free = [key_of_inputs(seed, np.array(i, np.int64)) for seed in (0, 1) for i in inputs]
    assert len({*steps, *free}) == len(steps) + len(free)


def test_inputs_of_another_layout_have_the_same_key() -> None:
    inputs = np.arange(20)
    assert key_of_inputs(3, inputs[::2]) == key_of_inputs(3, inputs[::2].astype(">i8"))


def test_batches_are_found_by_their_inputs() -> None:
    planned = PlannedBatches.of_offsets([0, 3, 3, 5])
    assert planned.find(np.array([0, 1, 2])) == 0
    assert planned.find(np.array([3, 4])) == 2
    assert planned.key(9, np.array([3, 4])) == key_of_step(9, 0, 2)
    assert planned.key(9, np.array([], np.int64)) == 0
    epochs = PlannedBatches(
        np.array([0, 2, 4]), np.array([5, 6]), np.array([0, 0]), np.array([0, 1])
    )
    assert epochs.key(9, np.array([2, 3])) == key_of_step(9, 6, 0, 1)


@pytest.mark.parametrize("inputs", [[0, 1], [1, 2], [2, 3, 4], [0, 2], [2, 1, 0]])
def test_inputs_that_are_no_batch(inputs: list[int]) -> None:
    planned = PlannedBatches.of_offsets([0, 3, 5])
    with pytest.raises(SelectionError, match="are no batch of the plan: batch 0 is 0 to 2"):
        planned.find(np.array(inputs))


def test_inputs_outside_of_the_plan() -> None:
    planned = PlannedBatches.of_offsets([0, 3, 5])
    for inputs in ([5, 6], [-1, 0]):
        with pytest.raises(SelectionError, match="no batch of the plan: it has 5"):
            planned.find(np.array(inputs))


def test_offsets_that_are_none() -> None:
    for offsets in ([], [1, 2], [0, 3, 2], [[0, 1]]):
        with pytest.raises(ParameterError, match="must ascend from 0"):
            PlannedBatches.of_offsets(np.array(offsets, np.int64))
    with pytest.raises(ParameterError, match="must be of integers. Got float64"):
        PlannedBatches.of_offsets([0.0, 1.0])
    with pytest.raises(ParameterError, match="names the epoch of each"):
        PlannedBatches(np.array([0, 1]), np.zeros(2, int), np.zeros(1, int), np.zeros(1, int))
