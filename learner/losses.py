"""Losses as functions of scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sampled_softmax(logits: Tensor, target: Tensor, log_q: Tensor, clash: Tensor) -> Tensor:
    r"""Cross-entropy against a sample of the catalogue, corrected for how it was drawn.

    .. math::
        \ell_p = -\log \frac{e^{s_{p,t_p} - \log Q_{t_p}}}
                            {\sum_{c \in C_p} e^{s_{p,c} - \log Q_c}}

    Parameters
    ----------
    logits
        Scores of the shared candidates, shape (P, C).
    target
        Column of each row's positive, shape (P,).
    log_q
        Log of how often each candidate is expected in the sample, shape (C,).
    clash
        True where a candidate is the row's own positive in another column, shape (P, C).

    Returns
    -------
    The loss of each positive, shape (P,).

    References
    ----------
    Bengio and Senécal, *Adaptive Importance Sampling to Accelerate Training of a Neural
    Probabilistic Language Model*, IEEE Trans. Neural Networks 2008.

    Examples
    --------
    >>> loss = sampled_softmax(
    ...     torch.zeros(1, 2), torch.tensor([0]), torch.zeros(2), torch.tensor([[False, False]])
    ... )
    >>> round(loss.item(), 4)
    0.6931

    """
    corrected = (logits - log_q).masked_fill(clash, -torch.inf)
    return F.cross_entropy(corrected, target, reduction="none")


def dislike(scores: Tensor) -> Tensor:
    r"""Push the score of what a user rejected down.

    .. math:: \ell = \log(1 + e^{s})

    Parameters
    ----------
    scores
        Scores of explicitly rejected items, shape (E,).

    Returns
    -------
    The loss of each event, shape (E,).

    Examples
    --------
    >>> round(dislike(torch.tensor([0.0])).item(), 4)
    0.6931

    """
    return F.softplus(scores)
