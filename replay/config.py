"""What is replayed, and how."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from learner.models.sta_hawkes import STAHawkesConfig
from replay.datasets import Chunk, Dataset
from replay.faults import Faults, with_faults
from replay.metrics import HOUR_MS
from stream.typing_rules import RuleSet


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """What is replayed, and how."""

    dataset: Dataset
    rules: RuleSet
    out: Path
    systems: tuple[str, ...]
    seed: int = 0
    speed: float = float("inf")
    delay_ms: int = HOUR_MS
    lateness_ms: int = HOUR_MS
    strict: bool = False
    snapshot_s: float = 15.0  # between two snapshots
    faults: Faults | None = None
    model: STAHawkesConfig = field(default_factory=STAHawkesConfig)

    def chunks(self) -> Iterator[Chunk]:
        """Yield what is played, in order of arrival."""
        chunks = self.dataset.chunks()
        return with_faults(chunks, self.faults) if self.faults else chunks

    def fingerprint(self) -> str:
        """Return 32 hex digits of what a snapshot must have been made of to be resumed."""
        made_of = (
            self.dataset.fingerprint(),
            self.rules,  # and not its version alone, which the author of a file may forget to raise
            self.systems,
            (self.seed, self.delay_ms, self.lateness_ms),
            self.faults,
            self.model,
        )
        return blake2b(repr(made_of).encode(), digest_size=16).hexdigest()
