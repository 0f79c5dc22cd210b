"""The evaluator: R policies times E episodes in one batch, seeded, without touching any randomness of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from offon import envs
from offon.benchmark.rollout import CapturedRollout, Policy, Rollout, Watch, make_rollout


@dataclass(frozen=True)
class Evaluation:
    """What came out, one entry per replica and episode seed."""

    returns: np.ndarray  # [R, E] float64, raw
    lengths: np.ndarray  # [R, E] int64
    costs: np.ndarray | None  # [R, E] float64; None where the environment has none


class Evaluator:
    """Evaluates a policy again and again while it learns; on a GPU what was captured once is replayed every time.

    Args:
        policy: R policies.
        env_id: an id that `offon.envs.make` knows.
        device: where simulator and policy meet.
        env_options: passed to the environment.
    """

    def __init__(
        self, policy: Policy, env_id: str, device: str = "cpu", env_options: Mapping[str, Any] | None = None
    ) -> None:
        self.policy, self.env_id, self.device = policy, env_id, device
        self.env_options = dict(env_options or {})
        self._captured: dict[tuple[int, str], CapturedRollout] = {}

    def evaluate(self, seeds: Sequence[int], mode: str = "eval", watch: Watch | None = None) -> Evaluation:
        """Plays one episode per replica and seed with the policy as it is judged ("eval").

        Args:
            seeds: E episode seeds, the same for every replica.
            mode: what `act` is asked for; on-policy methods also know "mean", the action without its noise.
            watch: called after every step with what was seen, the actions and the result; changes no number.
        """
        rollout: Rollout | None = self._captured.get((len(seeds), mode)) if watch is None else None
        if rollout is None:
            env = envs.make(self.env_id, self.policy.method.replicas * len(seeds), self.device, **self.env_options)
            rollout = make_rollout(self.policy, env, mode) if watch is None else Rollout(self.policy, env, mode)
            if isinstance(rollout, CapturedRollout):
                self._captured[len(seeds), mode] = rollout
        try:
            rollout.begin(seeds)
            rollout.run(watch)
        finally:
            if not isinstance(rollout, CapturedRollout):
                rollout.env.close()
        costs = rollout.costs.cpu().numpy() if rollout.env.spec.has_cost else None
        return Evaluation(rollout.returns.cpu().numpy(), rollout.lengths.cpu().numpy(), costs)


def evaluate(
    policy: Policy,
    env_id: str,
    seeds: Sequence[int],
    device: str = "cpu",
    env_options: Mapping[str, Any] | None = None,
    mode: str = "eval",
    watch: Watch | None = None,
) -> Evaluation:
    """Plays one episode per replica and seed, once; see `Evaluator`."""
    return Evaluator(policy, env_id, device, env_options).evaluate(seeds, mode, watch)
