"""The tree of errors: one base, exit codes, and messages that survive a process boundary."""

from __future__ import annotations

import pickle

import pytest
from batchloom.dataplane import errors
from batchloom.dataplane.errors import BatchloomError, nearest
from tblib import pickling_support

pickling_support.install()  # as Dask does: errors are then made by their __new__

ERRORS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, BatchloomError)
]


def test_all_errors_are_listed() -> None:
    assert {e.__name__ for e in ERRORS} <= set(errors.__all__)
    assert len(ERRORS) > 20


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: e.__name__)
def test_messages_are_plain_and_travel(error: type[BatchloomError]) -> None:
    """Dask pickles what a task raises; a KeyError would show its message in quotes."""
    one = error("Row 7 is gone. Put it back.")
    again = pickle.loads(pickle.dumps(one))
    assert type(again) is error
    assert str(again) == str(one) == "Row 7 is gone. Put it back."
    assert again.exit_code == one.exit_code in (1, 2)


def test_a_code_of_cuda_travels_too() -> None:
    again = pickle.loads(pickle.dumps(errors.HostRegistrationError("No.", 712, "already")))
    assert (str(again), again.code, again.name) == ("No.", 712, "already")


def test_exit_codes_tell_usage_from_failure() -> None:
    usage = {e.__name__ for e in ERRORS if e.exit_code == 2}
    assert {"ParameterError", "JobSpecError", "MissingExtraError", "WorldSizeError"} <= usage
    failure = {
        "ManifestCorruptError",
        "DatasetChangedError",
        "StorageError",
        "FragmentCorruptError",
    }
    assert not usage & failure


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.ParameterError, ValueError),
        (errors.StorageError, OSError),
        (errors.MissingColumnError, KeyError),
        (errors.ManifestConflictError, FileExistsError),
        (errors.MissingExtraError, ImportError),
    ],
)
def test_errors_are_what_python_calls_them(error: type, builtin: type) -> None:
    assert issubclass(error, builtin)


def test_suggestions() -> None:
    assert nearest("txet", ["text", "label"]) == " Did you mean 'text'?"
    assert nearest("zzz", ["text", "label"]) == ""
    assert nearest("x", []) == ""
