"""The constrained decision transformer (Liu et al., 2023, arXiv 2302.07351), as in OSRL but without its augmentation.

Actions are predicted from what came before, from the return that is still wanted and the cost that may still be paid.
Episodes of low cost are drawn more often. Every tensor has a leading replica axis R; replicas never interact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from offon.algorithms.cost_limit import limit_and_horizon
from offon.algorithms.interface import Algorithm, Obs, Rows, Spec
from offon.algorithms.nn import Adam, generator_of
from offon.algorithms.noise import ActNoise, Noise
from offon.algorithms.registry import register
from offon.algorithms.squashed import Temperature, temperature_loss
from offon.algorithms.stacked import look_up
from offon.algorithms.transformer import Linear, Transformer
from offon.datasets.transitions import Batch, Transitions

_TOKENS = 4  # of a step: return, cost, observation, action
_SPARE = 10  # entries of the table of times beyond the horizon
_HALF_LOG = 0.5 * math.log(2.0 * math.pi)


def episode_weights(costs: Tensor, cutoff: float) -> Tensor:
    """How often episodes of these costs [E] are drawn: by how far they stay below the cutoff."""
    return (cutoff - costs).clamp(min=0.0)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of [R, B, T, A] over the entries of valid steps [R, B, T]. -> [R]."""
    return (values * mask[..., None]).sum((1, 2, 3)) / (mask.sum((1, 2)) * values.shape[-1])


