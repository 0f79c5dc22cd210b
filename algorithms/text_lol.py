"""A-LoL and its neighbours on language models: advantage-leftover-lunch RL (Baheti et al., 2024, arXiv 2305.14718).

A response is one action with one reward. Where advantages count, responses whose reward lies below the value of their
prompt are left out, and with them their share of the updates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from offon.algorithms.interface import Spec
from offon.algorithms.noise import Noise
from offon.algorithms.registry import register
from offon.algorithms.sequence_losses import BY_ADVANTAGE, BY_REWARD, Objective, sequence_loss, updates_for
from offon.algorithms.text_method import TEXT, Responses, TextMethod


@register("text_lol", protocols=(TEXT,))
class TextLoL(TextMethod):
    """A-LoL on logged responses; its neighbours are presets."""

    @dataclass(frozen=True)
    class Config(TextMethod.Config):
        """Clip, filter and priorities as published; rates and sizes are those of a small benchmark."""

        RANGES: ClassVar[Mapping[str, str]] = {"clip": "[0, 1)", "kl_weight": "[0, inf)"}
        LATER: ClassVar[tuple[str, ...]] = ("filtered",)

        variant: str = "a_lol"  # or ref_free, sequence, kl, r_lol, weighted_bc, r_gold, nll
        clip: float = 0.9  # ratios stay within 1 - clip ... 1 + clip; 0: as they are
        kl_weight: float = 0.05  # of the mean log-ratio on the data, in variant kl
        prioritized: bool = True  # responses in proportion to what they weigh; else uniform ones
        filtered: bool = True  # responses of negative advantage are left out; else they are made less likely

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        variant: {"variant": variant}
        for variant in ("ref_free", "sequence", "kl", "r_lol", "weighted_bc", "r_gold", "nll")
    }
    config: Config

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        if config.prioritized and not config.filtered:
            raise ValueError(
                "expected algorithm.prioritized=false with algorithm.filtered=false: what is negative has no priority"
            )
        self.objective = Objective(config.variant, config.clip, config.kl_weight, filtered=config.filtered)

    @property
    def stream(self) -> str:
        """Variants draw apart."""
        return self.config.variant

    def row_weights(self, reward: Tensor, value: Tensor) -> Tensor:
        """Advantage or reward, where responses are prioritised."""
        variant = self.config.variant
        if not self.config.prioritized or variant == "nll":
            return torch.ones_like(value)
        return reward.expand_as(value) if variant in BY_REWARD else (reward - value).clamp(min=0.0)

    def updates_of(self, updates: int, reward: Tensor, value: Tensor) -> Tensor:
        """The share of positive advantages, where they count."""
        if self.config.variant not in BY_ADVANTAGE or not self.config.filtered:
            return super().updates_of(updates, reward, value)
        return updates_for(reward > value, updates)

    def update(self, batch: Responses, noise: Noise) -> dict[str, Tensor]:
        """One step on the variant's loss."""
        loss, info = sequence_loss(self.scored(batch), self.objective)
        self.optimizer.step(loss)
        names = ("weight", "at_lower", "at_upper", "positive_advantage", "log_ratio", "effective_rows")
        return {"loss": loss.detach(), **{name: info[name] for name in names}}


@register("text_reference", protocols=(TEXT,))
class TextReference(TextMethod):
    """The reference itself, as it is: what the others are measured against."""

    @dataclass(frozen=True)
    class Config(TextMethod.Config):
        """Nothing of its own."""

    def updates_of(self, updates: int, reward: Tensor, value: Tensor) -> Tensor:
        """None."""
        return torch.zeros_like(super().updates_of(updates, reward, value))

    def update(self, batch: Responses, noise: Noise) -> dict[str, Tensor]:
        """Leaves the policy as it is, and says how likely the responses are to it."""
        with torch.no_grad():
            loss, _ = sequence_loss(self.scored(batch), Objective("nll"))
        return {"loss": loss}
