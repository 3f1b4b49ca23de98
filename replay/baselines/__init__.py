"""What an honest replay must contain: systems that count, or factorise, without the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from replay.baselines.base import Baseline, Batch
from replay.baselines.counting import Counting
from replay.baselines.covisitation import Covisitation
from replay.baselines.ease import Ease
from replay.baselines.ials import Ials
from replay.baselines.isgd import Isgd
from replay.baselines.item_knn import ItemKnn
from replay.baselines.popularity import Popularity
from replay.baselines.recent_popularity import RecentPopularity
from replay.baselines.signed_ease import SignedEase
from replay.baselines.vsknn import Vsknn

__all__ = ["BASELINES", "Baseline", "Batch"]

BASELINES: Final[Mapping[str, Callable[[int], Baseline]]] = {
    "popularity": lambda _: Popularity(),
    "recent_popularity": lambda _: RecentPopularity(),
    "covisitation": lambda _: Covisitation(),
    "item_knn": lambda _: ItemKnn(),
    "counting": lambda _: Counting(),
    "isgd": Isgd,
    "ease": lambda _: Ease(),
    "signed_ease": lambda _: SignedEase(),
    "vsknn": lambda _: Vsknn(),
    "ials": Ials,
}
"""How to make each baseline from a seed, in the order of the report."""
