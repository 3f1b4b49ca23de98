"""iALS: implicit matrix factorisation, retrained every few hours, users folded in at each event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from numpy.typing import NDArray
from scipy import sparse
from threadpoolctl import threadpool_limits

from replay.baselines.base import Batch, liked
from replay.baselines.retraining import EVERY_MS, Interactions, Schedule

DIM: Final = 16
CONFIDENCE: Final = 10.0
REGULARISATION: Final = 30.0
ITERATIONS: Final = 10
WARM_ITERATIONS: Final = 3
"""Iterations of a retrain that starts from the item factors of the one before."""


class Ials:
    r"""Factors that explain likes with high and everything else with low confidence.

    .. math:: \min_{p, q} \sum_{u,i} c_{ui} (x_{ui} - p_u \cdot q_i)^2 +
        \lambda \Big(\sum_u \|p_u\|^2 + \sum_i \|q_i\|^2\Big)

    Item factors are those of the last retrain; the user's are solved for from the history as of
    the event. Items without factors are not recommended.

    Parameters
    ----------
    seed
        Of the factors' start values.
    every_ms
        Time between retrains.

    Notes
    -----
    Chosen on the validation slice of the sample, retrained every 12 h, HR@10/NDCG@10 for dim,
    confidence, regularisation: 32/10/1 .0445/.0231, 32/30/10 .0455/.0233, 16/10/3 .0518/.0260,
    16/10/10 .0537/.0267, 16/10/30 .0539/.0272, 16/30/30 .0480/.0248, 8/10/10 .0530/.0257.

    References
    ----------
    Hu, Koren and Volinsky, *Collaborative Filtering for Implicit Feedback Datasets*, ICDM 2008;
    the solver is the one of the package ``implicit``.

    Examples
    --------
    >>> Ials(0).name
    'ials'

    """

    name = "ials"

    def __init__(self, seed: int = 0, every_ms: int = EVERY_MS) -> None:
        self._seed = seed
        self._schedule = Schedule(every_ms)
        self._log = Interactions()
        self._model = self._with(np.zeros((0, DIM), np.float32))

    @property
    def retrain_s(self) -> Sequence[float]:
        """Seconds that each retrain took."""
        return self._schedule.seconds

    def score(self, batch: Batch, events: NDArray[np.int64]) -> NDArray[np.float32]:
        """Fold the users in and score by the product of factors."""
        if self._schedule.due(batch.at_ms):
            # One thread: the solver's own threads and those of BLAS wait for each other.
            with self._schedule, threadpool_limits(1, user_api="blas"):
                self._retrain(batch.n_items)
        factors = self._model.item_factors
        known = factors.shape[0]
        out = np.full((events.shape[0], batch.n_items), -np.inf, np.float32)
        if known:
            items = liked(batch.history, events)
            row, slot = np.nonzero((items >= 0) & (items < known))
            confidence = np.full(row.shape, CONFIDENCE, np.float32)
            shape = (events.shape[0], known)
            likes = sparse.csr_matrix((confidence, (row, items[row, slot])), shape=shape)
            users = self._model.recalculate_user(np.arange(events.shape[0]), likes)
            out[:, :known] = users @ factors.T
        return out

    def learn(self, batch: Batch) -> None:
        """Keep the events for the next retrain."""
        self._log.append(batch)

    def state(self) -> dict[str, Any]:
        """Return all that a restart needs."""
        return {
            "log": self._log.state(),
            "schedule": self._schedule.state(),
            "item_factors": np.array(self._model.item_factors),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described."""
        self._log.restore(state["log"])
        self._schedule.restore(state["schedule"])
        self._model = self._with(np.array(state["item_factors"]))

    def _retrain(self, n_items: int) -> None:
        likes = sparse.csr_matrix(self._log.matrix(n_items)) * np.float32(CONFIDENCE)
        if not likes.nnz:
            return
        known = self._model.item_factors.shape[0]
        start = np.random.default_rng(self._seed).random((n_items, DIM), np.float32) * 0.01
        start[:known] = self._model.item_factors
        self._model = self._with(start.astype(np.float32))
        self._model.iterations = WARM_ITERATIONS if known else ITERATIONS
        self._model.fit(likes, show_progress=False)

    def _with(self, item_factors: NDArray[np.float32]) -> AlternatingLeastSquares:
        with threadpool_limits(1, user_api="blas"):  # or implicit warns of several
            model = AlternatingLeastSquares(
                factors=DIM,
                regularization=REGULARISATION,
                alpha=1.0,
                num_threads=1,
                random_state=self._seed,
            )
        model.item_factors = item_factors
        return model
