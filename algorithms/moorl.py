"""MOORL: logged and own rows as two tasks of a first-order meta-learner (Chaudhary et al., 2025, arXiv 2506.09574).

A reconstruction: no code was released and much is not stated; what was chosen here is a setting. Each iteration copies
the slow parameters, which act, takes some steps of soft actor-critic on rows of one source, and moves the slow ones
towards where that led (Reptile, Nichol et al., 2018).
Every tensor has a leading replica axis R; replicas never interact.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from offon.algorithms.choices import check_choice
from offon.algorithms.interface import Obs, Plan, Rows, Spec
from offon.algorithms.losses import soft_target
from offon.algorithms.nn import Adam, Norm, ema_
from offon.algorithms.noise import ActNoise, Noise, Under
from offon.algorithms.registry import register
from offon.algorithms.sac import SAC
from offon.datasets.transitions import Batch

LOGGED, OWN = 0, 1
_CHOICES = {
    "source": ("random", "alternate"),
    "meta_rule": ("reptile", "fomaml"),
    "inner_batch": ("same", "fresh"),
    "inner_opt_state": ("persist", "reset"),
    "target_ema": ("meta", "inner"),
    "meta_batch": ("one", "both"),
}


def reptile_(slow: Sequence[Tensor], fast: Sequence[Tensor], rate: float) -> None:
    """Slow <- slow + rate (fast - slow), in place; a rate of 1 copies to the bit, one of 0 changes no bit."""
    torch._foreach_lerp_(list(slow), list(fast), rate)


def fomaml_(slow: Sequence[Tensor], gradients: Sequence[Tensor], rate: float) -> None:
    """Slow <- slow - rate times the gradients at the fast parameters, in place."""
    torch._foreach_add_(list(slow), list(gradients), alpha=-rate)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors [R, ...] side by side, [R, P]."""
    return torch.cat([tensor.flatten(1) for tensor in tensors], 1)


