"""A family of policies and the policy that chooses from it, as FamO2O has them on three methods.

One network holds a policy for every coefficient of a range: it sees the coefficient beside the state. A second one, the
balance policy, learns for each state the coefficient whose policy earns the highest value. Every tensor has a leading
replica axis R; replicas never interact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from offon.algorithms.fine_tuning import FineTuning
from offon.algorithms.interface import Obs, Spec
from offon.algorithms.iql import awr_weight
from offon.algorithms.nn import Adam
from offon.algorithms.noise import ActNoise, Noise
from offon.algorithms.sac import actor_loss
from offon.algorithms.squashed import SquashedGaussian, Temperature, squashed_action, temperature_loss
from offon.datasets.transitions import Batch

if TYPE_CHECKING:
    from typing import Self

WIDTH = 6  # numbers that a coefficient is encoded in
_BASE = 10_000.0  # of their wave lengths
TARGET_ENTROPY = -0.5  # of the balance policy, half of its one dimension, before the map into the range
WEIGHTINGS = ("as_paper", "as_code")


def rates() -> Tensor:
    """What a coefficient is multiplied by before its sines and cosines are taken, [3]."""
    return torch.tensor([_BASE ** (-each / WIDTH) for each in range(0, WIDTH, 2)], dtype=torch.float64)


def encode(coefficient: Tensor, rates: Tensor) -> Tensor:
    """Sines and cosines of a coefficient at three rates, in turn: [...], [3] -> [..., 6]."""
    angles = coefficient[..., None] * rates
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(-2)


def in_range(unit: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """From (-1, 1) to (low, high)."""
    return torch.lerp(low, high, 0.5 * (unit + 1.0))


def beyond_range(unit: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The map of the released code on CQL: right for (0, 1), it takes (-1, 1) to (2 low - high, high)."""
    return torch.lerp(low, high, unit)


def family_weight(adv: Tensor, coefficient: Tensor, most: Tensor, weighting: str) -> Tensor:
    """Weights of rows whose policies have these coefficients: [R, B], [R, B], [R, 1] -> [R, B].

    "as_paper": min(exp(coefficient * advantage), most) of the same row. "as_code": its mean over the coefficients of
    all rows, which the released code takes by broadcasting [B] against [B, 1].
    """
    if weighting == "as_paper":
        return awr_weight(adv, coefficient, most)
    return awr_weight(adv[:, None], coefficient[..., None], most[..., None]).mean(1)


def best_value_loss(q: Tensor) -> Tensor:
    """Minus the mean over rows of the least value: [R, E, B] -> [R]."""
    return -q.amin(1).mean(-1)


