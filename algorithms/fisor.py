"""FISOR (Zheng et al., 2024, arXiv 2401.10700): safe offline learning guided by what is feasible.

A value of the worst violation to come (positive: not feasible), learned by a reversed expectile; values of the reward
as in IQL; and a diffusion policy whose weights seek reward where that is feasible and safety where it is not. No
multiplier and no limit enter the training. Every tensor has a leading replica axis R; replicas never interact.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from offon.algorithms.choices import check_choice
from offon.algorithms.cost_limit import discounted_limit
from offon.algorithms.diffusion import Denoiser
from offon.algorithms.interface import Algorithm, Obs, Rows, Spec
from offon.algorithms.iql import awr_weight, expectile_loss
from offon.algorithms.losses import ends, td_target
from offon.algorithms.nn import MLP, Adam, ema_
from offon.algorithms.noise import ActNoise, Noise, Under
from offon.algorithms.registry import register
from offon.datasets.transitions import Batch, Transitions

_INSIDE = 1.0 - 1e-5  # logged actions are kept off the edge of the box
_TWINS = 2


def feasible_target(violation: Tensor, next_value: Tensor, ended: Tensor, discount: Tensor) -> Tensor:
    """(1 - discount) h + discount max(h, V(s')), and h where the episode ended: [R, B], discount [R, 1]."""
    return torch.where(ended > 0, violation, torch.lerp(violation, torch.maximum(violation, next_value), discount))


def escape_weight(safety: Tensor, temperature: Tensor, floor: Tensor, max_weight: Tensor) -> Tensor:
    """exp(temperature * safety) between `floor` and `max_weight`, of how much safer than usual an action is, [R, B]."""
    return torch.maximum(awr_weight(safety, temperature, max_weight), floor)


@register("fisor", protocols=("offline",))
class FISOR(Algorithm):
    """Feasibility-guided diffusion policy: safe in every state, not only on average."""

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        """Defaults are those of all DSRL tasks; a step is two updates of the policy and one of the values."""

        RANGES: ClassVar[Mapping[str, str]] = {
            "batch_size": "[2, inf)",
            "critic_rows": "[1, inf)",
            "tau": "(0, 1]",
            "actor_tau": "(0, 1]",
            "reward_expectile": "(0, 1)",
            "cost_expectile": "(0, 1)",
            "reward_temperature": "[0, inf)",
            "cost_temperature": "[0, inf)",
            "max_reward_weight": "(0, inf)",
            "max_cost_weight": "(0, inf)",
            "infeasible_floor": "[0, inf)",
            "violation": "(0, inf)",
            "cost_limit": "[0, inf)",
            "diffusion_steps": "[1, inf)",
            "candidates": "[1, inf)",
            "repeat_last": "[0, inf)",
            "width": "[1, inf)",
            "blocks": "[1, inf)",
            "dropout": "[0, 1)",
            "hidden_dims": "[1, inf)",
            "lr": "(0, inf)",
            "cosine_updates": "[1, inf)",
        }

        batch_size: int = 2048  # rows of a step: one half for each of the two updates of the policy
        critic_rows: int = 256  # of them, from the first on, those that the values learn from
        reward_expectile: float = 0.9  # level of the value of rewards
        cost_expectile: float = 0.9  # level of the feasible value, counted from below: it seeks the safest action
        reward_temperature: float = 3.0  # inverse temperature of the weight of feasible actions
        cost_temperature: float = 5.0  # inverse temperature of the weight where nothing is feasible
        max_reward_weight: float = 100.0  # clip on the weight of feasible actions
        max_cost_weight: float = 150.0  # clip on the weight where nothing is feasible
        infeasible_floor: float = 0.0  # lower clip on that weight; 1 in the first release and its MetaDrive branch
        weights: str = "feasibility"  # feasibility, or imitation: the same weight for all feasible actions
        constraint: str = "cost"  # h: cost (of a step, see `violation`) or distance (to an obstacle, see `distances`)
        violation: float = 25.0  # h of a step with a cost; of any other it is -1
        distances: tuple[int, ...] = ()  # entries of the observation that are distances to obstacles
        keep_off: float = 0.8  # the distance at which h is 0
        critic: str = "hj"  # hj: the worst violation to come; qc: discounted costs against `cost_limit`, an ablation
        cost_limit: float = 10.0  # of an episode; it enters the training with critic=qc alone
        timeouts_terminate: bool = False  # a time limit ends the bootstrap too, as released
        scale_rewards: bool = True  # times longest episode over range of returns: the best earn about 1 a step
        diffusion_steps: int = 5  # denoising steps
        schedule: str = "vp"  # how strongly each of them blurs: vp, cosine or linear
        candidates: int = 16  # sampled actions, of which the safest is taken
        repeat_last: int = 0  # how often the last denoising step is taken again
        width: int = 256  # of the policy's residual stream; blocks are four times as wide inside
        blocks: int = 3  # residual blocks of the policy
        dropout: float = 0.1  # rate in them
        hidden_dims: tuple[int, ...] = (256, 256)  # hidden widths of values and critics
        tau: float = 0.005  # rate of the target average of the critics
        actor_tau: float = 0.001  # rate of the average of the policy, which is what acts
        lr: float = 3e-4  # Adam's learning rate of all networks
        cosine_updates: int = 3_000_000  # updates of the policy, two a step, in which its rate would fall to 0

        @classmethod
        def tiny(cls) -> FISOR.Config:
            """The contract suite's."""
            sizes: dict[str, Any] = {
                "width": 16,
                "blocks": 2,
                "candidates": 5,
                "hidden_dims": (16, 16),
                "distances": (0, 1),
            }
            return cls(batch_size=32, critic_rows=16, lr=1e-3, tau=0.05, actor_tau=0.05, dropout=0.01, **sizes)

    _AS_CODE = {"timeouts_terminate": True}
    PRESETS = {
        "as_code": _AS_CODE,
        "first_release": {**_AS_CODE, "infeasible_floor": 1.0},
        "safety_gymnasium": {"cost_limit": 10.0},
        "bullet": {"cost_limit": 5.0},
        "metadrive": {"cost_limit": 5.0, "infeasible_floor": 1.0},
        "metadrive_imitation": {"cost_limit": 5.0, "infeasible_floor": 1.0, "weights": "imitation"},
        "point_robot": {
            "batch_size": 1024,
            "reward_temperature": 5.0,
            "cost_temperature": 2.0,
            "candidates": 8,
            "constraint": "distance",
            "distances": (5, 8),
            "scale_rewards": False,
        },
    }
    SWEEPABLE = (
        *("discount", "reward_expectile", "cost_expectile", "reward_temperature", "cost_temperature"),
        *("max_reward_weight", "max_cost_weight", "infeasible_floor", "violation"),
    )
    config: Config
    reward_scale: Tensor
    threshold: Tensor
    _distances: Tensor

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        _check(spec, config)
        self.policy = Denoiser(
            seeds,
            "policy",
            spec.obs_dim,
            spec.act_dim,
            config.schedule,
            config.diffusion_steps,
            config.width,
            config.blocks,
            config.dropout,
        )
        self.rows_per_obs = config.candidates
        self.acting_policy = copy.deepcopy(self.policy).requires_grad_(False)
        # of violations first, of rewards second
        self.value = MLP(seeds, "value", (spec.obs_dim, *config.hidden_dims, 1), ensemble=2, init="xavier")
        sizes = (spec.obs_dim + spec.act_dim, *config.hidden_dims, 1)
        self.critic = MLP(seeds, "critic", sizes, ensemble=2 * _TWINS, init="xavier")
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.policy_optimizer = Adam([self.policy], config.lr, cosine_updates=config.cosine_updates)
        self.value_optimizer = Adam([self.value], config.lr)
        self.critic_optimizer = Adam([self.critic], config.lr)
        self.register_buffer("reward_scale", torch.ones(()))
        self.register_buffer("threshold", torch.zeros(len(seeds), 1))
        self.register_buffer("_distances", torch.tensor(config.distances, dtype=torch.int64), persistent=False)

    def prepare(self, data: Transitions) -> None:
        """What depends on the data set: the scale of rewards, and the threshold of the ablation.

        Raises:
            ValueError: if costs are negative: what is no cost would pass for safe.
        """
        if data.cost is not None and bool((data.cost < 0).any()):
            raise ValueError(f"expected costs of 0 or more, found {float(data.cost.min()):g}; is it a reward?")
        horizon = self.spec.horizon or int(data.episode_lengths().max())
        if self.config.scale_rewards:
            returns = data.episode_returns()
            self.reward_scale.fill_(reward_scale(float(returns.min()), float(returns.max()), horizon))
        if self.config.critic == "qc":
            self.threshold.copy_(discounted_limit(self.config.cost_limit, self.hp("discount"), horizon))

    def sources(self, phase: str) -> dict[str, Rows]:
        """One block of rows with their costs."""
        return {"data": Rows(self.config.batch_size, columns=("cost",))}

    def update(self, batch: dict[str, Batch], noise: Noise) -> dict[str, Tensor]:
        """Two steps of the policy, each on a half of the rows, then one of values and critics on the first rows."""
        data = batch["data"]
        action = data.action.clamp(-_INSIDE, _INSIDE)
        obs_action = torch.cat((data.obs, action), -1)
        with torch.no_grad():
            q_harm, q = twins(self.target_critic(obs_action).squeeze(-1))
            v_harm, v = self.value(data.obs).squeeze(-1).unbind(1)
            weight = self.weight(q_harm, v_harm, q, v)
        policy_loss = self._update_policy(data.obs, action, weight, noise)
        rows = slice(self.config.critic_rows)
        first = Batch(data.rows[:, rows], data.layout)
        value_loss = self._update_value(first, torch.stack((q_harm, q), 1)[..., rows])
        critic_loss = self._update_critic(first, obs_action[:, rows])
        return {
            "policy_loss": policy_loss,
            "cost_value_loss": value_loss[:, 0],
            "reward_value_loss": value_loss[:, 1],
            "cost_critic_loss": critic_loss[:, 0],
            "reward_critic_loss": critic_loss[:, 1],
            "v_cost": v_harm.mean(-1),
            "v_reward": v.mean(-1),
            "feasible": (v_harm <= self.threshold).float().mean(-1),
            "weight": weight.mean(-1),
        }

    def weight(self, q_harm: Tensor, v_harm: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """How much each row counts in the policy's loss, [R, B]."""
        temperature, floor, most = (self.hp(n) for n in ("cost_temperature", "infeasible_floor", "max_cost_weight"))
        escape = escape_weight(v_harm - q_harm, temperature, floor, most)
        if self.config.weights == "imitation":
            escape = torch.where(q_harm < v_harm, escape, 0.0)
            earn = self.hp("reward_temperature").expand_as(q)
        else:
            earn = awr_weight(q - v, self.hp("reward_temperature"), self.hp("max_reward_weight"))
        safe_earn = torch.where(q_harm <= self.threshold, earn, 0.0)
        return torch.where(v_harm > self.threshold, escape, safe_earn)

    def _update_policy(self, obs: Tensor, action: Tensor, weight: Tensor, noise: Noise) -> Tensor:
        """A step on each half; returns the mean of their losses."""
        losses = []
        for number, half in enumerate((slice(None, obs.shape[1] // 2), slice(obs.shape[1] // 2, None))):
            own = Under(noise, f"half{number}")
            loss = self.policy.loss(obs[:, half], action[:, half], weight[:, half], own)
            self.policy_optimizer.step(loss)
            ema_(self.acting_policy, self.policy, self.config.actor_tau)
            losses.append(loss.detach())
        return 0.5 * (losses[0] + losses[1])

    def _update_value(self, data: Batch, q: Tensor) -> Tensor:
        """One step of both values [R, 2, B] towards their expectiles of the critics' values; returns the losses."""
        levels = torch.stack((1.0 - self.hp("cost_expectile"), self.hp("reward_expectile")), 1)
        loss = expectile_loss(q - self.value(data.obs).squeeze(-1), levels)
        self.value_optimizer.step(loss.sum(1))
        return loss.detach()

    def _update_critic(self, data: Batch, obs_action: Tensor) -> Tensor:
        """One step of both pairs of critics and of their average; returns the losses [R, 2]."""
        discount = self.hp("discount")
        ended = ends(data, self.config.timeouts_terminate)
        with torch.no_grad():
            next_harm, next_v = self.value(data.next_obs).squeeze(-1).unbind(1)
            if self.config.critic == "hj":
                harm = feasible_target(self.violation(data), next_harm, ended, discount)
            else:
                harm = td_target(data.cost, ended, next_harm, discount)
            target = torch.stack((harm, td_target(self.reward_scale * data.reward, ended, next_v, discount)), 1)
        q = self.critic(obs_action).squeeze(-1).unflatten(1, (2, _TWINS))
        loss = (q - target[:, :, None]).square().mean((2, 3))
        self.critic_optimizer.step(loss.sum(1))
        ema_(self.target_critic, self.critic, self.config.tau)
        return loss.detach()

    def violation(self, data: Batch) -> Tensor:
        """The constraint h of each row [R, B]: positive where it is violated."""
        if self.config.constraint == "distance":
            return self.config.keep_off - data.next_obs[..., self._distances].amin(-1)
        return torch.where(data.cost > 0, self.hp("violation"), -1.0)

    def feasible_value(self, obs: Tensor) -> Tensor:
        """V_h of observations [R, B, O]: up to 0 a state can be kept from any violation, [R, B]."""
        return self.value(obs, members=1)[:, 0, :, 0] - self.threshold

    def act(self, x: Obs, noise: ActNoise, mode: str) -> Tensor:
        """The safest of several samples, by the worse of the two critics of violations."""
        normals = noise.normal("candidates", self.config.diffusion_steps, self.config.candidates, self.spec.act_dim)
        return self.choose(x.obs, normals)

    def choose(self, obs: Tensor, normals: Tensor) -> Tensor:
        """The safest of the actions that normals [R, N, T, C, A] become, for observations [R, N, O]: [R, N, A]."""
        action = self.acting_policy.sample(obs, normals, self.config.repeat_last)
        seen = obs[:, :, None].expand(-1, -1, action.shape[2], -1)
        pairs = torch.cat((seen, action), -1).flatten(1, 2)
        harm = self.target_critic(pairs, members=_TWINS).squeeze(-1).amax(1).view(action.shape[:3])
        return safest(action, harm)


def twins(q: Tensor) -> tuple[Tensor, Tensor]:
    """Of four critics [R, 4, B] the worse of the first two, of violations, and the lesser of the others, of rewards."""
    return q[:, :_TWINS].amax(1), q[:, _TWINS:].amin(1)


def safest(action: Tensor, harm: Tensor) -> Tensor:
    """Of candidates [R, N, C, A] the one of least harm [R, N, C]: [R, N, A]."""
    chosen = harm.argmin(-1)[..., None, None].expand(-1, -1, 1, action.shape[-1])
    return action.gather(2, chosen).squeeze(2)


def reward_scale(least: float, greatest: float, horizon: int) -> float:
    """What makes the best logged episode earn about 1 in each step more than the worst."""
    if not greatest > least:
        raise ValueError(f"all logged episodes return {least:g}, a range of 0; set algorithm.scale_rewards=false")
    return horizon / (greatest - least)


def _check(spec: Spec, config: FISOR.Config) -> None:
    choices = {"weights": ("feasibility", "imitation"), "constraint": ("cost", "distance"), "critic": ("hj", "qc")}
    for name, known in choices.items():
        check_choice(name, getattr(config, name), known)
    if config.batch_size % 2 or config.critic_rows > config.batch_size:
        raise ValueError(
            f"expected an even batch_size of at least critic_rows, got {config.batch_size} and {config.critic_rows}"
        )
    if config.constraint == "distance":
        inside = bool(config.distances) and all(0 <= index < spec.obs_dim for index in config.distances)
        if not inside or config.normalize_obs:
            raise ValueError(
                f"constraint=distance reads entries `distances` of a raw observation: expected some of 0 to "
                f"{spec.obs_dim - 1} and normalize_obs=false, got {config.distances} and {config.normalize_obs}"
            )
