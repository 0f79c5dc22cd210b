"""Losses over log-probabilities of logged sequences: A-LoL (Baheti et al., 2024, arXiv 2305.14718) and its neighbours.

A whole sequence is one action with one reward: a response of T tokens, or T steps of a logged trajectory. Log
probabilities are [..., B, T], rewards and values [..., B]; sums run over T, means over B, and what stands before
(replicas) stays apart. What is masked may hold anything, NaN too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from offon.algorithms.choices import check_choice

BY_REWARD = ("weighted_bc", "r_gold", "r_lol")  # weighted by the reward itself, which must not be negative
BY_ADVANTAGE = ("a_lol", "ref_free", "sequence", "kl")  # weighted by the advantage, where it is positive
VARIANTS = ("nll", *BY_REWARD, *BY_ADVANTAGE)
_PARTS = 2.0**40  # of a probability


@dataclass(frozen=True)
class Scored:
    """Logged sequences, as policy and reference see them."""

    log_prob: Tensor  # [..., B, T] of the policy; half precision is summed in float32
    reference: Tensor  # [..., B, T] of the frozen reference
    mask: Tensor  # [..., B, T], 1 where a step belongs to its sequence
    reward: Tensor  # [..., B]
    value: Tensor  # [..., B], what the reference earns from there

    @property
    def advantage(self) -> Tensor:
        """Reward minus value, [..., B]."""
        return (self.reward - self.value).detach()

    def filled(self) -> tuple[Tensor, Tensor]:
        """Both log-probabilities in at least float32, 0 where masked."""
        kind = torch.promote_types(self.log_prob.dtype, torch.float32)
        inside, zero = self.mask > 0, torch.zeros((), dtype=kind, device=self.log_prob.device)
        own = torch.where(inside, self.log_prob.to(kind), zero)
        return own, torch.where(inside, self.reference.detach().to(kind), zero)


@dataclass(frozen=True)
class Objective:
    """Which loss, and its settings."""

    variant: str = "a_lol"
    clip: float = 0.9  # ratios stay within 1 - clip ... 1 + clip; 0: as they are
    kl_weight: float = 0.0  # of mean log-ratio on the data, in variant kl
    least_probability: float = 0.1  # lower bound of R-GOLD's weights
    filtered: bool = True  # rows of negative advantage count as zero, else with it: then the loss has no lower bound

    def __post_init__(self) -> None:
        """Refuses what makes no sense."""
        check_choice("variant", self.variant, VARIANTS)
        if not 0.0 <= self.clip < 1.0:
            raise ValueError(f"expected clip in [0, 1), got {self.clip}")
        if self.variant == "kl" and not self.kl_weight > 0.0:
            raise ValueError(f"expected kl_weight above 0 in variant kl, got {self.kl_weight}")

    def bounds(self, kind: torch.dtype) -> tuple[float, float]:
        """Of the log-ratio; without a clip, where products would leave the number format."""
        if self.clip:
            return math.log1p(-self.clip), math.log1p(self.clip)
        most = 0.5 * math.log(torch.finfo(kind).max)
        return -most, most

    def factor(self, scored: Scored) -> Tensor:
        """What multiplies a whole sequence, [..., B]."""
        if self.variant == "nll":
            return torch.ones_like(scored.reward)
        if self.variant in BY_REWARD:
            return scored.reward.detach()
        return scored.advantage.clamp(min=0.0) if self.filtered else scored.advantage


def clipped_ratio(log_ratio: Tensor, objective: Objective) -> Tensor:
    """exp(log-ratio) within the objective's band, clamped before the exponential so that nothing overflows."""
    return log_ratio.clamp(*objective.bounds(log_ratio.dtype)).exp()