class Family(FineTuning):
    """What is common to the variants; it stands before the method it changes among the bases of a class."""

    @dataclass(frozen=True)
    class Config(FineTuning.Config):
        """Settings of the family and of the balance policy."""

        RANGES: ClassVar[Mapping[str, str]] = {
            "coefficient_min": "[0, inf)",
            "coefficient_max": "[0, inf)",
            "balance_every": "[1, inf)",
            "balance_lr": "(0, inf)",
        }

        coefficient_min: float = 1.0  # the family's least coefficient: of improvement, against staying with the data
        coefficient_max: float = 5.0  # its greatest
        balance_every: int = 1  # updates between steps of the balance policy; a divisor of 50
        balance_lr: float = 3e-4  # Adam's learning rate of the balance policy and of its temperature
        balance_entropy: bool = False  # the balance policy's entropy is kept at -1/2 by a temperature

        @classmethod
        def tiny(cls) -> Self:
            """The contract suite's."""
            return replace(super().tiny(), balance_lr=3e-3)

    EXTRA_INPUTS = WIDTH
    config: Config
    balance_report: Tensor
    rates: Tensor

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        if bool((self.hp("coefficient_max") < self.hp("coefficient_min")).any()):
            low, high = config.coefficient_min, config.coefficient_max
            raise ValueError(f"expected coefficient_min of at most coefficient_max, got {low} and {high}")
        given, unused = (getattr(each, "temperature", None) for each in (config, type(config)))
        if given != unused:
            raise ValueError(
                f"expected temperature left alone, got {given}: {self.name} has a family of them; "
                "set coefficient_min and coefficient_max"
            )
        self.balance = self._make_balance()
        self.balance_optimizer = Adam([self.balance], config.balance_lr)
        if config.balance_entropy:
            self.balance_temperature = Temperature(len(seeds), 1.0)
            self.balance_temperature_optimizer = Adam([self.balance_temperature], config.balance_lr)
        self.register_buffer("balance_report", torch.zeros(len(seeds), 2))  # loss and mean coefficient, the last ones
        self.register_buffer("rates", rates().to(self.dtype), persistent=False)
        self._online = False

    def _make_balance(self) -> SquashedGaussian:
        """The balance policy, of one action."""
        raise NotImplementedError

    def _family_values(self, obs: Tensor, coefficient: Tensor, normal: Tensor) -> Tensor:
        """Values [R, E, B] of the family's actions, differentiable by the coefficients [R, B]."""
        raise NotImplementedError

    def begin(self, phase: str) -> None:
        """Everything is taken along; online the policy learns at coefficients that the balance policy draws."""
        super().begin(phase)
        self._online = phase == "online"

    # ---- coefficients

    def _mapped(self, unit: Tensor) -> Tensor:
        return in_range(unit, self.hp("coefficient_min"), self.hp("coefficient_max"))

    def _balanced(self, obs: Tensor, normal: Tensor) -> tuple[Tensor, Tensor | None]:
        """Coefficients [R, B] drawn by the balance policy; where its entropy counts, with their log densities.

        Those are densities before the map into the range.
        """
        if not self.config.balance_entropy:
            return self._mapped(squashed_action(self.balance.moments(obs), normal).squeeze(-1)), None
        unit, log_prob = self.balance.sample(obs, normal)
        return self._mapped(unit.squeeze(-1)), log_prob

    def _uniform(self, rows: int, noise: Noise) -> Tensor:
        """Coefficients [R, B] drawn from the range."""
        return torch.lerp(self.hp("coefficient_min"), self.hp("coefficient_max"), noise.uniform("coefficient", rows))

    @torch.no_grad()
    def _training_coefficient(self, data: Batch, noise: Noise) -> Tensor:
        """Where the policy learns, [R, B]: anywhere in the range offline, where the balance policy goes online."""
        rows = data.rows.shape[1]
        if self._online:
            return self._balanced(data.obs, noise.normal("coefficient", rows, 1))[0]
        return self._uniform(rows, noise)

    def _conditioned(self, obs: Tensor, coefficient: Tensor) -> Tensor:
        """What the policy sees: [R, B, O] and [R, B] -> [R, B, O + 6]."""
        return torch.cat((obs, encode(coefficient, self.rates)), -1)

    # ---- the balance policy

    def _update_balance(self, data: Batch, noise: Noise) -> None:
        """One step of the balance policy, where it is its turn."""
        if noise.turn(self.config.balance_every):
            return
        rows = data.rows.shape[1]
        coefficient, log_prob = self._balanced(data.obs, noise.normal("balance", rows, 1))
        normal = noise.normal("balance_action", rows, self.spec.act_dim)
        self._step_balance(self._family_values(data.obs, coefficient, normal), coefficient, log_prob)

    def _step_balance(self, q: Tensor, coefficient: Tensor, log_prob: Tensor | None) -> None:
        """One step on the values [R, E, B] of these coefficients, and of the temperature."""
        if log_prob is None:
            loss = best_value_loss(q)
            self.balance_optimizer.step(loss)
        else:
            loss = actor_loss(q, log_prob, self.balance_temperature.value().detach())
            self.balance_optimizer.step(loss)
            entropy, temperature = -log_prob.detach().mean(-1), self.balance_temperature.value()
            self.balance_temperature_optimizer.step(temperature_loss(temperature, entropy, TARGET_ENTROPY))
        self.balance_report.copy_(torch.stack((loss.detach(), coefficient.detach().mean(-1)), -1))

    def _balance_metrics(self) -> dict[str, Tensor]:
        loss, coefficient = self.balance_report.clone().unbind(-1)
        found = {"balance_loss": loss, "coefficient": coefficient}
        if self.config.balance_entropy:
            found["balance_temperature"] = self.balance_temperature.value().detach().squeeze(-1)
        return found

    def act(self, x: Obs, noise: ActNoise, mode: str) -> Tensor:
        """As the method acts, with the policy of the coefficient that is the balance policy's mode."""
        unit = torch.tanh(self.balance.moments(x.obs)[0]).squeeze(-1)
        return super().act(replace(x, obs=self._conditioned(x.obs, self._mapped(unit))), noise, mode)
