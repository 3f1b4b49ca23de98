"""The published rows and their bytes: row layout 2, described in ``docs/table.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.errors import TableError

ROW_LAYOUT: Final = 2
"""Version of everything in this module; a change to any byte makes it 3."""

Recent = tuple[str, int, int]
"""One of a user's latest events: ``item_id``, feedback class, ``ts_ms``."""

Attributes = dict[str, Any]
"""What was said of one item or user: names and JSON values."""

_NEVER: Final = np.empty(0, np.int64)
_NUMBERS: Final[dict[str, str]] = {"fp16": "<f2", "fp32": "<f4"}


class Count(msgspec.Struct, frozen=True):
    """A decayed count that every item carries; halves every ``half_life_ms``."""

    name: str
    half_life_ms: int


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """What the rows of one epoch hold: the same for each of them.

    Parameters
    ----------
    dim
        Length ``D`` of a vector.
    precision
        Of the vectors' numbers. Biases are always fp32, counts fp64.
    counts
        The ``C`` counts of an item, in the order of their columns.

    """

    dim: int
    precision: Literal["fp16", "fp32"] = "fp32"
    counts: tuple[Count, ...] = ()


class UserRows(NamedTuple):
    """What is known of ``n`` users.

    ``recent`` has one sequence per user, newest first, or is empty where no histories are
    published. ``published_ms`` is filled by the reader.
    """

    ids: Sequence[str]
    vectors: NDArray[np.float32]  # (n, D), as of the user's last event
    ts_ms: NDArray[np.int64]  # (n,), time of that event
    recent: Sequence[Sequence[Recent]] = ()
    published_ms: NDArray[np.int64] = _NEVER  # (n,), when the row was written, by the wall clock


class ItemRows(NamedTuple):
    """What is known of ``n`` items; ``published_ms`` is filled by the reader."""

    ids: Sequence[str]
    vectors: NDArray[np.float32]  # (n, D)
    biases: NDArray[np.float32]  # (n,)
    counts: NDArray[np.float64]  # (n, C), as of ts_ms
    ts_ms: NDArray[np.int64]  # (n,), reference time of the counts
    published_ms: NDArray[np.int64] = _NEVER  # (n,), when the row was written, by the wall clock

    def counts_at(self, at_ms: int, layout: Layout) -> NDArray[np.float64]:
        r"""Decay the counts to a time.

        .. math:: c(t) = c \, 2^{-(t - t_0) / h}

        Parameters
        ----------
        at_ms
            The time ``t``.
        layout
            Whose counts these are.

        Returns
        -------
        Shape (n, C).

        Examples
        --------
        >>> zeros = np.zeros((1, 2), np.float32)
        >>> rows = ItemRows(["5239"], zeros, zeros[0, :1], np.array([[8.0]]), np.array([0]))
        >>> rows.counts_at(2_000, Layout(dim=2, counts=(Count("clicks", 1_000),))).tolist()
        [[2.0]]

        """
        half_lives_ms = np.array([count.half_life_ms for count in layout.counts], np.int64)
        age_ms = np.int64(at_ms) - self.ts_ms  # (n,)
        decayed: NDArray[np.float64] = self.counts * 2.0 ** (-age_ms[:, None] / half_lives_ms)
        return decayed


class Covisited(NamedTuple):
    """The items that go with one item, strongest first."""

    item_ids: Sequence[str]
    weights: NDArray[np.float32]  # (m,), of the pairs, as of ts_ms
    ts_ms: int


class Barrier(msgspec.Struct, frozen=True):
    """Up to where the learner has published.

    Parameters
    ----------
    step
        Running number of the micro-batch.
    at_ms
        Event time up to which rows have learned.
    published_ms
        When that was written, by the wall clock.

    """

    step: int
    at_ms: int
    published_ms: int


@cache
def _user_head(layout: Layout) -> np.dtype[Any]:
    return np.dtype(
        [
            ("row_layout", "u1"),
            ("dim", "<u2"),
            ("ts_ms", "<i8"),
            ("published_ms", "<i8"),
            ("vector", _NUMBERS[layout.precision], (layout.dim,)),
        ]
    )


@cache
def _item_row(layout: Layout) -> np.dtype[Any]:
    return np.dtype(
        [
            ("row_layout", "u1"),
            ("dim", "<u2"),
            ("ts_ms", "<i8"),
            ("published_ms", "<i8"),
            ("bias", "<f4"),
            ("counts", "<f8", (len(layout.counts),)),
            ("vector", _NUMBERS[layout.precision], (layout.dim,)),
        ]
    )


def _vectors(layout: Layout, ids: Sequence[str], vectors: NDArray[np.float32]) -> NDArray[Any]:
    if vectors.shape != (len(ids), layout.dim):
        raise TableError(
            f"want {len(ids)} vectors of the published dimension {layout.dim}, "
            f"got an array of shape {vectors.shape}"
        )
    with np.errstate(over="ignore"):  # what overflows is reported below, with its id
        narrow = vectors.astype(_NUMBERS[layout.precision])
    bad = np.flatnonzero(~np.isfinite(narrow).all(1))
    if bad.size:
        raise TableError(
            f"the vector of {ids[bad[0]]!r} cannot be published as {layout.precision}: it holds "
            f"{vectors[bad[0]][~np.isfinite(narrow[bad[0]])][0]}; {bad.size} vectors are concerned"
        )
    return narrow


