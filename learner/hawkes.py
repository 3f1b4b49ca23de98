"""Multi-exponential Hawkes kernels: how much an event of each feedback class still excites."""

from __future__ import annotations

import torch
from torch import Tensor


def excitation(age_h: Tensor, amplitude: Tensor, rate_per_h: Tensor) -> Tensor:
    r"""Return the kernel of each past event at its age.

    .. math:: \phi_s(\Delta) = \sum_r \alpha_{s,r} \, e^{-\beta_r \Delta}

    Parameters
    ----------
    age_h
        Hours since each event, shape (...).
    amplitude
        :math:`\alpha` of the event's class, of any sign, shape (..., R).
    rate_per_h
        :math:`\beta`, positive, shape (R,).

    Returns
    -------
    Shape (...).

    References
    ----------
    Hawkes, *Spectra of some self-exciting and mutually exciting point processes*, Biometrika 1971.

    Examples
    --------
    >>> now, amplitude = torch.tensor([0.0]), torch.tensor([[2.0, 1.0]])
    >>> excitation(now, amplitude, torch.tensor([1.0, 0.1])).tolist()
    [3.0]

    """
    return (amplitude * torch.exp(-age_h.unsqueeze(-1) * rate_per_h)).sum(-1)
