"""Signed EASE: EASE on likes and on refusals, which also tell what a user is shown."""

from __future__ import annotations

from typing import ClassVar

from replay.baselines.ease import Ease


class SignedEase(Ease):
    """EASE whose matrix also holds the negative events, as half a like.

    That is no slip: on the validation slice of the sample weights of -0.5, 0, 0.5 and 1 gave
    HR@10/NDCG@10 .0436/.0216, .0513/.0267, .0706/.0358, .0696/.0354 (retrained every 12 h). Who
    turned a thing down was shown it, and tells what else is shown.

    Examples
    --------
    >>> SignedEase().name
    'signed_ease'

    """

    name = "signed_ease"
    negative: ClassVar[float] = 0.5
