"""The candidates of a policy search in a finite MDP: all deterministic policies, or random greedy linear ones."""

from __future__ import annotations

import torch
from torch import Tensor

from offon.algorithms.choices import check_choice
from offon.algorithms.interface import Features, Spec

KINDS = ("deterministic", "random_linear")
_MOST_BYTES = 4 << 30  # of visited features, all replicas and steps
_WRITTEN_OUT = 10**15  # larger classes are named by their power: Python refuses to write numbers of 4300 digits


def features_of(spec: Spec) -> Features:
    """The features of a task, checked.

    Raises:
        ValueError: if the task has none, or they cannot be used.
    """
    found = spec.features
    if found is None:
        raise ValueError("expected a task with known features; found none: choose one of linear-mdp/…")
    if not found.reward_to_go:
        raise ValueError("expected a horizon of at least 1, found 0: an episode without a step teaches nothing")
    norms = found.phi.norm(dim=-1)
    if not bool(norms.isfinite().all()) or float(norms.max()) > 1.0 + 1e-9:
        raise ValueError(f"expected features with norms of at most 1, found {float(norms.max()):g}: scale them")
    if float(norms.max()) == 0.0:
        raise ValueError("expected features that differ from zero, found none")
    return found


def policy_class(features: Features, kind: str, most: int, size: int, class_seed: int, replicas: int) -> Tensor:
    """The candidates, action of each step and state, int64 [N, H, S]; action 0 where there is nothing to choose.

    Args:
        features: of the MDP.
        kind: "deterministic": every choice at every decision; "random_linear": greedy for phi(s, a)^T w_h, w normal.
        most: of policies; more is refused.
        size: how many random ones.
        class_seed: of the random ones; the same class for all replicas.
        replicas: R, for the memory it takes.

    Raises:
        ValueError: if the class is larger than allowed, or than memory.
    """
    states, actions, d = features.phi.shape
    horizon = len(features.reward_to_go)
    check_choice("policy_class", kind, KINDS)
    decisions = _decisions(features)
    free = int(decisions.sum())
    number = actions**free if kind == "deterministic" else size
    needed = 8 * replicas * horizon * number * d
    if number > most and kind != "deterministic":
        raise ValueError(f"expected algorithm.n_policies of at most max_policies={most}, got {number}")
    if number > most:
        small = number < _WRITTEN_OUT
        raise ValueError(
            f"the policy class has {actions}^{free}{f' = {number}' if small else ''} members, more than "
            f"max_policies={most}; set algorithm.policy_class=random_linear, or raise algorithm.max_policies"
            + (f" (their visited features take {needed / 1e9:.1g} GB)" if small else "")
        )
    if needed > _MOST_BYTES:
        raise ValueError(
            f"{number} policies, {replicas} seeds, {horizon} steps and {d} features take {needed / 1e9:.1f} GB, more "
            f"than {_MOST_BYTES / 1e9:.1f}; train fewer seeds together (replicas=), or set "
            "algorithm.policy_class=random_linear with a smaller algorithm.n_policies"
        )
    policies = torch.zeros(number, horizon, states, dtype=torch.int64)
    if kind == "deterministic":
        digits = actions ** torch.arange(free)
        policies[:, decisions] = torch.arange(number)[:, None] // digits % actions
    else:
        rng = torch.Generator().manual_seed(class_seed)
        scores = torch.randn(number, horizon, d, generator=rng, dtype=torch.float64)
        policies[:, decisions] = torch.einsum("nhd,sad->nhsa", scores, features.phi.cpu()).argmax(-1)[:, decisions]
    return policies


def _decisions(features: Features) -> Tensor:
    """Where there is something to choose, bool [H, S]."""
    if features.decisions is not None:
        return features.decisions.cpu()
    found = torch.ones(len(features.reward_to_go), features.phi.shape[0], dtype=torch.bool)
    found[0] = False
    found[0, features.start] = True
    return found


def merge(visited: Tensor, active: Tensor, tolerance: float = 1e-12) -> Tensor:
    """Which active policies stay, [R, N], when of those that visit the same features at every step the first is kept.

    They differ only in states that they do not reach. Found by sorting a projection on a fixed generic direction.

    Args:
        visited: [R, H, N, d].
        active: bool [R, N].
        tolerance: of a coordinate.
    """
    replicas, horizon, number, d = visited.shape
    flat = visited.transpose(1, 2).reshape(replicas, number, horizon * d)
    direction = torch.linspace(1.0, 2.0, horizon * d, dtype=torch.float64, device=visited.device).sqrt()
    place = torch.where(active, flat @ direction, torch.inf)
    ordered, order = place.sort(dim=1, stable=True)
    width = tolerance * horizon * d * 2.0
    begins = torch.ones_like(active)
    begins[:, 1:] = (ordered[:, 1:] - ordered[:, :-1]) > width
    return active & torch.zeros_like(active).scatter(1, order, begins)