@register("moorl", protocols=("hybrid",), origin="reconstruction")
class MOORL(SAC):
    """Reptile around soft actor-critic, over blocks of logged and of own rows; the slow policy acts."""

    @dataclass(frozen=True)
    class Config(SAC.Config):
        """Defaults of this reconstruction."""

        RANGES: ClassVar[Mapping[str, str]] = {
            "inner_steps": "[1, inf)",
            "meta_rate": "[0, 1]",
            "offline_probability": "[0, 1]",
            "beta1": "[0, 1)",
            "start_steps": "[0, inf)",
        }

        inner_steps: int = 5  # steps of critics and policy from the slow parameters, for each environment step
        meta_rate: float = 0.5  # of the slow parameters towards the fast ones; of a gradient step with fomaml
        meta_rule: str = "reptile"  # or fomaml: a gradient step of the slow parameters, taken at the fast ones
        source: str = "random"  # of a block: random (logged with `offline_probability`) or alternate
        offline_probability: float = 0.5  # that a block's rows are logged ones
        start_steps: int = 5000  # first environment steps, whose blocks are of logged rows
        inner_batch: str = "same"  # one batch for all steps of a block, or fresh ones
        inner_opt_state: str = "persist"  # the optimisers' moments go on from block to block, or reset
        target_ema: str = "meta"  # the target follows the slow critics once a block, or inner: the fast ones each step
        meta_batch: str = "one"  # source in an iteration, or both: the slow parameters move to the middle
        beta1: float = 0.9  # of Adam; 0 carries no momentum from source to source
        critic_layer_norm: bool = False  # in the critics

        @classmethod
        def tiny(cls) -> MOORL.Config:
            """The contract suite's."""
            sizes: dict[str, Any] = {"hidden_dims": (16, 16), "n_critics": 3, "inner_steps": 2}
            return cls(batch_size=16, lr=3e-3, tau=0.05, start_steps=4, **sizes)

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "fresh": {"inner_batch": "fresh"},
        "fomaml": {"meta_rule": "fomaml"},
        "blocks": {"meta_rate": 1.0, "inner_batch": "fresh"},
        "both": {"meta_batch": "both"},
        "no_momentum": {"beta1": 0.0},
        "layer_norm": {"critic_layer_norm": True},
        "antmaze": {"reward": "minus_one", "hidden_dims": (256, 256, 256)},
        "adroit": {"hidden_dims": (256, 256, 256)},
    }
    config: Config
    iteration: Tensor
    moved: Tensor
    places: Tensor

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(config, name), choices)
        # self.policy and self.critic are the fast ones, which the optimisers hold
        self.slow_policy = copy.deepcopy(self.policy).requires_grad_(False)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.policy_optimizer = Adam([self.policy], config.lr, beta1=config.beta1)
        self.critic_optimizer = Adam([self.critic], config.lr, beta1=config.beta1)
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))
        count = flat(list(self.critic.parameters())).shape[1]
        self.register_buffer("moved", torch.zeros(len(seeds), 2, count))  # by the last block of each source
        self.register_buffer("places", torch.tensor([[True, False]]), persistent=False)  # of logged rows and of own

    def _critic_norm(self) -> bool | Norm:
        return Norm(1e-6) if self.config.critic_layer_norm else False

    def _average_target(self) -> None:
        if self.config.target_ema == "inner":
            super()._average_target()

    def sources(self, phase: str) -> dict[str, Rows]:
        """As many rows of both kinds as a block needs; which it takes is drawn for each replica."""
        batches = self.config.inner_steps if self.config.inner_batch == "fresh" else 1
        if self.config.meta_rule == "fomaml" and self.config.inner_batch == "fresh":
            batches += 1
        rows = self.config.batch_size * batches
        return {"logged": Rows(rows), "own": Rows(rows, of="online")}

    def plan(self, phase: str) -> Plan:
        """One iteration for each environment step, from the first one on."""
        return Plan(capacity=self.config.online_capacity)

    def update(self, batch: dict[str, Batch], noise: Noise) -> dict[str, Tensor]:
        """One iteration: blocks of inner steps, then the slow parameters, the temperature and the target."""
        logged, own = batch["logged"], batch["own"]
        is_logged = self._draw_source(noise)
        seen = self._watch(logged, own, noise)
        if self.config.meta_batch == "both":
            losses = self._average_of_blocks(logged, own, noise)
        else:
            rows = torch.where(is_logged[:, None, None], logged.rows, own.rows)
            losses = self._block(Batch(rows, logged.layout), Under(noise, "block"))
            losses |= self._distances(is_logged)
            self._move_slow(Batch(rows, logged.layout), Under(noise, "meta"))
        temperature = self.temperature.value().detach().squeeze(-1)
        self._update_temperature(losses["entropy"])
        if self.config.target_ema == "meta":
            ema_(self.target_critic, self.slow_critic, self.config.tau)
        with torch.no_grad():
            self.iteration += 1
        return {**losses, "temperature": temperature, "logged_share": is_logged.float(), **seen}

    def _draw_source(self, noise: Noise) -> Tensor:
        """Whether this block's rows are logged ones, [R] bool."""
        if self.config.source == "random":
            logged = noise.uniform("source", 1).squeeze(-1) < self.config.offline_probability
        else:
            logged = (self.iteration % 2 == LOGGED).expand(self.replicas)
        return logged | (self.iteration < self.config.start_steps)

    # ---- blocks

    def _block(self, data: Batch, noise: Under) -> dict[str, Tensor]:
        """The inner steps, from the slow parameters on; the fast ones stand where they led."""
        with torch.no_grad():
            torch._foreach_copy_(self._fast(), self._slow())
        if self.config.inner_opt_state == "reset":
            self.policy_optimizer.reset()
            self.critic_optimizer.reset()
        for step in range(self.config.inner_steps):
            part, draws = self._part(data, step), noise.under(str(step))
            q_loss, q = self._update_critic(part, draws)
            policy_loss, entropy = self._update_policy(part, draws)
        return {
            "critic_loss": q_loss.detach(),
            "policy_loss": policy_loss.detach(),
            "q": q.detach().mean((1, 2)),
            "entropy": entropy,
        }

    def _part(self, data: Batch, number: int) -> Batch:
        """The rows of one step: always the same, or the next ones."""
        if self.config.inner_batch == "same":
            return data
        size = self.config.batch_size
        return Batch(data.rows[:, number * size : (number + 1) * size], data.layout)

    def _average_of_blocks(self, logged: Batch, own: Batch, noise: Noise) -> dict[str, Tensor]:
        """A block on each source from the same slow parameters, which then move towards the middle of both."""
        with torch.no_grad():
            start = [parameter.clone() for parameter in self._slow()]
        ends, losses = [], {}
        for name, data, source in (("logged", logged, True), ("own", own, False)):
            losses = self._block(data, Under(noise, name))
            which = torch.full((self.replicas,), source, device=data.rows.device)
            losses |= self._distances(which)
            ends.append([parameter.detach().clone() for parameter in self._fast()])
        with torch.no_grad():
            middle = [0.5 * (first + second) for first, second in zip(*ends, strict=True)]
            torch._foreach_copy_(self._slow(), start)
            reptile_(self._slow(), middle, self.config.meta_rate)
        return losses

    def _move_slow(self, data: Batch, noise: Under) -> None:
        """The outer step; with fomaml on the block's batch, or on a further one."""
        rate = self.config.meta_rate
        if self.config.meta_rule == "reptile":
            with torch.no_grad():
                reptile_(self._slow(), [parameter.detach() for parameter in self._fast()], rate)
            return
        part = self._part(data, self.config.inner_steps)
        q_loss, policy_loss = self._loss_of_critic(part, noise)[0], self._loss_of_policy(part, noise)[0]
        for loss, slow, fast in (
            (q_loss, self.slow_critic, self.critic),
            (policy_loss, self.slow_policy, self.policy),
        ):
            parameters = list(fast.parameters())
            gradients = torch.autograd.grad(loss, parameters, torch.ones_like(loss))
            with torch.no_grad():
                fomaml_(list(slow.parameters()), gradients, rate)

    def _slow(self) -> list[Tensor]:
        return [*self.slow_policy.parameters(), *self.slow_critic.parameters()]

    def _fast(self) -> list[Tensor]:
        return [*self.policy.parameters(), *self.critic.parameters()]

    # ---- what tells whether the meta part does something

    @torch.no_grad()
    def _distances(self, is_logged: Tensor) -> dict[str, Tensor]:
        """How far the block led, and the cosine between its way and that of the other source's last block."""
        ways, of_policy = torch._foreach_sub(self._fast(), self._slow()), len(list(self.policy.parameters()))
        policy_way, way = flat(ways[:of_policy]), flat(ways[of_policy:])
        other = torch.where(is_logged[:, None], self.moved[:, OWN], self.moved[:, LOGGED])
        norms = torch.linalg.vector_norm(way, dim=-1), torch.linalg.vector_norm(other, dim=-1)
        cosine = torch.linalg.vecdot(way, other) / (norms[0] * norms[1]).clamp(min=1e-30)
        place = is_logged[:, None] == self.places
        torch.where(place[..., None], way[:, None], self.moved, out=self.moved)
        policy_norm = torch.linalg.vector_norm(policy_way, dim=-1)
        return {"critic_way": norms[0], "policy_way": policy_norm, "cosine_of_sources": cosine}

    @torch.no_grad()
    def _watch(self, logged: Batch, own: Batch, noise: Noise) -> dict[str, Tensor]:
        """TD error and size of the slow critics' values on rows of both kinds, before the iteration."""
        size = self.config.batch_size
        rows = torch.cat((logged.rows[:, :size], own.rows[:, :size]), 1)
        data, draws = Batch(rows, logged.layout), Under(noise, "watch")
        normal = draws.normal("next_action", 2 * size, self.spec.act_dim)
        action, log_prob = self.slow_policy.sample(data.next_obs, normal)
        next_q = self.target_critic(torch.cat((data.next_obs, action), -1)).squeeze(-1).amin(1)
        temperature, discount = self.temperature.value(), self.hp("discount")
        target = soft_target(data.reward, data.terminated, next_q, log_prob, discount, temperature)
        q = self.slow_critic(data.obs_action).squeeze(-1)
        by_source = (*q.shape[:2], 2, size)
        squares = torch.nn.functional.mse_loss(q, target[:, None].expand_as(q), reduction="none")
        errors = squares.view(by_source).mean(-1).sum(1)
        largest = q.abs().view(by_source).amax((1, 3))
        named = zip(("td_logged", "td_own"), errors.unbind(1), strict=True)
        return {**dict(named), "most_q_logged": largest[:, LOGGED], "most_q_own": largest[:, OWN]}

    def act(self, x: Obs, noise: ActNoise, mode: str) -> Tensor:
        """The slow policy's squashed mean; when exploring, one sample."""
        return self.slow_policy.act(x.obs, noise, mode)
