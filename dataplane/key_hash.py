"""Hashes of key columns: one 64-bit number a value, the same on any machine.

Integers and booleans hash by value, strings and binaries by their bytes (BLAKE2b), so that an int64
key and an int32 key of the same value agree, and so do plain and dictionary columns. Nulls share
one hash. Floats are refused: they make poor keys.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .columns import as_numpy
from .errors import ColumnTypeError
from .random import mix64

__all__ = ["hash_column", "hash_column_wide"]

U64 = npt.NDArray[np.uint64]

_NULL_HASH = np.uint64(0x4E55_4C4C_4E55_4C4C)


def hash_column(array: pa.Array, name: str = "column") -> U64:
    """Return a hash of each value; uint64, shape (rows,)."""
    found: U64 = _hashes(array, name, words=1)[0]
    return found


def hash_column_wide(array: pa.Array, name: str = "column") -> U64:
    """Return two independent hashes of each value; uint64, shape (2, rows).

    Different integers never share both; nor do different strings or binaries, short of a collision
    of 128 bits of BLAKE2b.
    """
    return _hashes(array, name, words=2)


def _hashes(array: pa.Array, name: str, words: int) -> U64:
    """Return `words` hashes of each value; uint64, shape (words, rows)."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _taken(_hashes(array.dictionary, name, words), array.indices)
    if pa.types.is_boolean(kind):
        array, kind = array.cast(pa.int8()), pa.int8()
    if pa.types.is_integer(kind):
        return _integer_hashes(array, words)
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (text or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise ColumnTypeError(
            f"Column '{name}' is {kind}; a key must be integers, strings or binaries."
        )
    encoded = array.dictionary_encode()
    digests = b"".join(
        blake2b(v.encode() if text else v, digest_size=8 * words).digest()
        for v in encoded.dictionary.to_pylist()
    )
    hashes = np.frombuffer(digests, "<u8").reshape(-1, words).T
    return _taken(hashes, encoded.indices)


def _integer_hashes(array: pa.Array, words: int) -> U64:
    """Return a mix of the value, which is one to one, and whether it is negative."""
    values = as_numpy(array.fill_null(0))
    null = as_numpy(array.is_null())
    bits = values.astype(np.int64, copy=False).view(np.uint64)
    hashes = [mix64(bits.copy()), (values < 0).astype(np.uint64)]
    return np.where(null, _NULL_HASH, np.stack(hashes[:words]))


def _taken(hashes: U64, indices: pa.Array) -> U64:
    null = np.full((len(hashes), 1), _NULL_HASH)
    with_null: U64 = np.hstack([hashes.astype(np.uint64), null])
    found: U64 = with_null[:, as_numpy(indices.fill_null(hashes.shape[1]).cast(pa.int64()))]
    return found
