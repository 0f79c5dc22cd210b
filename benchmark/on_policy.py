"""Protocol `on_policy_hybrid`: play whole episodes, learn from them and from logged data, again and again.

R replicas play n episodes each in one batch. Their environment seeds come from a range of their own, so acting,
evaluation and the final score share no episode. Between iterations no episode is open: a checkpoint needs no
simulator's state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from offon import envs
from offon.algorithms.interface import Method, OnPolicy, Rollout
from offon.algorithms.noise import ActNoise, Noise
from offon.benchmark import seeds
from offon.benchmark.builder import Loaded, replay_for
from offon.benchmark.evaluator import Evaluation
from offon.benchmark.progress_metrics import success_facts, success_share
from offon.benchmark.replay import Replay
from offon.benchmark.rollout import Policy, first_obs
from offon.benchmark.runs import Job
from offon.benchmark.stepper import snapshot
from offon.benchmark.training import Training

PHASE = "on_policy_hybrid"


class OnPolicyStepper:
    """Runs iterations: a roll-out of whole episodes, logged rows, and the method's `iterate`."""

    first_update = 0  # the first count at which `run` learns

    def __init__(self, method: OnPolicy, policy: Policy, env: envs.BatchEnv, replay: Replay | None) -> None:
        self.method, self.policy, self.env, self.replay = method, policy, env, replay
        self.noise = Noise(method.seeds, PHASE, env.device, chunk=1)
        self._sources = method.sources(PHASE)
        self.episodes = env.n // method.replicas

    @property
    def steps(self) -> int:
        """Environment steps of one iteration and replica, each episode counted with its full horizon."""
        return self.episodes * self.env.spec.horizon

    def run(self, first: int, count: int) -> dict[str, Tensor]:
        """Iterations `first` ... `first + count - 1`; returns the sum of each metric over them, [R]."""
        seen: dict[str, list[Tensor]] = {}
        for iteration in range(first, first + count):
            rollout = self.play(iteration)
            self.noise.begin_chunk(iteration)
            batch = {}
            for name, rows in self._sources.items():
                assert self.replay is not None
                batch[name] = self.replay.draw(name, rows, self.noise)
            for name, value in self.method.iterate(rollout, batch, self.noise).items():
                seen.setdefault(name, []).append(value)
        return {name: torch.stack(values).sum(0) for name, values in seen.items()}

    @torch.no_grad()
    def play(self, iteration: int, mode: str = "explore") -> Rollout:
        """The episodes of an iteration, played by the policy as it stands."""
        method, env, n = self.method, self.env, self.episodes
        first = torch.full((method.replicas,), iteration * n)
        chosen = seeds.acting_seeds(method.seeds, first, n).to(env.device)
        obs = env.reset(None, chosen.flatten().tolist()).view(method.replicas, n, -1)
        x = first_obs(method, obs)
        alive = torch.ones(method.replicas, n, dtype=torch.bool, device=env.device)
        steps: list[tuple[Tensor, ...]] = []
        for t in range(env.spec.horizon):
            x.t, x.obs = torch.full_like(x.t, t), obs
            action = self.policy.act(x, ActNoise(method.seeds, PHASE, chosen, x.t), mode)
            result = env.step(action.flatten(0, 1))
            reward = torch.where(alive, result.reward.view_as(alive), 0.0)
            steps.append((self.policy.normalized(obs), action, reward, alive.float()))
            x.action, x.reward, x.cost = action.float(), reward, result.cost.view_as(alive)
            obs = result.obs.view(method.replicas, n, -1)
            alive = alive & ~(result.terminated | result.truncated).view_as(alive)
        return Rollout(*(torch.stack(column, dim=2) for column in zip(*steps, strict=True)))


def make_stepper(job: Job, method: Method, data: Loaded, device: str) -> OnPolicyStepper:
    """What makes the iterations of a job; the method is on the device already.

    Raises:
        ValueError: for settings that mean something for logged data alone.
    """
    assert isinstance(method, OnPolicy)
    if method.config.reward != "none":
        raise ValueError(
            "expected algorithm.reward=none: a transform of logged rewards would not hold for those of the episodes "
            "that the method plays itself"
        )
    method.begin(PHASE)
    spec = envs.env_spec(job.task["env"], **job.settings["env_options"])
    rows = method.replicas * max(1, -(-method.wanted() // spec.horizon))
    env = envs.make(job.task["env"], rows, device=device, **job.settings["env_options"])
    replay = replay_for(method, data, PHASE, device) if method.sources(PHASE) else None
    return OnPolicyStepper(method, Policy(method, data.moments), env, replay)


class OnPolicyTraining(Training):
    """One run of the on-policy hybrid protocol; progress is counted in environment steps per replica."""

    def _begin(self) -> None:
        assert isinstance(self.data, Loaded)
        self.stepper = make_stepper(self.job, self.method, self.data, self.job.device)
        self._success_return = self.stepper.env.spec.success_return
        self._due = False  # for an evaluation
        self._by_mean: Evaluation | None = None  # the final episodes once more, played with the mean action

    def _chunk(self) -> None:
        """One iteration, then the check for non-finite replicas; those are put back and kept as they were."""
        stop = self.done + self.stepper.steps
        before = snapshot(self.method)
        totals = self.stepper.run(self.done // self.stepper.steps, 1)
        self._freeze_broken(before, totals, stop)
        self.curves.add(totals, 1)
        self.curves.close_point(stop)
        self._due = stop // self.settings["eval_every"] > self.done // self.settings["eval_every"]
        self.done = stop

    def _evaluation_due(self) -> bool:
        return self._due or self._is_complete()

    def _evaluate_curve(self) -> None:
        """Fresh episodes at every point, the same for every method: their running mean says when a task is solved."""
        episodes = self.settings["eval_episodes"]
        first = len(self.curves.eval_updates) * episodes % (len(seeds.SELECTION) - episodes + 1)
        self.curves.eval_returns.append(self._evaluate(seeds.SELECTION, episodes, first).returns)
        self.curves.eval_updates.append(self.done)

    def _evaluate_final(self) -> Evaluation | None:
        self._by_mean = self._evaluate(seeds.REPORTING, self.settings["final_episodes"], mode="mean")
        return super()._evaluate_final()

    def _summary(self, index: int, final: Evaluation | None) -> dict[str, Any]:
        summary: dict[str, Any] = {"env_steps": self.done}
        if self._success_return is not None and final is not None and self._by_mean is not None:
            curves, mark = self.curves, self._success_return
            summary |= success_facts(index, final.returns, curves.eval_updates, curves.eval_returns, mark)
            summary["success_of_mean_action"] = success_share(self._by_mean.returns[index], mark)
        return summary
