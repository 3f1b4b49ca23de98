"""Forgets a user: edges, counts, pairs, what was seen, and the name."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store.graph import TemporalGraph
from graph_store.kernels import RETRACTED
from stream.events import Kind


class Forgotten(NamedTuple):
    """What is no longer as it was; each row once."""

    user: int  # the row, which has no name now
    items: NDArray[np.int64]  # whose edges, counts or pairs may have changed


def forget(graph: TemporalGraph, user_id: str) -> Forgotten | None:
    """Take a user out of a graph; the same id is a new user from then on.

    Parameters
    ----------
    graph
        Changed in place.
    user_id
        Who; one that the graph does not know changes nothing.

    Returns
    -------
    What changed, or ``None`` if there was no such user.

    Notes
    -----
    Gone for certain: the name, the user's edges on both sides, what they had seen, and what waited
    to retract an edge of theirs. The row stays, of nobody, and is never given out again. Costs
    what the user's items have edges.

    A graph that never saw the user is the same, ``state_hash`` included, with these exceptions,
    all of them sums or traces in which nobody can be told from anybody else:

    * An item keeps its last ``k_item`` edges. The edges of others that the user's edges had
      pushed out before do not come back.
    * Counts lose every edge that the user or one of the items still kept; pairs those between the
      edges that the user kept, which had not been retracted. What is older decays with the rest.
      Events that came late made fewer pairs than are taken back; no pair falls below nothing.
    * The items themselves stay known, the clock does not go back, and the items of the last few
      thousand positives, from which a learner draws what was not chosen, stay what they were.

    Examples
    --------
    >>> from graph_store.graph import GraphConfig
    >>> from stream.events import Feedback, FeedbackBatch
    >>> graph = TemporalGraph(GraphConfig())
    >>> like = Feedback(1, "e1", "712", "5239", 1650812741436, "explicit_positive", 1.0)
    >>> graph.append(graph.view(FeedbackBatch.from_feedback([like])))
    >>> forget(graph, "712").items.tolist(), graph.edges.n_half_edges
    ([0], 0)
    >>> graph.users.find(["712"]).tolist()
    [-1]

    """
    user = int(graph.users.find([user_id])[0])
    if user < 0:
        return None
    items = graph.seen.forget(user)
    own, theirs = graph.edges.forget(user, items)
    edges = np.unique(np.concatenate([own, theirs]))  # each once, by time and key
    rows, ts_ms = edges["other"].astype(np.int64), edges["ts_ms"].astype(np.int64)
    liked = (edges["kind"] & ~RETRACTED) <= Kind.IMPLICIT_POSITIVE
    ones = np.ones(edges.size)
    graph.shown.take_back(rows, ts_ms, ones)
    graph.positives.take_back(rows[liked], ts_ms[liked], ones[liked])
    _take_pairs_back(graph, own)
    graph.users.erase(np.array([user]))
    return Forgotten(user, items)


def _take_pairs_back(graph: TemporalGraph, own: NDArray[np.void]) -> None:
    """Undo the pairs between the edges that a user kept, oldest first."""
    rows, ts_ms = own["other"].astype(np.int64), own["ts_ms"].astype(np.int64)
    positive = np.flatnonzero((own["kind"] & ~RETRACTED) <= Kind.IMPLICIT_POSITIVE)
    shown = own["kind"] <= Kind.IMPLICIT_POSITIVE
    earlier = np.arange(own.size) < positive[:, None]  # (P, R)
    graph.covisitation.take_back(
        rows[positive],
        ts_ms[positive],
        np.where(earlier & shown, rows, -1),
        np.broadcast_to(ts_ms, earlier.shape),
    )
