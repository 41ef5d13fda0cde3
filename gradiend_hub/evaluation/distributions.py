"""Distributions over all outputs, and over all but those of the classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

SMALL_REST = 1e-2
"""Share of the rest below which 1 − (all others) has too few digits, so that the rest is summed itself."""


@dataclass(frozen=True)
class Distributions:
    """The base model's distributions at some positions: p and log p, each [positions, V]."""

    probs: Tensor
    log_probs: Tensor

    @classmethod
    def of(cls, log_probs: Tensor) -> Distributions:
        """Keep log-probabilities [positions, V]."""
        probs = log_probs.exp()
        return cls(probs, log_probs.masked_fill(probs == 0, 0.0))

    def divergence(self, log_probs: Tensor) -> Tensor:
        """Return KL(base‖edited) at each position: Σ p·(log p − log q), where p = 0 counts for nothing."""
        terms: Tensor = torch.linalg.vecdot(self.probs, self.log_probs - log_probs)
        if bool(terms.isfinite().all()):
            return terms
        return (self.probs * (self.log_probs - log_probs)).masked_fill(self.probs == 0, 0.0).sum(-1)  # q = 0 where p is


class Rest:
    """Everything but some outputs, renormalised.

    Args:
        outputs: Ids that are left out.
        width: Number of all outputs V. Where nothing would be left, nothing is left out.
    """

    def __init__(self, outputs: Iterable[int], width: int) -> None:
        left_out = sorted({*outputs})
        self._ids = torch.tensor(left_out if len(left_out) < width - 1 else [], dtype=torch.long)

    def __len__(self) -> int:
        return len(self._ids)

    def holds(self, labels: Tensor) -> Tensor:
        """Return which labels are left out."""
        return torch.isin(labels, self._ids)

    def log_share(self, log_probs: Tensor, left_out: Tensor | None = None) -> Tensor:
        """Return the log of the rest's share at each position, log(1 − Σ p of what is left out): [positions], fp64."""
        share = 1 - (self._of(log_probs) if left_out is None else left_out).exp().sum(-1)
        found = share.clamp(min=SMALL_REST).log()
        small = (share < SMALL_REST).nonzero().squeeze(1)
        if len(small):
            found[small] = self._without(log_probs[small]).logsumexp(-1)
        return found

    def divergence(self, base: Distributions, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        """Return KL(base‖edited) of whole distributions at each position, and of the rest of them: [positions], fp64.

        With P the base model's share of the rest and Q the edited model's, the latter is
        (KL − Σ p·log(p/q) over what is left out) / P − log P + log Q.
        """
        whole = base.divergence(log_probs).double()
        if not len(self) or not len(whole):
            return whole, whole
        ids = self._ids.to(log_probs.device)
        probs, after = base.probs[:, ids].double(), self._of(log_probs)
        before = self._of(base.log_probs).masked_fill(probs == 0, -torch.inf)
        terms = (probs * (before - after)).masked_fill(probs == 0, 0.0).sum(-1)
        was, now = self.log_share(base.probs.log(), before), self.log_share(log_probs, after)
        found = (whole - terms) / was.exp() - was + now
        small = (was.exp() < SMALL_REST).nonzero().squeeze(1)
        if len(small):
            p = self._without(base.probs[small].log()).log_softmax(-1)
            q = self._without(log_probs[small]).log_softmax(-1)
            found[small] = (p.exp() * (p - q)).masked_fill(p.exp() == 0, 0.0).sum(-1)
        return whole, found.clamp(min=0)

    def _of(self, log_probs: Tensor) -> Tensor:
        """Return log-probabilities of what is left out, [positions, ids], fp64."""
        return log_probs[:, self._ids.to(log_probs.device)].double()

    def _without(self, log_probs: Tensor) -> Tensor:
        """Return log-probabilities with what is left out at −∞, [positions, V], fp64."""
        return log_probs.double().index_fill(1, self._ids.to(log_probs.device), -torch.inf)
