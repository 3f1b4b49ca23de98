"""Measures the graph store: appends, recent neighbours, memory, and restoring a snapshot."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from graph_store.ids import Ids
from graph_store.snapshot import newest_whole, write_snapshot
from graph_store.store import Edges, EdgeStore
from replay.bench.measure import Meter, machine, medians, peak_rss_mb, show

USER_SHARE: Final = 0.7
"""Share of the nodes that are users."""

USER_EXPONENT: Final = 0.8
ITEM_EXPONENT: Final = 1.0
"""Of the Zipf laws that events draw their user and item from."""

BATCH: Final = 65_536
"""Events per append, and nodes per read."""

K: Final = 20
PEER: Final = "pyg_last_neighbours"


class Zipf:
    """Draws rows ``0 .. n - 1``, the r-th most likely one in proportion to r^-exponent.

    The continuous law is drawn from by its inverse and rounded down, which is exact enough
    for ranks above the first few; ranks are scattered over the rows.
    """

    def __init__(self, n: int, exponent: float, draw: np.random.Generator) -> None:
        self._rows = draw.permutation(n)
        self._exponent = exponent
        self._draw = draw

    def rows(self, size: int) -> NDArray[np.int64]:
        """Return that many draws."""
        n, u = self._rows.size, self._draw.random(size)
        if self._exponent == 1:
            rank = (n + 1) ** u
        else:
            power = 1 - self._exponent
            rank = (1 + u * ((n + 1) ** power - 1)) ** (1 / power)
        return self._rows[np.minimum(rank.astype(np.int64) - 1, n - 1)]


def event_stream(n_nodes: int, n_events: int, *, seed: int = 0) -> Iterator[Edges]:
    """Yield batches in time order; a tenth of a second lies between two events."""
    draw = np.random.default_rng(seed)
    n_users = int(n_nodes * USER_SHARE)
    users = Zipf(n_users, USER_EXPONENT, draw)
    items = Zipf(n_nodes - n_users, ITEM_EXPONENT, draw)
    for first in range(0, n_events, BATCH):
        size = min(BATCH, n_events - first)
        yield Edges(
            users.rows(size),
            items.rows(size),
            1_650_000_000_000 + 100 * np.arange(first, first + size),
            draw.integers(0, 4, size).astype(np.int8),
            draw.integers(0, 2**63, size).astype(np.uint64),
        )


def _fill_ids(prefix: str, n: int) -> Ids:
    ids = Ids()
    for first in range(0, n, BATCH):
        ids.rows([f"{prefix}{row}" for row in range(first, min(first + BATCH, n))])
    return ids


def _append_and_read(
    store: EdgeStore, n_nodes: int, n_events: int, reads: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Append the stream, then read users drawn uniformly: the worst case for caches."""
    appending, reading = Meter(), Meter()
    for batch in event_stream(n_nodes, n_events):
        with appending.lap(events=batch.user.size):
            store.append(batch)
    draw = np.random.default_rng(1)
    n_users = int(n_nodes * USER_SHARE)
    for _ in range(reads):
        rows = draw.integers(0, n_users, BATCH)
        with reading.lap(events=BATCH):
            store.users_latest(rows, k=K, before_ms=1 << 60)
    return appending.result(), reading.result()


def _peer(n_nodes: int, n_events: int, reads: int) -> tuple[dict[str, float], dict[str, float]]:
    """Do the same with PyG's ring of last neighbours: no kinds, no times, no growth."""
    import torch
    from torch_geometric.nn.models.tgn import LastNeighborLoader

    torch.set_num_threads(1)
    n_users = int(n_nodes * USER_SHARE)
    peer = LastNeighborLoader(n_nodes, size=K)
    appending, reading = Meter(), Meter()
    for batch in event_stream(n_nodes, n_events):
        source, target = torch.from_numpy(batch.user), torch.from_numpy(batch.item + n_users)
        with appending.lap(events=batch.user.size):
            peer.insert(source, target)
    draw = np.random.default_rng(1)
    for _ in range(reads):
        rows = torch.from_numpy(draw.choice(n_users, BATCH, replace=n_users < BATCH))
        with reading.lap(events=BATCH):
            peer(rows)
    return appending.result(), reading.result()


