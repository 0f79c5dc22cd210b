"""Speed of experiment design: decisions of FTPedel per CPU-second, against a plain NumPy loop over policies.

A decision is what stands between two batches of episodes: estimates from the counts, the features that each of the 512
policies of a random MDP visits, their uncertainty, the weights of the design and the plan that follows it. R replicas
decide together. As a program, this module is one contestant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from offon.benchmark import bench_peers, device
from offon.benchmark.bench_contest import Contestant, own_command

if TYPE_CHECKING:
    from offon.algorithms.ftpedel import FTPedel

REFERENCE = "NumPy loop over policies"
REPLICAS = (1, 10, 30)
MDP = "E2"
_LOGGED = 2000  # uniform episodes behind the counts


def contestants() -> list[Contestant]:
    """Ours with several replicas, and the loop."""
    group = f"decisions linear-mdp/{MDP}"
    found = [Contestant(REFERENCE, group, "", own_command("bench_design"), {"replicas": 0})]
    ours = [(f"R={r}", {"replicas": r}) for r in REPLICAS]
    return found + [Contestant("offon", group, size, own_command("bench_design"), job) for size, job in ours]


def decisions(job: dict[str, Any]) -> tuple[dict[str, Any], bench_peers.Run]:
    """One contestant: what it does in a unit of work, and how many decisions that is."""
    import torch

    device.configure("cpu", "default")
    method = prepared(max(1, job["replicas"]))
    if job["replicas"]:

        def run(units: int) -> None:
            for _ in range(units):
                method.pending.zero_()
                method.ask()
    else:
        loop = Loop(method)

        def run(units: int) -> None:
            for _ in range(units):
                loop.plan()

    facts = {
        "chunk": 1,
        "yield": max(1, job["replicas"]),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
    }
    return facts, run


def prepared(replicas: int, seeds: Sequence[int] | None = None) -> FTPedel:
    """A search that has been told of some episodes and stands at its first step."""
    from offon.algorithms.ftpedel import FTPedel
    from offon.algorithms.interface import Features, Spec
    from offon.benchmark.linear_data import LinearData, logged_episodes
    from offon.envs.linear_mdp import make_mdp

    mdp = make_mdp(MDP)
    features = Features(mdp.phi, mdp.start, mdp.reward_to_go, mdp.decisions())
    spec = Spec(1, 1, mdp.horizon, action="index", features=features)
    chosen = tuple(seeds or range(replicas))
    method = FTPedel(spec, FTPedel.Config(epsilon=0.5), chosen)
    method.recall(logged_episodes(mdp, MDP, LinearData(episodes=_LOGGED), chosen))
    return method


class Loop:
    """The same decision for one replica, policy by policy."""

    def __init__(self, method: FTPedel) -> None:
        self.phi = method.statistics.phi.numpy()
        self.counts, self.ridge = method.statistics.counts[0].numpy(), method.statistics.ridge
        self.policies, self.start = method.policies.numpy(), method.features.start
        self.bonus, self.step = method.config.bonus, int(method.step[0])

    def plan(self) -> np.ndarray:
        """Scores [H, S, A] that lead to where the design is most uncertain."""
        inverse, model = self._estimates()
        visited = np.array([self._visit(policy, model) for policy in self.policies])  # [N, H, d]
        here, middle = visited[:, self.step], inverse[self.step]
        uncertain = np.array([features @ middle @ features for features in here])
        eta = math.log(len(self.policies)) / (0.05 * uncertain.max())
        weights = np.exp(eta * (uncertain - uncertain.max()))
        weights /= weights.sum()
        spread = np.zeros_like(middle)
        for weight, features in zip(weights, here, strict=True):
            spread += weight * np.outer(middle @ features, middle @ features)
        reward = np.array([[features @ spread @ features for features in actions] for actions in self.phi])
        return self._optimistic(reward / reward.max(), model)

    def _estimates(self) -> tuple[np.ndarray, np.ndarray]:
        horizon, states, actions, _ = self.counts.shape
        inverse, model = [], []
        for h in range(horizon):
            covariance = self.ridge * np.eye(self.phi.shape[2])
            seen = np.zeros((states, self.phi.shape[2]))
            for s in range(states):
                for a in range(actions):
                    covariance += self.counts[h, s, a].sum() * np.outer(self.phi[s, a], self.phi[s, a])
                    seen += np.outer(self.counts[h, s, a], self.phi[s, a])
            inverse.append(np.linalg.inv(covariance))
            model.append(seen @ inverse[-1])
        return np.array(inverse), np.array(model)

    def _visit(self, policy: np.ndarray, model: np.ndarray) -> np.ndarray:
        features = [self.phi[self.start, policy[0, self.start]]]
        for h in range(1, len(policy)):
            reached = model[h - 1] @ features[-1]
            features.append(sum(reached[s] * self.phi[s, policy[h, s]] for s in range(len(reached))))
        return np.array(features)

    def _optimistic(self, reward: np.ndarray, model: np.ndarray) -> np.ndarray:
        plan = np.zeros(self.counts.shape[:3])
        plan[self.step] = reward
        for h in reversed(range(self.step)):
            visits = self.counts[h].sum(-1)
            expected = self.phi @ model[h].T @ plan[h + 1].max(1)
            with np.errstate(divide="ignore"):
                plan[h] = np.minimum(1.0, expected + self.bonus / np.sqrt(visits))
        return plan


if __name__ == "__main__":
    bench_peers.serve(decisions)
