"""A variational autoencoder of logged actions given observations (Kingma and Welling, 2014), one per replica.

What BCQ (Fujimoto et al., 2019, arXiv 1812.02900) draws likely actions from, and CPQ measures unlikely ones with; sizes
and clamps are OSRL's (Liu et al., 2023, arXiv 2306.09303).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from offon.algorithms.interface import Spec
from offon.algorithms.losses import mse_loss
from offon.algorithms.nn import MLP
from offon.datasets.transitions import Batch

_LOG_STD = (-4.0, 15.0)  # clamp of the encoder's
_LIKELY = 0.5  # latents of likely actions lie within so much of 0


def latent_kl(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL divergence of Gaussians from the standard one, per dimension."""
    return -0.5 * (1.0 + 2.0 * log_std - mean.square() - (2.0 * log_std).exp())


class ActionVAE(torch.nn.Module):
    """A variational autoencoder of actions given observations; two latent dimensions for each of the action."""

    def __init__(self, seeds: Sequence[int], spec: Spec, width: int) -> None:
        super().__init__()
        latent = 2 * spec.act_dim
        self.encoder = MLP(seeds, "encoder", (spec.obs_dim + spec.act_dim, width, width, 2 * latent))
        self.decoder = MLP(seeds, "decoder", (spec.obs_dim + latent, width, width, spec.act_dim))
        self.latent = latent

    def encode(self, obs_action: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-std [R, B, Z] of the latent."""
        mean, log_std = self.encoder(obs_action).chunk(2, -1)
        return mean, torch.nn.functional.hardtanh(log_std, *_LOG_STD)

    def decode(self, obs: Tensor, latent: Tensor) -> Tensor:
        """Actions [R, B, A] in (-1, 1) of latents [R, B, Z]."""
        return torch.tanh(self.decoder(torch.cat((obs, latent), -1)))

    def likely(self, obs: Tensor, normal: Tensor) -> Tensor:
        """Actions [R, B, A] like the data's, for standard normals [R, B, Z], which are clamped to half of one."""
        return self.decode(obs, normal.clamp(-_LIKELY, _LIKELY))

    def loss(self, data: Batch, normal: Tensor, weight: Tensor) -> Tensor:
        """Squared error of the reconstruction plus the weighted divergence, means over rows and dimensions. -> [R]."""
        mean, log_std = self.encode(data.obs_action)
        rebuilt = self.decode(data.obs, mean + log_std.exp() * normal)
        return mse_loss(rebuilt, data.action) + weight.squeeze(-1) * latent_kl(mean, log_std).mean((1, 2))
