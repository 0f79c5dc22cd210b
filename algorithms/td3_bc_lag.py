"""TD3+BC with a Lagrange multiplier on the cost of its policy.

No paper states it; made as OSRL makes its Lagrangian baselines (Liu et al., 2023, arXiv 2306.09303): critics of the
cost beside those of the reward, and a PID-controlled multiplier for the excess over the discounted limit. TD3+BC's
policy step is left as it is but for the value it raises, (Q - multiplier Q_cost) / (1 + multiplier).
Every tensor has a leading replica axis R; replicas never interact.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offon.algorithms.cost_limit import Gains, Multiplier, limit_of
from offon.algorithms.interface import Rows, Spec
from offon.algorithms.losses import critic_loss, td_target
from offon.algorithms.nn import MLP, Adam, ema_
from offon.algorithms.registry import register
from offon.algorithms.td3_bc import TD3BC
from offon.datasets.transitions import Batch


def penalised(q: Tensor, q_cost: Tensor, multiplier: Tensor) -> Tensor:
    """(Q - multiplier Q_cost) / (1 + multiplier), for values [R, B] and a multiplier [R]."""
    weight = multiplier[:, None]
    return (q - weight * q_cost) / (1.0 + weight)


@register("td3_bc_lag", protocols=("offline",), origin="instantiation")
class TD3BCLag(TD3BC):
    """TD3+BC for a cost limit."""

    @dataclass(frozen=True)
    class Config(Gains, TD3BC.Config):
        """TD3+BC's settings, and the gains of OSRL's Lagrangian baselines."""

    PRESETS = {}
    uses_cost_limit = True
    config: Config
    limit: Tensor
    last_multiplier: Tensor

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        widths = (spec.obs_dim + spec.act_dim, *config.hidden_dims, 1)
        self.cost_critic = MLP(seeds, "cost_critic", widths, ensemble=2)
        self.target_cost_critic = copy.deepcopy(self.cost_critic).requires_grad_(False)
        self.cost_critic_optimizer = Adam([self.cost_critic], config.lr)
        self.multiplier = Multiplier(len(seeds), config)
        self.register_buffer("limit", limit_of(spec, self.hp("discount")), persistent=False)  # [R, 1]
        self.register_buffer("last_multiplier", torch.zeros(len(seeds)))  # shown between actor updates

    def sources(self, phase: str) -> dict[str, Rows]:
        """Rows with their costs."""
        return {"data": Rows(self.config.batch_size, ("cost",))}

    def _update_critics(self, data: Batch, following: Tensor) -> dict[str, Tensor]:
        """One step of both kinds of critics; of the two of the cost the larger counts."""
        metrics = super()._update_critics(data, following)
        with torch.no_grad():
            next_cost = self.target_cost_critic(following).squeeze(-1).amax(1)
            target = td_target(data.cost, data.terminated, next_cost, self.hp("discount"))
        q_cost = self.cost_critic(data.obs_action).squeeze(-1)
        loss = critic_loss(q_cost, target)
        self.cost_critic_optimizer.step(loss)
        shown = {"q_cost": q_cost.detach().mean((1, 2)), "multiplier": self.last_multiplier.clone()}
        return {**metrics, "cost_critic_loss": loss.detach(), **shown}

    def _value(self, inputs: Tensor) -> Tensor:
        """The penalised value; the multiplier moves by the excess of the policy's own cost."""
        q = super()._value(inputs)
        q_cost = self.cost_critic(inputs, frozen=True).squeeze(-1).amax(1)
        multiplier = self.multiplier.moved((q_cost.detach() - self.limit).mean(-1))
        self.last_multiplier.copy_(multiplier)
        return penalised(q, q_cost, multiplier)

    def _update_policy(self, data: Batch) -> None:
        super()._update_policy(data)
        ema_(self.target_cost_critic, self.cost_critic, self.config.tau)