def _restore(
    users: Ids, items: Ids, store: EdgeStore, n_events: int, folder: Path
) -> dict[str, Any]:
    """Write everything, read it back (every byte is hashed), and compare the graphs."""
    digest = store.state_hash(users, items)
    state = {"users": users.state(), "items": items.state(), "edges": store.state()}
    started = time.perf_counter()
    written = write_snapshot(folder, state, fingerprint="bench")
    write_s = time.perf_counter() - started
    size = sum(file.stat().st_size for file in written.iterdir())
    del state
    gc.collect()
    meter, parts = Meter(), (Ids(), Ids(), EdgeStore())
    with meter.lap(events=n_events):
        read = newest_whole(folder, fingerprint="bench")
        assert read is not None
        parts[0].restore(read["users"])
        parts[1].restore(read["items"])
        parts[2].restore(read["edges"])
    return {
        **meter.result(),
        "seconds": round(meter.wall_s[0], 2),
        "write_seconds": round(write_s, 2),
        "snapshot_mb": size // 10**6,
        "state_hash_equal": parts[2].state_hash(parts[0], parts[1]) == digest,
    }


@click.command()
@click.option(
    "--nodes", default=10_000_000, show_default=True, type=click.IntRange(min=10), help="Ids."
)
@click.option(
    "--edges", default=50_000_000, show_default=True, type=click.IntRange(min=1), help="Events."
)
@click.option(
    "--peer-nodes", default=1_000_000, show_default=True, type=click.IntRange(min=10), help="Ids."
)
@click.option(
    "--peer-edges",
    default=2_000_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Events of each round in turn with the peer.",
)
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1), help="Of both.")
@click.option("--reads", default=50, show_default=True, type=click.IntRange(min=1), help="Batches.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the snapshot is written; default: a temporary folder.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for scripts.")
def graph(
    nodes: int,
    edges: int,
    peer_nodes: int,
    peer_edges: int,
    rounds: int,
    reads: int,
    folder: Path | None,
    as_json: bool,  # noqa: FBT001 - click passes it by name
) -> None:
    """Measure the graph store on generated events, on one core.

    \b
    Example:
        tidegraph bench graph --nodes 1000000 --edges 5000000 --json
    """
    _append_and_read(EdgeStore(), 100, 1_000, 1)  # compiles
    in_turn: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds):
        ours = _append_and_read(EdgeStore(), peer_nodes, peer_edges, reads)
        theirs = _peer(peer_nodes, peer_edges, reads)
        for who, pair in (("ours", ours), (PEER, theirs)):
            for case, figures in zip(("append", "recent20"), pair, strict=True):
                in_turn.setdefault(f"{who}/{case}", []).append(figures)
        gc.collect()
    small = {name: medians(figures) for name, figures in in_turn.items()}

    n_users = int(nodes * USER_SHARE)
    users, items = _fill_ids("user-", n_users), _fill_ids("item-", nodes - n_users)
    store = EdgeStore()
    append, recent = _append_and_read(store, nodes, edges, reads)
    slots = store.users.pool.nbytes + store.items.pool.nbytes
    per_node = store.n_bytes - slots + users.n_bytes + items.n_bytes
    memory = {
        "bytes_per_half_edge": round(slots / store.n_half_edges, 2),
        "bytes_per_node": round(per_node / nodes, 2),
        "half_edges": store.n_half_edges,
    }
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        restore = _restore(users, items, store, edges, Path(scratch))
    size = {"nodes": nodes, "edges": edges}
    peer_size = {"nodes": peer_nodes, "edges": peer_edges, "rounds": rounds}
    show(
        {
            "bench": "graph",
            "machine": machine("numba", "numpy", "torch", "torch_geometric"),
            "settings": {
                "cores_used": 1,
                "batch": BATCH,
                "k_user": store.users.k,
                "k_item": store.items.k,
                "degrees": f"Zipf: users r^-{USER_EXPONENT}, items r^-{ITEM_EXPONENT}",
                "user_share": USER_SHARE,
                "read_rows": "users drawn uniformly",
                "ids": "user-0 .. and item-0 ..",
            },
            "results": {
                "append": append | size | memory,
                "recent20": recent | size | {"k": K},
                "restore": restore | size | {"peak_rss_mb": peak_rss_mb()},
                "append_peer_size": small["ours/append"] | peer_size,
                "recent20_peer_size": small["ours/recent20"] | peer_size,
            },
            "peers": {
                PEER: small[f"{PEER}/append"] | peer_size | {"k": K},
                f"{PEER}/recent20": small[f"{PEER}/recent20"] | peer_size | {"k": K},
            },
            "ratios": {
                f"{case}/{PEER}": round(
                    small[f"ours/{case}"]["events_per_s"] / small[f"{PEER}/{case}"]["events_per_s"],
                    2,
                )
                for case in ("append", "recent20")
            },
        },
        as_json=as_json,
    )
