"""A-LoL on control: advantage-leftover-lunch policy gradients over chunks of logged actions. Our adaptation.

The paper (Baheti et al., 2024, arXiv 2305.14718) takes a language model's whole response as one action and has no
control experiments. Here `chunk` logged steps are one action, scored by their discounted rewards and the value behind
them; the reference is behaviour cloning on the same data, and its value is fitted to Monte-Carlo returns of episodes
that are then scored by a net that has not seen them. Every tensor has a leading replica axis R.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from offon.algorithms.choices import check_choice
from offon.algorithms.interface import Algorithm, Obs, Rows, Spec
from offon.algorithms.nn import MLP, Adam
from offon.algorithms.noise import ActNoise, Noise
from offon.algorithms.policies import GaussianPolicy
from offon.algorithms.registry import register
from offon.algorithms.sequence_losses import BY_ADVANTAGE, BY_REWARD, Objective, Scored, pick, priority, sequence_loss
from offon.algorithms.stacked import put_back_
from offon.counter import key_of
from offon.datasets.transitions import Batch, Transitions

VALUES = ("cross_fitted", "constant")
NOT_OFFERED = "r_gold"  # a density is no probability


@register("a_lol", protocols=("offline",), origin="adaptation")
class ALoL(Algorithm):
    """A-LoL over action chunks; an adaptation to control."""

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        """Defaults of this adaptation; clip, filter, priorities and clipping of gradients are the paper's."""

        RANGES: ClassVar[Mapping[str, str]] = {
            "chunk": "[0, inf)",
            "clip": "[0, 1)",
            "kl_weight": "[0, inf)",
            "pool": "[1, inf)",
            "reference_share": "(0, 1)",
            "max_grad_norm": "(0, inf)",
            "lr": "(0, inf)",
            "hidden_dims": "[1, inf)",
        }

        normalize_obs: bool = True  # as behaviour cloning here
        variant: str = "a_lol"  # or ref_free, sequence, kl, r_lol, weighted_bc, nll
        chunk: int = 10  # logged steps that are one action; 0: all that follow in the episode
        clip: float = 0.9  # ratios stay within 1 - clip ... 1 + clip; 0: as they are
        kl_weight: float = 0.0  # in variant kl; the preset has 0.05
        priority: bool = True  # rows in proportion to what they weigh, drawn from a pool; else uniform ones
        pool: int = 4  # uniform rows for each that is drawn by priority
        reference_share: float = 0.5  # of all updates, in which the reference is cloned
        shrink: bool = True  # of the remaining updates only the share of positive advantages is made, as published
        value: str = "cross_fitted"  # two nets, each on half of the episodes, scoring the other half; or constant
        bounded_value: bool = False  # between the least and greatest logged return; a cut episode's may lie beyond
        max_grad_norm: float = 1.0  # per replica, of the policy
        lr: float = 3e-4  # Adam's learning rate of all networks
        hidden_dims: tuple[int, ...] = (256, 256)  # hidden widths of all networks

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "one_step": {"chunk": 1},
        "trajectory": {"chunk": 0, "batch_size": 8, "variant": "sequence"},
        "sequence": {"variant": "sequence"},
        "ref_free": {"variant": "ref_free"},
        "kl": {"variant": "kl", "kl_weight": 0.05},
        "r_lol": {"variant": "r_lol"},
        "weighted_bc": {"variant": "weighted_bc"},
        "nll": {"variant": "nll"},
        "uniform": {"priority": False},
        "constant_value": {"value": "constant"},
        "bounded_value": {"bounded_value": True},
    }
    config: Config
    updates_done: Tensor
    kept: Tensor
    half_of: Tensor
    lengths: Tensor
    ends: Tensor
    end_mask: Tensor
    low: Tensor
    span: Tensor
    mean: Tensor
    powers: Tensor

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        if config.variant == NOT_OFFERED:
            raise ValueError("variant r_gold needs probabilities of tokens; densities of actions are none")
        check_choice("value", config.value, VALUES)
        if config.chunk == 0 and spec.horizon is None:
            raise ValueError("chunk 0 takes the whole episode, whose length this task does not state; set chunk")
        self.objective = Objective(config.variant, config.clip, config.kl_weight)
        self.window = config.chunk or int(spec.horizon or 0)
        sizes = (spec.obs_dim, *config.hidden_dims, spec.act_dim)
        self.policy = GaussianPolicy(seeds, "policy", sizes)
        self.reference = copy.deepcopy(self.policy).requires_grad_(False)
        self.value = MLP(seeds, "value", (spec.obs_dim, *config.hidden_dims, 1), ensemble=2)
        self.policy_optimizer = Adam([self.policy], config.lr, max_grad_norm=config.max_grad_norm)
        self.value_optimizer = Adam([self.value], config.lr)
        budget = spec.updates.get("offline", 0)
        self.switch = int(config.reference_share * budget)
        self.last = budget - self.switch
        self.register_buffer("updates_done", torch.zeros((), dtype=torch.int64))
        self.register_buffer("kept", torch.zeros(len(seeds)))  # sum of shares of positive advantages since the switch
        powers = torch.arange(self.window + 1, dtype=torch.float64)
        self.register_buffer("powers", (config.discount**powers).float(), persistent=False)

    def sources(self, phase: str) -> dict[str, Rows]:
        """Chunks from uniform rows on: as many as are used, or a pool to draw them from."""
        config = self.config
        rows = config.batch_size * (config.pool if config.priority else 1)
        return {"data": Rows(rows, ("mc_return", "episode", "step"), window=self.window)}

    def prepare(self, data: Transitions) -> None:
        """The range of returns, where each episode leads, and which half of the episodes each is in."""
        if data.n_episodes < 2:
            raise ValueError(f"expected at least two episodes, of which one scores the other, got {data.n_episodes}")
        returns, lengths = data.mc_return(self.config.discount), data.episode_lengths()
        last = data.starts + lengths - 1
        halves = []
        for seed in self.seeds:
            generator = torch.Generator().manual_seed(key_of(seed, "halves") & 0x7FFFFFFFFFFFFFFF)
            halves.append(torch.randperm(data.n_episodes, generator=generator) % 2)
        facts = {
            "half_of": torch.stack(halves),  # [R, E]
            "lengths": lengths.float(),  # [E]
            "ends": data.next_obs[last],  # [E, O]
            "end_mask": 1.0 - data.terminated[last],  # [E]
            "low": returns.min(),
            "span": (returns.max() - returns.min()).clamp(min=1e-6),
            "mean": returns.mean(),
        }
        for name, tensor in facts.items():
            self.register_buffer(name, tensor, persistent=False)

    def update(self, batch: dict[str, Batch], noise: Noise) -> dict[str, Tensor]:
        """One step of value and policy; which loss the policy has, and when it stands still, the counter says."""
        pool = batch["data"]
        is_cloning, since = self.updates_done < self.switch, self.updates_done - self.switch
        value_metrics = self._update_value(pool)
        reward, value = self._score(pool)
        advantage = reward - value
        with torch.no_grad():
            self.kept += torch.where(is_cloning, 0.0, (advantage > 0).float().mean(-1))
            share = self.kept / (since + 1).clamp(min=1)
            limit = torch.floor(share * self.last) if self._shrinks() else torch.full_like(share, self.last)
            moves = is_cloning | (since < limit.clamp(min=1.0))  # [R]
        chosen = self._choose(reward, advantage, is_cloning, noise)
        rows = pool.rows.flatten(2)
        rows = rows.gather(1, chosen[..., None].expand(-1, -1, rows.shape[-1])).unflatten(2, pool.rows.shape[2:])
        assert pool.mask is not None
        mask = pool.mask.gather(1, chosen[..., None].expand(-1, -1, self.window))
        picked = reward.gather(1, chosen), value.gather(1, chosen)
        metrics = self._update_policy(Batch(rows, pool.layout, mask), picked, is_cloning, moves)
        with torch.no_grad():
            self.updates_done += 1
        return {**value_metrics, **metrics, "kept_share": (advantage > 0).float().mean(-1), "moves": moves.float()}

    def _shrinks(self) -> bool:
        return self.config.shrink and self.config.variant in BY_ADVANTAGE

    # ---- the value of the reference

    def _values(self, obs: Tensor) -> Tensor:
        """Of both nets, [R, 2, B], in units of the span of returns above the least."""
        found = self.value(obs).squeeze(-1)
        return torch.sigmoid(found) if self.config.bounded_value else found

    def _halves(self, pool: Batch) -> tuple[Tensor, Tensor]:
        """Episode and its half of each chunk, [R, P] int64."""
        episode = pool.column("episode")[:, :, 0].long()
        return episode, self.half_of.gather(1, episode)

    def _update_value(self, pool: Batch) -> dict[str, Tensor]:
        """One step of both nets towards the returns of their own halves; a cut episode goes on at what they say."""
        size = self.config.batch_size
        first = Batch(pool.rows[:, :size, :1], pool.layout)
        episode, half = self._halves(first)
        obs, left = first.obs[:, :, 0], self.lengths[episode] - first.column("step")[:, :, 0]
        with torch.no_grad():
            beyond = self._values(self.ends[episode]) * self.span + self.low  # [R, 2, B]
            carried = (self.end_mask[episode] * self.hp("discount") ** left)[:, None] * beyond
            target = (first.mc_return[:, None, :, 0] + carried - self.low) / self.span
        errors = torch.nn.functional.mse_loss(self._values(obs), target, reduction="none")
        own = torch.stack((half == 0, half == 1), 1).float()
        loss = (errors * own).sum(1).mean(-1)
        self.value_optimizer.step(loss)
        held_out = (errors.detach() * (1.0 - own)).sum(1).mean(-1)
        return {"value_loss": loss.detach(), "held_out_error": held_out}

    @torch.no_grad()
    def _score(self, pool: Batch) -> tuple[Tensor, Tensor]:
        """Return of each chunk, with the value behind it, and value of its first state: [R, P] in units of the span."""
        assert pool.mask is not None
        length = pool.mask.sum(-1).long()  # [R, P]
        at_end = (length - 1)[..., None, None]
        final = pool.rows.gather(2, at_end.expand(-1, -1, 1, pool.rows.shape[-1])).squeeze(2)
        end = Batch(final, pool.layout)
        within = (pool.reward * pool.mask * self.powers[:-1]).sum(-1)
        carried = self.powers[length] * (1.0 - end.terminated)
        if self.config.value == "constant":
            beyond = value = self.mean.expand_as(within)
        else:
            other = 1 - self._halves(pool)[1][:, None]
            obs = torch.cat((pool.obs[:, :, 0], end.next_obs), 1)
            both = self._values(obs).gather(1, other.repeat(1, 1, 2)).squeeze(1) * self.span + self.low
            value, beyond = both.chunk(2, -1)
        reward = (within + carried * beyond - self.low) / self.span
        if self.config.variant in BY_REWARD:
            reward = reward.clamp(0.0, 1.0)
        return reward, (value - self.low) / self.span

    # ---- the policy

    @torch.no_grad()
    def _choose(self, reward: Tensor, advantage: Tensor, is_cloning: Tensor, noise: Noise) -> Tensor:
        """Which chunks of the pool are learned from, [R, B]: the first ones while cloning, then by priority."""
        size = self.config.batch_size
        first = torch.arange(size, device=reward.device).expand(len(reward), -1)
        if not self.config.priority or self.config.variant == "nll":
            return first
        weight = reward if self.config.variant in BY_REWARD else advantage
        return torch.where(is_cloning, first, pick(priority(weight), noise.uniform("priority", size)))

    def _update_policy(
        self, data: Batch, scores: tuple[Tensor, Tensor], is_cloning: Tensor, moves: Tensor
    ) -> dict[str, Tensor]:
        """One step: likelihood while cloning, with the reference following; then the objective, until it stands."""
        assert data.mask is not None
        obs, action = data.obs.flatten(1, 2), data.action.flatten(1, 2)
        own = -self.policy.nll(obs, action).view(data.mask.shape)
        with torch.no_grad():
            reference = -self.reference.nll(obs, action).view(data.mask.shape)
            reference = torch.where(is_cloning, own, reference)
        scored = Scored(own, reference, data.mask, *scores)
        objective_loss, info = sequence_loss(scored, self.objective)
        nll = -(own * data.mask).sum((-2, -1)) / data.mask.sum((-2, -1))  # of a step, [R]
        loss = torch.where(is_cloning, nll, objective_loss)
        with torch.no_grad():
            before = [parameter.clone() for parameter in self.policy.parameters()]
        self.policy_optimizer.reset((self.updates_done != self.switch).float())
        self.policy_optimizer.step(loss)
        put_back_(self.policy.parameters(), before, moves)
        self._follow(is_cloning)
        names = ("weight", "at_lower", "at_upper", "positive_advantage", "log_ratio", "effective_rows")
        return {"policy_loss": loss.detach(), "nll": nll.detach(), **{name: info[name] for name in names}}

    @torch.no_grad()
    def _follow(self, is_cloning: Tensor) -> None:
        """The reference is the policy while it is cloned."""
        for new, reference in zip(self.policy.parameters(), self.reference.parameters(), strict=True):
            torch.where(is_cloning, new, reference, out=reference)

    def act(self, x: Obs, noise: ActNoise, mode: str) -> Tensor:
        """The mean; when exploring, one sample, clipped."""
        mean = self.policy(x.obs)
        if mode == "eval":
            return mean
        std = self.policy.clamped_log_std().exp()
        return (mean + std * noise.normal("explore", mean.shape[-1])).clamp(-1.0, 1.0)
