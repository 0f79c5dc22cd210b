"""Hy-Q: hybrid fitted Q iteration (Song, Zhou, Sekhari, Bagnell, Krishnamurthy and Sun, 2023, arXiv 2210.06718).

For each step h, from the last to the first, q_h is regressed on r + max_a q_{h+1}(s', a) over logged tuples and all
tuples played so far (algorithm 1); networks and schedule are those of the released code for combination locks. A tuple
for step h comes of an episode that follows the greedy policy up to h and acts uniformly there.

Actions are numbers 0 ... A - 1, played as one-hot vectors. Adaptation: a logged vector of numbers, as locks with
continuous actions have, counts as the action of its largest entry. Replicas [R, ...] never interact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from offon.algorithms.interface import Obs, OnPolicy, Rollout, Rows, Spec
from offon.algorithms.noise import ActNoise, Noise
from offon.algorithms.registry import register
from offon.counter import key_of
from offon.datasets.transitions import Batch

LATENT = 3  # width of the encoder: the lock has three latent states


class QFunction(NamedTuple):
    """Views on packed weights [..., P]: q(s, a) = softmax(encoder s) . head[:, a] + bias."""

    encoder: Tensor  # [..., 3, O]
    head: Tensor  # [..., 3, A]
    bias: Tensor  # [..., 1, 1]


def q_function(weights: Tensor, obs_dim: int) -> QFunction:
    """The parts of packed weights [..., 3 O + 3 A + 1]."""
    encoder, head = weights[..., : LATENT * obs_dim], weights[..., LATENT * obs_dim : -1]
    return QFunction(
        encoder.unflatten(-1, (LATENT, obs_dim)), head.unflatten(-1, (LATENT, -1)), weights[..., -1:].unsqueeze(-1)
    )


def q_values(q: QFunction, obs: Tensor) -> Tensor:
    """Values of all actions, [..., B, O] -> [..., B, A]."""
    latent = torch.softmax(obs @ q.encoder.mT, dim=-1)
    return latent @ q.head + q.bias


def td_target(q_next: QFunction, next_obs: Tensor, reward: Tensor, goes_on: Tensor) -> Tensor:
    """The reward, plus max_a q_{h+1}(s', a) where the episode goes on; [R, B]."""
    return reward + goes_on * q_values(q_next, next_obs).amax(-1)


def write_gradient(into: QFunction, q: QFunction, obs: Tensor, action: Tensor, target: Tensor) -> Tensor:
    """Writes the gradient of mean (q(s, a) - target)^2 into its parts and returns the errors [R, 1, B].

    By hand, because nearly all of an update is the cost of calling small operations: 2.4 times as quick as autograd.

    Args:
        into: views on the gradient.
        q: the q-function.
        obs: [R, B, O].
        action: one-hot, [R, B, A].
        target: [R, 1, B].
    """
    latent = torch.softmax(torch.bmm(q.encoder, obs.mT), dim=1)  # [R, 3, B]
    score = torch.bmm(q.head, action.mT)  # [R, 3, B], of each latent state
    value = torch.mul(latent, score).sum(1, keepdim=True)
    error = (value - target).add_(q.bias)
    slope = error * (2.0 / error.shape[2])
    latent.mul_(slope)
    torch.sum(slope, 2, keepdim=True, out=into.bias)
    torch.bmm(latent, action, out=into.head)
    torch.bmm(score.sub_(value).mul_(latent), obs, out=into.encoder)  # softmax: z (score - sum z score)
    return error


def adam_(weights: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], count: Tensor, lr: float) -> None:
    """One update of Adam, in place; `count` is the number of updates so far."""
    exp_avg, exp_avg_sq = moments
    count += 1.0
    torch._fused_adam_(
        [weights],
        [gradient],
        [exp_avg],
        [exp_avg_sq],
        [],
        [count],
        lr=lr,
        beta1=0.9,
        beta2=0.999,
        weight_decay=0.0,
        eps=1e-8,
        amsgrad=False,
        maximize=False,
    )


def mixed_rows(uniform: Tensor, offline: int, warm_start: int, online: Tensor) -> Tensor:
    """Rows of a table of `offline` logged and then the online tuples, int64, from uniforms [R, U, B].

    As if drawn from a buffer that began with `warm_start` logged tuples and received one more with every online one:
    with c online tuples a row is one of them with probability c / (warm_start + 2 c).

    Args:
        uniform: in [0, 1).
        offline: logged rows in the table; all are equally likely.
        warm_start: logged tuples before the first online one; 0 gives equal halves.
        online: c of each replica, int64 [R].
    """
    count = online.view(-1, 1, 1)
    size = (warm_start + 2 * count).clamp(min=1)
    share = count / size
    of_online = (uniform * size).long().minimum(count - 1) + offline
    of_offline = ((uniform - share) / (1.0 - share) * offline).long().clamp(max=offline - 1)
    return torch.where(uniform < share, of_online, of_offline)


