"""Protocol `experiment_design`: a method asks for episodes of a finite MDP, is told what came of them, and ends itself.

Replicas ask for different numbers; they play in one batch, padded and masked. Values are exact, by dynamic
programming, so neither the curve nor the final score costs an episode.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offon.algorithms.interface import Design, Episodes, Method
from offon.algorithms.noise import ActNoise
from offon.benchmark import seeds
from offon.benchmark.builder import Finite
from offon.benchmark.evaluator import Evaluation
from offon.benchmark.rollout import first_obs
from offon.benchmark.runs import Job
from offon.benchmark.stepper import snapshot
from offon.benchmark.training import Training
from offon.envs.linear_mdp import LinearMDP, LinearMDPEnv

PHASE = "experiment_design"
_POINTS_PER_DOUBLING = 8  # of the curve; a method may go on for thousands of rounds


class DesignStepper:
    """Runs rounds: ask, play, tell.

    Args:
        method: on its device, not yet told of any data.
        mdp: what is acted in.
        logged: offline episodes of every replica; None: there are none.
        most_episodes: per replica; who asks for more gets what is left.
    """

    first_update = 0  # the first count at which `run` learns

    def __init__(self, method: Design, mdp: LinearMDP, logged: Episodes | None, most_episodes: int) -> None:
        self.method, self.mdp, self.most_episodes = method, mdp, most_episodes
        logged = logged if method.uses_logged else None
        self.logged = 0 if logged is None else logged.action.shape[1]  # offline episodes given to each replica
        self.played = torch.zeros(method.replicas, dtype=torch.int64)
        self.frozen = torch.zeros(method.replicas, dtype=torch.bool)  # failed replicas play no more
        self.is_over = False  # nobody asks for more, or nobody may
        method.begin(PHASE)
        method.recall(logged)

    def run(self, first: int, count: int) -> dict[str, Tensor]:
        """Rounds `first` ... `first + count - 1`; returns the sum of each metric over them, [R]."""
        seen: dict[str, list[Tensor]] = {}
        for _ in range(count):
            wanted = self.wanted()
            self.is_over = not bool(wanted.any())
            if not self.is_over:
                self.method.tell(self.play(wanted))
                self.played += wanted
            for name, value in self.metrics().items():
                seen.setdefault(name, []).append(value)
        return {name: torch.stack(values).sum(0) for name, values in seen.items()}

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold beside the method's own state."""
        return {"played": self.played, "is_over": torch.tensor(self.is_over)}

    def set_state(self, tensors: dict[str, Tensor]) -> None:
        """Puts back what `state` gave."""
        self.played, self.is_over = tensors["played"].clone(), bool(tensors["is_over"])

    def wanted(self) -> Tensor:
        """Episodes that every replica plays next, [R]."""
        wanted = torch.minimum(self.method.ask(), self.most_episodes - self.played)
        return torch.where(self.frozen, 0, wanted)

    def values(self) -> Tensor:
        """Exact value of each replica's present answer, float64 [R]."""
        return self.mdp.value(self.method.answer().cpu())

    def metrics(self) -> dict[str, Tensor]:
        """Where every replica stands, [R]."""
        gap = self.mdp.optimal_value() - self.values()
        found = {"online_episodes": self.played.double(), "suboptimality": gap}
        return found | {name: value.double().cpu() for name, value in self.method.report().items()}

    @torch.no_grad()
    def play(self, wanted: Tensor) -> Episodes:
        """The next episodes of every replica, as many as the most that anyone wants; the rest is masked."""
        method, n = self.method, int(wanted.max())
        env = LinearMDPEnv.of(self.mdp, method.replicas * n)
        chosen = seeds.acting_seeds(method.seeds, self.played, n)
        obs = env.reset(None, chosen.flatten()).view(method.replicas, n, 1)
        x = first_obs(method, obs)
        states, actions, rewards = [obs[..., 0]], [], []
        for t in range(env.spec.horizon):
            x.t, x.obs = torch.full_like(x.t, t), obs
            action = method.act(x, ActNoise(method.seeds, PHASE, chosen, x.t), "explore")
            result = env.step(action.flatten(0, 1))
            obs = result.obs.view_as(obs)
            reward = result.reward.view(method.replicas, n)
            states.append(obs[..., 0])
            actions.append(action[..., 0])
            rewards.append(reward.double())
            x.action, x.reward = action.float(), reward
        state, taken, paid = (torch.stack(column, dim=2) for column in (states, actions, rewards))
        return Episodes(state, taken, paid, mask=torch.arange(n) < wanted[:, None])


def make_stepper(job: Job, method: Method, data: Finite, device: str) -> DesignStepper:
    """What makes the rounds of a job."""
    assert isinstance(method, Design)
    most = max(1, job.settings["updates"] // len(data.mdp.reward_to_go))
    return DesignStepper(method, data.mdp, data.logged(method.seeds), most)


class DesignTraining(Training):
    """One run of the experiment-design protocol; progress is counted in rounds, the end is the method's to say."""

    def _begin(self) -> None:
        assert isinstance(self.data, Finite)
        self.budget = None  # rounds are not known beforehand
        self.stepper = make_stepper(self.job, self.method, self.data, self.job.device)
        self._point = -1  # of the curve
        self._due = False

    def _is_complete(self) -> bool:
        return self.stepper.is_over

    def _chunk(self) -> None:
        """One round, then the check for non-finite replicas; those are put back and play no more."""
        before = snapshot(self.method)
        metrics = self.stepper.run(self.done, 1)
        self._freeze_broken(before, metrics, self.done + 1)
        self.stepper.frozen = self.failed.cpu()
        self.done += 1
        point = int(_POINTS_PER_DOUBLING * math.log2(1 + int(self.stepper.played.sum())))
        self._due = point > self._point or self._is_complete()
        if self._due:
            self._point = point
            self.curves.add(metrics, 1)
            self.curves.close_point(self.done)

    def _evaluation_due(self) -> bool:
        return self._due

    def _evaluate_curve(self) -> None:
        self.curves.eval_returns.append(self._exact().returns)
        self.curves.eval_updates.append(self.done)

    def _evaluate_final(self) -> Evaluation:
        return self._exact()

    def _exact(self) -> Evaluation:
        """The value of every replica's answer as one episode's return."""
        values = self.stepper.values().numpy()[:, None]
        return Evaluation(values, np.full(values.shape, len(self.stepper.mdp.reward_to_go)), None)

    def _state(self) -> dict[str, Tensor]:
        return {**self.stepper.state(), "point": torch.tensor(self._point)}

    def _set_state(self, tensors: dict[str, Tensor]) -> None:
        self.stepper.set_state(tensors)
        self._point = int(tensors["point"])

    def _summary(self, index: int, final: Evaluation | None) -> dict[str, Any]:
        now = self.stepper.metrics()
        played, asked = int(self.stepper.played[index]), int(self.method.ask()[index])  # type: ignore[operator]
        summary: dict[str, Any] = {"online_episodes": played, "env_steps": played * len(self.stepper.mdp.reward_to_go)}
        summary["logged_episodes"] = self.stepper.logged
        summary["suboptimality"] = round(float(now["suboptimality"][index]), 12)
        if "certified_epsilon" in now:
            summary["certified_epsilon"] = float(now["certified_epsilon"][index])
        return summary | {"stopped_itself": asked == 0}
