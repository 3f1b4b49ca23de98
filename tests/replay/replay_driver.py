"""Replays the beginning of the sample with small models, to be killed and started again by tests.

Prints a line after each batch of records, and writes what came out to ``result.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from learner.models.sta_hawkes import STAHawkesConfig
from replay.config import ReplayConfig
from replay.datasets import open_dataset
from replay.embedded import Replay, survey
from replay.report import ReplayResult
from stream.typing_rules import load_rules

LIMIT = 3_000
SYSTEMS = ("online", "frozen", "retrain", "delayed", "popularity", "counting")


def config_for(out: Path, **settings: Any) -> ReplayConfig:
    """Return the configuration of a small replay."""
    dataset = open_dataset("kuairand-pure", limit=LIMIT)
    usual: dict[str, Any] = {
        "dataset": dataset,
        "rules": load_rules(dataset.rules),
        "out": out,
        "systems": SYSTEMS,
        "delay_ms": 600_000,
        "model": STAHawkesConfig(dim=8, n_negatives=32),
    }
    return ReplayConfig(**{**usual, **settings})


def found(result: ReplayResult) -> dict[str, Any]:
    """Return what must not depend on whether the replay was disturbed."""
    return {
        "state_hash": result.state_hash,
        "accounting": dict(result.accounting),
        "classes": dict(result.classes),
        "epochs": result.settings["offline_epochs"],
        "test_ts_ms": result.events.ts_ms.tolist(),
        "parts": [part.gate for part in result.parts],
        "systems": {
            name: {
                "rank": [str(rank) for rank in system.outcomes.rank.tolist()],
                "top": system.outcomes.top.tolist(),
                "own_score": [str(score) for score in system.outcomes.own_score.tolist()],
            }
            for name, system in result.systems.items()
        },
    }


def main(out: Path, speed: float) -> None:
    """Replay, from the newest snapshot if there is one."""
    torch.set_num_threads(1)
    config = config_for(out, speed=speed, snapshot_s=0.0)
    replay = Replay(config, survey(config, lambda n_events: None))
    replay.resume()
    print("begun", flush=True)  # noqa: T201 - the test waits for it
    result = replay.run(lambda running: print(running.stream.sent, flush=True))  # noqa: T201
    (out / "result.json").write_text(json.dumps(found(result)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
