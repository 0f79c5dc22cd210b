"""Behaviour cloning: the policy that imitates the data.

Deterministic: mean squared error of tanh(MLP) (the form of CORL and of the TD3+BC paper). Gaussian: maximum
likelihood of a diagonal Gaussian with bounded mean. Every tensor has a leading replica axis R.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from offon.algorithms.choices import check_choice
from offon.algorithms.interface import Algorithm, Obs, Spec
from offon.algorithms.losses import mse_loss
from offon.algorithms.nn import Adam
from offon.algorithms.noise import ActNoise, Noise
from offon.algorithms.policies import DeterministicPolicy, GaussianPolicy
from offon.algorithms.registry import register
from offon.datasets.transitions import Batch


@register("bc", protocols=("offline",))
class BC(Algorithm):
    """Behaviour cloning."""

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        """Defaults follow CORL's BC."""

        RANGES: ClassVar[Mapping[str, str]] = {"hidden_dims": "[1, inf)", "lr": "(0, inf)"}

        policy: str = "deterministic"  # deterministic (mean squared error) or gaussian (maximum likelihood)
        hidden_dims: tuple[int, ...] = (256, 256)  # hidden widths of the policy
        lr: float = 3e-4  # Adam's learning rate
        normalize_obs: bool = True  # as CORL and the TD3+BC paper

    PRESETS: ClassVar[Mapping[str, Mapping]] = {"osrl": {"lr": 1e-3, "batch_size": 512, "normalize_obs": False}}
    config: Config

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        check_choice("policy", config.policy, ("deterministic", "gaussian"))
        kind = GaussianPolicy if config.policy == "gaussian" else DeterministicPolicy
        self.policy = kind(seeds, "policy", (spec.obs_dim, *config.hidden_dims, spec.act_dim))
        self.optimizer = Adam([self.policy], config.lr)

    def update(self, batch: dict[str, Batch], noise: Noise) -> dict[str, Tensor]:
        """One step of imitation."""
        data = batch["data"]
        if isinstance(self.policy, GaussianPolicy):
            loss = self.policy.nll(data.obs, data.action).mean(-1)
        else:
            loss = mse_loss(self.policy(data.obs), data.action)
        self.optimizer.step(loss)
        return {"policy_loss": loss.detach()}

    def act(self, x: Obs, noise: ActNoise, mode: str) -> Tensor:
        """The deterministic action or the Gaussian's mean."""
        return self.policy(x.obs)