def likelihood(mean: Tensor, log_std: Tensor, action: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Log density of actions and entropy of the Gaussians, per dimension, means over valid steps. -> [R] each."""
    log_prob = -0.5 * ((action - mean) * torch.exp(-log_std)).square() - log_std - _HALF_LOG
    return masked_mean(log_prob, mask), masked_mean(0.5 + _HALF_LOG + log_std, mask)


def cost_loss(logits: Tensor, cost: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy [R] of whether a step costs one or more; steps that are no part of an episode count as 0."""
    log_prob = torch.log_softmax(logits, -1)
    chosen = torch.where(cost >= 1.0, log_prob[..., 1], log_prob[..., 0])
    return -(mask * chosen).mean((1, 2))


@register("cdt", protocols=("offline",))
class CDT(Algorithm):
    """Constrained decision transformer."""

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        """OSRL's settings."""

        RANGES: ClassVar[Mapping[str, str]] = {
            "context": "[1, inf)",
            "layers": "[1, inf)",
            "heads": "[1, inf)",
            "width": "[1, inf)",
            "dropout": "[0, 1)",
            "lr": "(0, inf)",
            "weight_decay": "[0, inf)",
            "warmup_updates": "[1, inf)",
            "max_grad_norm": "(0, inf)",
            "return_scale": "(0, inf)",
            "cost_cutoff": "(0, inf)",
            "cost_weight": "[0, inf)",
            "temperature": "(0, inf)",
            "temperature_lr": "(0, inf)",
        }

        batch_size: int = 2048  # windows of `context` steps
        discount: float = 1.0  # of returns
        context: int = 10  # steps that the policy sees
        layers: int = 3  # blocks of the transformer
        heads: int = 8  # of the attention
        width: int = 128  # of tokens; a multiple of the heads
        dropout: float = 0.1  # of tokens and of what blocks add; OSRL's code also drops attention weights
        lr: float = 1e-4  # AdamW's learning rate
        weight_decay: float = 1e-4  # AdamW's
        warmup_updates: int = 500  # over which the learning rate rises
        max_grad_norm: float = 0.25  # limit on the gradient
        return_scale: float = 0.1  # factor on returns
        cost_origin: float = 50.0  # a cost token is this minus the cost to go
        cost_cutoff: float = 70.0  # episodes are drawn by how far their cost stays below it
        cost_weight: float = 0.02  # of predicting whether a step costs anything
        temperature: float = 0.1  # first weight of the entropy
        temperature_lr: float = 1e-4  # Adam's learning rate of it
        target_return: float | None = None  # return that is asked for; null: the best of a logged episode in the limit

        @classmethod
        def tiny(cls) -> CDT.Config:
            """The contract suite's."""
            sizes: dict[str, Any] = {"context": 4, "layers": 1, "heads": 2, "width": 16}
            return cls(batch_size=16, lr=3e-3, warmup_updates=10, **sizes)

    PRESETS: ClassVar[Mapping[str, Mapping]] = {}
    uses_cost_limit = True
    config: Config
    target: Tensor

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        self.limit, horizon = limit_and_horizon(spec)
        if config.reward != "none":
            raise ValueError("expected reward=none: it is told rewards as they are when it acts; use return_scale")
        width = config.width
        self.return_token, self.cost_token = Linear(seeds, "return", 1, width), Linear(seeds, "cost", 1, width)
        self.obs_token = Linear(seeds, "obs", spec.obs_dim, width)
        self.action_token = Linear(seeds, "action", spec.act_dim, width)
        times = horizon + _SPARE
        table = [torch.empty(times, width).normal_(0.0, 0.02, generator=generator_of(s, "times")) for s in seeds]
        self.times = torch.nn.Parameter(torch.stack(table))
        self.trunk = Transformer(seeds, "trunk", width, config.heads, config.layers, config.dropout)
        self.mean, self.log_std = (Linear(seeds, name, width, spec.act_dim) for name in ("mean", "log_std"))
        self.cost_head = Linear(seeds, "cost_head", width, 2)
        self.temperature = Temperature(len(seeds), config.temperature)
        settings: dict[str, Any] = {"weight_decay": config.weight_decay, "warmup_updates": config.warmup_updates}
        parts = [module for name, module in self.named_children() if name != "temperature"]
        table_of_times = torch.nn.ParameterList([self.times])
        self.optimizer = Adam([*parts, table_of_times], config.lr, max_grad_norm=config.max_grad_norm, **settings)
        self.temperature_optimizer = Adam([self.temperature], config.temperature_lr)
        self.register_buffer("target", torch.zeros(len(seeds), 1))

    def sources(self, phase: str) -> dict[str, Rows]:
        """Windows of an episode that begin at any of its steps."""
        columns = ("cost", "mc_return", "cost_to_go", "step")
        return {"data": Rows(self.config.batch_size, columns, window=self.config.context)}

    def row_weights(self, data: Transitions) -> Tensor:
        """Cheap episodes are drawn more often; within one, all steps alike."""
        costs = data.cost_to_go()[data.starts]
        weights = episode_weights(costs, self.config.cost_cutoff)
        if not bool((weights > 0).any()):
            raise ValueError(
                f"every logged episode costs {self.config.cost_cutoff:g} or more, the least {float(costs.min()):g}; "
                "raise algorithm.cost_cutoff to draw any"
            )
        lengths = data.episode_lengths()
        return torch.repeat_interleave(weights.double() / lengths, lengths)

    def prepare(self, data: Transitions) -> None:
        """The return to ask for, unless it is given."""
        wanted = self.config.target_return
        if wanted is None:
            costs, returns = data.cost_to_go()[data.starts], data.episode_returns()
            within = costs <= max(self.limit, float(costs.min()))  # the cheapest ones, if none is within
            wanted = float(returns[within].max())
        self.target.fill_(wanted)

    def update(self, batch: dict[str, Batch], noise: Noise) -> dict[str, Tensor]:
        """One step of the network, then of the temperature."""
        data = batch["data"]
        mask, step = data.mask, data.column("step").long()
        assert mask is not None
        inside = step[..., :1] + torch.arange(step.shape[-1], device=step.device)  # also beyond the episode's end
        before_action, after_action = self._features(
            data.mc_return, data.column("cost_to_go"), data.obs, data.action, inside, None, noise
        )
        mean, log_std = self.mean(before_action), self.log_std(before_action)
        log_prob, entropy = likelihood(mean, log_std, data.action, mask)
        temperature = self.temperature.value()
        predicted = cost_loss(self.cost_head(after_action), data.cost, mask)
        policy_loss = -(log_prob + temperature.detach().squeeze(-1) * entropy)
        loss = policy_loss + self.config.cost_weight * predicted
        self.optimizer.step(loss)
        entropy = entropy.detach()
        self.temperature_optimizer.step(temperature_loss(temperature, entropy, -float(self.spec.act_dim)))
        return {
            "policy_loss": policy_loss.detach(),
            "log_prob": log_prob.detach(),
            "entropy": entropy,
            "temperature": temperature.detach().squeeze(-1),
            "cost_loss": predicted.detach(),
        }

    def _features(
        self,
        returns: Tensor,
        costs: Tensor,
        obs: Tensor,
        action: Tensor,
        time: Tensor,
        allowed: Tensor | None,
        noise: Noise | None,
    ) -> tuple[Tensor, Tensor]:
        """What is known before and after each action [R, B, T, width], of returns and costs to go [R, B, T]."""
        moment = look_up(self.times, time.clamp(0, self.times.shape[1] - 1))
        scaled, left = self.config.return_scale * returns, self.config.cost_origin - costs
        parts = (
            self.return_token(scaled[..., None]),
            self.cost_token(left[..., None]),
            self.obs_token(obs),
            self.action_token(action),
        )
        tokens = torch.stack([part + moment for part in parts], 3).flatten(2, 3)
        found = self.trunk(tokens, allowed, noise).view(*moment.shape[:3], _TOKENS, -1)
        return found[..., 2, :], found[..., 3, :]

    def memory(self, n: int) -> dict[str, Tensor]:
        """The last steps: what was wanted, seen and done; the newest stands last, the empty ones first."""
        lead = (self.replicas, n, self.config.context)
        shapes = {"returns": (), "costs": (), "obs": (self.spec.obs_dim,), "action": (self.spec.act_dim,)}
        return {name: torch.zeros(*lead, *shape) for name, shape in shapes.items()}

    def act(self, x: Obs, noise: ActNoise, mode: str) -> Tensor:
        """The mean, of what is known of the last steps; when exploring, one sample."""
        self._remember(x)
        kept, context = x.memory, self.config.context
        time = x.t[..., None] + torch.arange(1 - context, 1, device=x.t.device)
        found, _ = self._features(
            kept["returns"], kept["costs"], kept["obs"], kept["action"], time, _visible(time >= 0), None
        )
        newest = found[:, :, -1]
        action: Tensor = self.mean(newest)
        if mode != "eval":
            action = action + self.log_std(newest).exp() * noise.normal("explore", self.spec.act_dim)
        return action.clamp(-1.0, 1.0)

    def _remember(self, x: Obs) -> None:
        """Moves the memory on by one step, in place: the action of the last one is known by now."""
        kept, begins = x.memory, x.t == 0
        kept["action"][:, :, -1] = x.action
        limit = torch.full_like(x.cost, self.limit)
        newest = {
            "returns": torch.where(begins, self.target, kept["returns"][..., -1] - x.reward),
            "costs": torch.where(begins, limit, kept["costs"][..., -1] - x.cost),
            "obs": x.obs,
            "action": torch.zeros_like(x.action),
        }
        for name, value in newest.items():
            kept[name].copy_(torch.cat((kept[name][:, :, 1:], value[:, :, None]), 2))


def _visible(known: Tensor) -> Tensor:
    """Which tokens each one sees [R B, 1, L, L], for steps that are known [R, B, T]; each sees itself in any case."""
    tokens = known.repeat_interleave(_TOKENS, -1).flatten(0, 1)
    length = tokens.shape[-1]
    causal = torch.ones(length, length, dtype=torch.bool, device=known.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=known.device)
    return ((causal & tokens[:, None]) | itself)[:, None]
