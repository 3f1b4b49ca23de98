"""Co-visitation: what the same users met, lately and close together in time."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from replay.baselines.base import Batch
from replay.baselines.pairs import PairCounts

HALF_LIFE_MS: Final = 7 * 86_400_000
GAP_MS: Final = 3 * 86_400_000


class Covisitation:
    """Items by the decayed number of users who met them together with the user's history.

    Events of all classes make pairs, and all of the history asks for them: who skips a thing
    belongs to the crowd that is shown it. So this baseline knows what will be shown as much as
    what will be liked, and its AUC says how little it knows of the latter.

    Raw weights are added up, not cosines: see :class:`replay.baselines.item_knn.ItemKnn`.

    Notes
    -----
    Chosen on the validation slice of the sample, HR@10/NDCG@10: pairs of positive events only
    .0571/.0290, of all events .0724/.0365. Half-life 3 d, 7 d, 30 d at this gap .0755/.0373,
    .0724/.0365, .0715/.0360; gap 6 h, 1 d, 3 d at 7 d .0698/.0346, .0728/.0361, .0724/.0365. The
    half-life of 3 d is left aside because it forgets sparser logs before their users come back.

    Examples
    --------
    >>> Covisitation().name
    'covisitation'

    """

    name = "covisitation"

    def __init__(self) -> None:
        self._pairs = PairCounts(half_life_ms=HALF_LIFE_MS, gap_ms=GAP_MS)

    def score(self, batch: Batch, events: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score by the weight of pairs with the history."""
        return self._pairs.scores(batch.history.nodes[events], batch.n_items, at_ms=batch.at_ms)

    def learn(self, batch: Batch) -> None:
        """Pair each event with those of its user before it."""
        says = batch.kind <= 3
        history = batch.history
        self._pairs.add(
            batch.items[says], batch.ts_ms[says], history.nodes[says], history.ts_ms[says]
        )

    def state(self) -> dict[str, Any]:
        """Return all that a restart needs."""
        return self._pairs.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described."""
        self._pairs.restore(state)