def _cut(block: bytes, n: int) -> list[bytes]:
    size = len(block) // n if n else 0
    return [block[at * size : (at + 1) * size] for at in range(n)]


def encode_users(layout: Layout, rows: UserRows, published_ms: int) -> list[bytes]:
    """Return one value per user."""
    heads = np.zeros(len(rows.ids), _user_head(layout))
    heads["row_layout"] = ROW_LAYOUT
    heads["dim"] = layout.dim
    heads["ts_ms"] = rows.ts_ms
    heads["published_ms"] = published_ms
    heads["vector"] = _vectors(layout, rows.ids, rows.vectors)
    cut = _cut(heads.tobytes(), len(rows.ids))
    if not rows.recent:
        return [head + b"\x90" for head in cut]  # an empty MessagePack array
    pack = msgspec.msgpack.Encoder().encode
    return [head + pack(recent) for head, recent in zip(cut, rows.recent, strict=True)]


def decode_users(layout: Layout, ids: Sequence[str], values: Sequence[bytes]) -> UserRows:
    """Return the rows of :func:`encode_users`."""
    dtype = _user_head(layout)
    heads = _read(layout, dtype, ids, [value[: dtype.itemsize] for value in values])
    unpack = msgspec.msgpack.Decoder(list[Recent]).decode
    return UserRows(
        ids,
        heads["vector"].astype(np.float32),
        heads["ts_ms"].astype(np.int64),
        [unpack(value[dtype.itemsize :]) for value in values],
        heads["published_ms"].astype(np.int64),
    )


def encode_items(layout: Layout, rows: ItemRows, published_ms: int) -> list[bytes]:
    """Return one value per item."""
    block = np.zeros(len(rows.ids), _item_row(layout))
    block["row_layout"] = ROW_LAYOUT
    block["dim"] = layout.dim
    block["ts_ms"] = rows.ts_ms
    block["published_ms"] = published_ms
    block["bias"] = rows.biases
    block["counts"] = rows.counts
    block["vector"] = _vectors(layout, rows.ids, rows.vectors)
    return _cut(block.tobytes(), len(rows.ids))


def decode_items(layout: Layout, ids: Sequence[str], values: Sequence[bytes]) -> ItemRows:
    """Return the rows of :func:`encode_items`."""
    block = _read(layout, _item_row(layout), ids, values)
    return ItemRows(
        ids,
        block["vector"].astype(np.float32),
        block["bias"].astype(np.float32),
        block["counts"].astype(np.float64),
        block["ts_ms"].astype(np.int64),
        block["published_ms"].astype(np.int64),
    )


_decode_list: Final = msgspec.msgpack.Decoder(tuple[Literal[2], int, list[str], bytes]).decode


def encode_covisited(row: Covisited) -> bytes:
    """Return the value of one item."""
    weights = np.asarray(row.weights, "<f4").tobytes()
    return msgspec.msgpack.encode((ROW_LAYOUT, row.ts_ms, row.item_ids, weights))


def decode_covisited(value: bytes) -> Covisited:
    """Return the list of :func:`encode_covisited`."""
    _, ts_ms, item_ids, weights = _decode_list(value)
    return Covisited(item_ids, np.frombuffer(weights, "<f4"), ts_ms)


def encode_weights(weights: Mapping[str, NDArray[Any]]) -> bytes:
    """Return named arrays of numbers as one value."""
    packed = {}
    for name, array in weights.items():
        dtype = array.dtype.newbyteorder("<")
        packed[name] = (dtype.str, array.shape, array.astype(dtype).tobytes())
    return msgspec.msgpack.encode(packed)


def decode_weights(value: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays of :func:`encode_weights`."""
    packed = msgspec.msgpack.decode(value, type=dict[str, tuple[str, tuple[int, ...], bytes]])
    return {
        name: np.frombuffer(data, dtype).reshape(shape).copy()
        for name, (dtype, shape, data) in packed.items()
    }


def encode_attributes(attributes: Mapping[str, Any]) -> bytes:
    """Return attributes as JSON."""
    return msgspec.json.encode(attributes)


def decode_attributes(value: bytes) -> Attributes:
    """Return the attributes of :func:`encode_attributes`."""
    return msgspec.json.decode(value, type=Attributes)


def _read(
    layout: Layout, dtype: np.dtype[Any], ids: Sequence[str], values: Sequence[bytes]
) -> NDArray[Any]:
    for name, value in zip(ids, values, strict=True):
        if len(value) != dtype.itemsize:
            raise TableError(
                f"the row of {name!r} is not what its epoch announces: "
                f"want {dtype.itemsize} bytes, got {len(value)}"
            )
    block = np.frombuffer(b"".join(values), dtype)
    wrong = np.flatnonzero((block["row_layout"] != ROW_LAYOUT) | (block["dim"] != layout.dim))
    if wrong.size:
        row = block[wrong[0]]
        raise TableError(
            f"the row of {ids[wrong[0]]!r} is not what its epoch announces: want row layout "
            f"{ROW_LAYOUT} and dimension {layout.dim}, got {row['row_layout']} and {row['dim']}"
        )
    return block