@register("hyq", protocols=("on_policy_hybrid",))
class HyQ(OnPolicy):
    """Hybrid fitted Q iteration; a step of the episode has a q-function of its own."""

    @dataclass(frozen=True)
    class Config(OnPolicy.Config):
        """Defaults are those of the released code for the combination lock."""

        RANGES: ClassVar[Mapping[str, str]] = {
            "online_per_step": "[1, inf)",
            "offline_per_step": "[1, inf)",
            "warm_start": "[0, inf)",
            "capacity": "[1, inf)",
            "updates": "[1, inf)",
            "batch_size": "[1, inf)",
            "lr": "(0, inf)",
        }

        online_per_step: int = 50  # new tuples of each step in an iteration; it plays H times as many episodes
        offline_per_step: int = 10_000  # logged tuples of each step that an iteration draws anew to learn from
        warm_start: int = 10_000  # logged tuples before the first online one, then as many as online; 0: equal halves
        capacity: int = 10_000  # online tuples kept of each step, the newest; 8 O + 16 bytes each, H times, R times
        updates: int = 499  # gradient updates of each step and iteration
        batch_size: int = 512  # tuples per update
        lr: float = 2.5e-3  # Adam's learning rate

        @classmethod
        def tiny(cls) -> HyQ.Config:
            """A setting for the contract suite."""
            return cls(
                online_per_step=4, offline_per_step=64, warm_start=0, capacity=100, updates=10, batch_size=16, lr=0.03
            )

    PRESETS = {
        "reduced": {
            "offline_per_step": 2000,
            "warm_start": 2000,
            "capacity": 2000,
            "updates": 100,
            "batch_size": 256,
            "lr": 5e-3,
        },
    }
    config: Config
    online: Tensor
    online_action: Tensor
    online_count: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    count: Tensor

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        if spec.horizon is None:
            raise ValueError("hyq: expected a task of known horizon, since every step has a q-function of its own")
        if config.capacity < config.online_per_step:
            raise ValueError(
                f"expected algorithm.capacity of at least online_per_step = {config.online_per_step}, "
                f"got {config.capacity}"
            )
        self.horizon = spec.horizon
        steps = range(self.horizon)
        first = torch.stack([torch.stack([_initial(seed, step, spec) for step in steps]) for seed in seeds])
        self.weights = torch.nn.Parameter(first)  # [R, H, 3 O + 3 A + 1]
        self.register_buffer("exp_avg", torch.zeros_like(first))
        self.register_buffer("exp_avg_sq", torch.zeros_like(first))
        self.register_buffer("count", torch.zeros(()))  # updates of each step; float32, what the fused kernel takes
        lead = (len(seeds), self.horizon, config.capacity)
        self.register_buffer("online", torch.zeros(*lead, 2 * spec.obs_dim + 2))  # s, s', r, 1 if it goes on
        self.register_buffer("online_action", torch.zeros(lead, dtype=torch.int64))
        self.register_buffer("online_count", torch.zeros(lead[:2], dtype=torch.int64))  # ever stored, also if replaced

    # ---- playing

    def wanted(self) -> int:
        """Whole episodes, as many for each step at which one acts uniformly."""
        return self.config.online_per_step * self.horizon * self.horizon

    def memory(self, n: int) -> dict[str, Tensor]:
        """The number of each row: it says at which step an exploring row acts uniformly; the same in every replica."""
        return {"row": torch.arange(n).expand(self.replicas, n).clone()}

    def act(self, x: Obs, noise: ActNoise, mode: str) -> Tensor:
        """The greedy action as a one-hot vector; when exploring, a uniform one at the step of the row."""
        q = q_function(self.weights[torch.arange(self.replicas, device=x.t.device)[:, None], x.t], self.spec.obs_dim)
        action = q_values(q, x.obs.unsqueeze(2)).squeeze(2).argmax(-1)
        if mode == "explore":
            uniform = noise.integers("uniform", self.spec.act_dim)
            action = torch.where(x.t == x.memory["row"] % self.horizon, uniform, action)
        return one_hot(action, self.spec.act_dim).to(self.dtype)

    # ---- learning

    def sources(self, phase: str) -> dict[str, Rows]:
        """A pool of logged tuples of every step."""
        return {"data": Rows(self.config.offline_per_step, per_step=True)}

    @torch.no_grad()
    def iterate(self, rollout: Rollout, batch: dict[str, Batch], noise: Noise) -> dict[str, Tensor]:
        """Stores one tuple of each episode, then fits the steps from the last to the first."""
        self._store(rollout)
        # one draw serves all steps: the rows behind its numbers are drawn for each step apart
        uniform = noise.uniform("rows", self.config.updates, self.config.batch_size)
        losses = [self._fit(step, batch["data"], uniform) for step in reversed(range(self.horizon))]
        self.count += self.config.updates
        first = q_values(q_function(self.weights[:, 0], self.spec.obs_dim), rollout.obs[:, :, 0])
        return {
            "td_loss": torch.stack(losses).mean(0),  # of each step's last update
            "first_value": first.amax(-1).mean(-1),
            "online_per_step": self._filled().float().mean(-1),
        }

    def _store(self, rollout: Rollout) -> None:
        """Keeps the tuple of the step at which each episode acted uniformly, if the episode came so far."""
        row = torch.arange(rollout.obs.shape[1], device=rollout.obs.device)
        step = row % self.horizon
        following = (step + 1).clamp(max=self.horizon - 1)  # nothing is bootstrapped behind the last step
        goes_on = rollout.mask[:, row, following] * (step + 1 < self.horizon)
        tuples = torch.cat(
            [
                rollout.obs[:, row, step],
                rollout.obs[:, row, following],
                rollout.reward[:, row, step].unsqueeze(2),
                goes_on.unsqueeze(2),
            ],
            dim=2,
        )
        played = rollout.mask[:, row, step] > 0
        of_step = one_hot(step, self.horizon) * played.unsqueeze(2)  # [R, n, H]
        number = self.online_count[:, step] + of_step.cumsum(1)[:, row, step] - 1
        replica, kept = played.nonzero(as_tuple=True)
        place = (replica, step[kept], number[replica, kept] % self.config.capacity)
        self.online[place] = tuples[replica, kept]
        self.online_action[place] = rollout.action[:, row, step].argmax(-1)[replica, kept]
        self.online_count += of_step.sum(1)

    def _filled(self) -> Tensor:
        """Online tuples at hand, int64 [R, H]."""
        return self.online_count.clamp(max=self.config.capacity)

    def _table(self, step: int, data: Batch) -> Tensor:
        """Logged and then online tuples of a step: s, one-hot a and target, [R, offline + capacity, O + A + 1]."""
        width = self.spec.obs_dim
        online = self.online[:, step]
        action = torch.cat([data.action[:, step].argmax(-1), self.online_action[:, step]], dim=1)
        target = torch.cat([data.reward[:, step], online[..., -2]], dim=1)
        if step + 1 < self.horizon:
            next_obs = torch.cat([data.next_obs[:, step], online[..., width : 2 * width]], dim=1)
            goes_on = torch.cat([1.0 - data.terminated[:, step], online[..., -1]], dim=1)
            target = td_target(q_function(self.weights[:, step + 1], width), next_obs, target, goes_on)
        obs = torch.cat([data.obs[:, step], online[..., :width]], dim=1)
        return torch.cat([obs, one_hot(action, self.spec.act_dim), target.unsqueeze(2)], dim=2)

    def _fit(self, step: int, data: Batch, uniform: Tensor) -> Tensor:
        """Adam on the squared errors of one step; returns the last loss [R]."""
        config, width = self.config, self.spec.obs_dim
        if step + 1 < self.horizon:
            encoder = slice(0, LATENT * width)
            self.weights[:, step, encoder] = self.weights[:, step + 1, encoder]
        table = self._table(step, data)
        rows = mixed_rows(uniform, config.offline_per_step, config.warm_start, self._filled()[:, step])
        rows += table.shape[1] * torch.arange(self.replicas, device=rows.device).view(-1, 1, 1)
        # contiguous, as the fused kernel wants them
        weights, exp_avg, exp_avg_sq = (each[:, step].clone() for each in (self.weights, self.exp_avg, self.exp_avg_sq))
        gradient, count = torch.zeros_like(weights), self.count.clone()
        q, into = q_function(weights, width), q_function(gradient, width)
        error, flat = uniform, table.flatten(0, 1)
        for chosen in rows.transpose(0, 1).reshape(config.updates, -1).unbind():
            drawn = flat.index_select(0, chosen).view(self.replicas, config.batch_size, -1)
            error = write_gradient(into, q, drawn[..., :width], drawn[..., width:-1], drawn[..., -1].unsqueeze(1))
            adam_(weights, gradient, (exp_avg, exp_avg_sq), count, config.lr)
        for own, new in ((self.weights, weights), (self.exp_avg, exp_avg), (self.exp_avg_sq, exp_avg_sq)):
            own[:, step] = new
        return error.square().mean((1, 2))


def _initial(seed: int, step: int, spec: Spec) -> Tensor:
    """Orthogonal encoder and head of gain 1, no bias, packed."""
    generator = torch.Generator().manual_seed(key_of(seed, "init", "q", str(step)) & 0x7FFFFFFFFFFFFFFF)
    encoder = torch.nn.init.orthogonal_(torch.empty(LATENT, spec.obs_dim), generator=generator)
    head = torch.nn.init.orthogonal_(torch.empty(1, LATENT * spec.act_dim), generator=generator)
    return torch.cat([encoder.flatten(), head.flatten(), torch.zeros(1)])
