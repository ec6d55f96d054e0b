"""What becomes of rows whose values cannot be used: the job fails, or they are left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..dataplane.errors import InvalidValueError, OnInvalid, examples
from .progress import Progress

__all__ = ["settle_invalid"]


def settle_invalid(
    what: str,
    columns: Sequence[str],
    rows: int,
    ids: Iterable[int],
    on_invalid: OnInvalid,
    progress: Progress,
) -> None:
    """Fail where rows hold values that cannot be used, or warn that they are left out.

    Parameters
    ----------
    what : str
        Kinds of values, such as "NaN or null".
    columns : sequence of str
    rows : int
        How many rows; nothing happens where there is none.
    ids : iterable of int
        The first six of their row ids, or more.
    on_invalid : {'fail', 'drop'}
    progress : Progress
    """
    if not rows:
        return
    text = f"{rows:,} rows hold {what} values in {', '.join(columns)}"
    if on_invalid == "fail":
        raise InvalidValueError(
            f"{text}: {examples(ids)}. Mend them, or leave them out with --on-invalid drop."
        )
    progress.warn(f"{text} and are left out: {examples(ids)}")