def sequence_loss(scored: Scored, objective: Objective, rows: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss [...] and what to watch of it, each [...].

    All weights are constants: outside the band a sequence still counts, with the weight of the bound. Rows without a
    positive advantage stay in the mean, as zeros.

    Args:
        scored: the sequences.
        objective: which loss.
        rows: of the whole batch, where these are a part of it whose losses are added up.
    """
    own, reference = scored.filled()
    rows = own.shape[-2] if rows is None else rows
    log_ratio = own.detach() - reference
    of_row = log_ratio.sum(-1)  # [..., B]
    weight, seen = _weights(own.detach(), log_ratio, of_row, scored.mask, objective)
    factor = objective.factor(scored).to(own.dtype)
    loss = -(factor * (weight * own).sum(-1)).sum(-1) / rows
    if objective.variant == "kl":
        loss = loss + objective.kl_weight * (own.sum(-1) - reference.sum(-1)).sum(-1) / rows
    tokens = scored.mask.sum(-1).clamp(min=1)
    mean_weight = (weight * scored.mask).sum(-1) / tokens
    return loss, {
        "kept_share": (scored.advantage > 0).to(own.dtype).mean(-1),
        "positive_advantage": scored.advantage.clamp(min=0.0).mean(-1),
        "weight": mean_weight.mean(-1),
        **seen,
        "log_ratio": of_row.mean(-1),
        "effective_rows": effective_size(factor * mean_weight),
    }


def _weights(
    own: Tensor, log_ratio: Tensor, of_row: Tensor, mask: Tensor, objective: Objective
) -> tuple[Tensor, dict[str, Tensor]]:
    """Constant weights [..., B, T] or [..., B, 1], and the shares that stand at the bounds."""
    low, high = objective.bounds(own.dtype)
    if objective.variant == "sequence":
        inside = mask.to(own.dtype)
        count = inside.sum((-2, -1)).clamp(min=1)
        lower, upper = ((inside * at).sum((-2, -1)) / count for at in (log_ratio <= low, log_ratio >= high))
        return clipped_ratio(log_ratio, objective) * inside, {"at_lower": lower, "at_upper": upper}
    if objective.variant in ("r_lol", "a_lol"):
        lower, upper = (at.to(own.dtype).mean(-1) for at in (of_row <= low, of_row >= high))
        return clipped_ratio(of_row, objective)[..., None], {"at_lower": lower, "at_upper": upper}
    nobody = torch.zeros_like(of_row[..., 0])
    if objective.variant == "r_gold":
        return own.exp().clamp(min=objective.least_probability), {"at_lower": nobody, "at_upper": nobody}
    return torch.ones_like(of_row)[..., None], {"at_lower": nobody, "at_upper": nobody}


# ---- which rows are drawn


def priority(weight: Tensor) -> Tensor:
    """Probabilities [..., B] in proportion to the positive part; all zero where nothing is positive."""
    positive = weight.clamp(min=0.0)
    return positive / positive.sum(-1, keepdim=True).clamp(min=torch.finfo(positive.dtype).tiny)


def updates_for(above: Tensor, updates: int) -> Tensor:
    """Of so many updates the share of rows [..., B] that are above their value, one at least; 0 where none is."""
    return (above.float().mean(-1) * updates).long().clamp(min=1) * above.any(-1)


def pick(probability: Tensor, uniform: Tensor) -> Tensor:
    """Rows [..., n] with replacement: the first whose cumulative sum exceeds the uniform [..., n].

    Counted in integers, whose sums a GPU gives in no order of its own.
    """
    cumulative = (probability.double() * _PARTS).round().long().cumsum(-1)
    aim = (uniform.double() * cumulative[..., -1:]).long()
    return torch.searchsorted(cumulative, aim, right=True).clamp(max=probability.shape[-1] - 1)


def effective_size(weight: Tensor) -> Tensor:
    """How many rows count, (sum of weights)^2 / sum of their squares: [..., B] -> [...]."""
    tiny = torch.finfo(weight.dtype).tiny
    weight = weight / weight.abs().amax(-1, keepdim=True).clamp(min=tiny)  # large ones squared would overflow
    return weight.sum(-1).square() / weight.square().sum(-1).clamp(min=tiny)


def sampled_kl(scored: Scored) -> tuple[Tensor, Tensor]:
    """Two estimates [...] per step of KL(policy, reference), from sequences that the policy itself sampled: k1, k3."""
    own, reference = scored.filled()
    difference = own - reference
    steps = scored.mask.sum((-2, -1)).clamp(min=1)
    return difference.sum((-2, -1)) / steps, (torch.expm1(-difference) + difference).sum((-2, -1)) / steps


# ---- pairs


def dpo_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor | None, ref_rejected: Tensor | None, scale: float = 0.1
) -> tuple[Tensor, dict[str, Tensor]]:
    """Direct preference optimisation (Rafailov et al., 2023) of summed log-probabilities [..., B].

    Without those of a reference it is reference-free. Returns the loss [...] and the implicit rewards [..., B].
    """
    better = scale * (chosen if ref_chosen is None else chosen - ref_chosen)
    worse = scale * (rejected if ref_rejected is None else rejected - ref_rejected)
    loss = -torch.nn.functional.logsigmoid(better - worse).mean(-1)
    return loss, {"chosen_reward": better.detach(), "rejected_reward": worse.detach()}


def pro_loss(
    chosen: tuple[Tensor, Tensor], rejected: tuple[Tensor, Tensor], gap: Tensor, nll_weight: float = 0.05
) -> tuple[Tensor, dict[str, Tensor]]:
    """Preference ranking optimisation (Song et al., 2023) of two candidates.

    Args:
        chosen: summed log-probabilities and numbers of tokens, both [..., B].
        rejected: the same of the other response.
        gap: reward of the chosen minus reward of the rejected response, [..., B]: the ranking's temperature.
        nll_weight: of the chosen response's negative log-likelihood.
    """
    better, worse = (gap * total / tokens for total, tokens in (chosen, rejected))
    ranking = (torch.log(1e-10 + better.exp() + worse.exp()) - better).mean(-1)
    nll = -chosen[0].mean(-1)
    return ranking + nll_weight * nll, {"ranking": ranking.detach(), "nll": nll.detach()}
