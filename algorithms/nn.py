"""Networks, optimiser and target averaging with a leading replica axis R; replicas never interact."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offon.algorithms.noise import Noise
from offon.algorithms.perceptron import perceptron
from offon.counter import key_of

_CUT_NORMAL_STD = 0.8796256610342398  # standard deviation of a standard normal cut at two


def generator_of(seed: int, *names: str) -> torch.Generator:
    """Where a replica's initial weights of some name come from."""
    return torch.Generator().manual_seed(key_of(seed, "init", *names) & 0x7FFFFFFFFFFFFFFF)


def dropped(x: Tensor, rate: float, noise: Noise | None, name: str) -> Tensor:
    """Dropout of [R, ...], where there is noise."""
    if noise is None or not rate:
        return x
    return x * (noise.keep(name, 1.0 - rate, *x.shape[1:]) / (1.0 - rate))


def _cut_normal_(weight: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Normals cut at two standard deviations; those beyond are drawn again. Torch's own draws depend on its version."""
    weight.normal_(0.0, std, generator=generator)
    while (beyond := weight.abs() > 2.0 * std).any():
        weight.copy_(torch.where(beyond, torch.empty_like(weight).normal_(0.0, std, generator=generator), weight))
    return weight


def _init_weight(init: str, fan_in: int, fan_out: int, generator: torch.Generator) -> Tensor:
    weight = torch.empty(fan_in, fan_out)
    if init == "torch":  # torch.nn.Linear's default: U(+-1/sqrt(fan_in)) for weights and biases
        bound = 1.0 / math.sqrt(fan_in)
        return weight.uniform_(-bound, bound, generator=generator)
    if init == "orthogonal":  # gain sqrt(2) in every layer, biases zero
        return torch.nn.init.orthogonal_(weight, math.sqrt(2.0), generator=generator)
    if init == "xavier":  # Glorot and Bengio's uniform, gain 1, biases zero
        return torch.nn.init.xavier_uniform_(weight, generator=generator)
    if init == "lecun":  # flax's default: normal of variance 1 / fan_in, cut at two standard deviations, biases zero
        std = 1.0 / math.sqrt(fan_in) / _CUT_NORMAL_STD
        return _cut_normal_(weight, std, generator)
    if init in ("tenth", "tenth_fan_out"):  # like torch's, biases 0.1; EDAC's critics take the wrong fan
        bound = 1.0 / math.sqrt(fan_in if init == "tenth" else fan_out)
        return weight.uniform_(-bound, bound, generator=generator)
    known = "'torch', 'orthogonal', 'xavier', 'lecun', 'tenth' or 'tenth_fan_out'"
    raise ValueError(f"expected init {known}, got {init!r}")


def _init_bias(init: str, fan_in: int, fan_out: int, generator: torch.Generator) -> Tensor:
    if init == "torch":
        bound = 1.0 / math.sqrt(fan_in)
        return torch.empty(1, fan_out).uniform_(-bound, bound, generator=generator)
    return torch.full((1, fan_out), 0.1 if init.startswith("tenth") else 0.0)


def _init_output(spec: Output, fan_in: int, fan_out: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    weight = torch.empty(fan_in, fan_out)
    if spec.gain is not None:
        return torch.nn.init.orthogonal_(weight, spec.gain, generator=generator), torch.zeros(1, fan_out)
    if spec.xavier is not None:
        return torch.nn.init.xavier_uniform_(weight, spec.xavier, generator=generator), torch.zeros(1, fan_out)
    if spec.variance is not None:
        bound = math.sqrt(3.0 * spec.variance / fan_in)
        return weight.uniform_(-bound, bound, generator=generator), torch.zeros(1, fan_out)
    assert spec.bound is not None
    weight.uniform_(-spec.bound, spec.bound, generator=generator)
    return weight, torch.empty(1, fan_out).uniform_(-spec.bound, spec.bound, generator=generator)


@dataclass(frozen=True)
class Output:
    """How the last layer starts, where it differs; one of these."""

    gain: float | None = None  # orthogonal, with zero biases
    bound: float | None = None  # weights and biases uniform within it
    xavier: float | None = None  # gain of Glorot's uniform, with zero biases
    variance: float | None = None  # uniform of this variance over the fan-in, with zero biases


@dataclass(frozen=True)
class Norm:
    """Layer normalisation of hidden layers."""

    eps: float = 1e-5
    after: bool = False  # after the ReLU, not before it


class MLP(torch.nn.Module):
    """R (or R x E) multilayer perceptrons with ReLU (or tanh) between layers.

    Weights are [R, in, out] ([R, E, in, out] with an ensemble). The initial weights of a replica depend on its seed
    and the net's name alone, so two nets of one shape need two names.

    Args:
        seeds: one seed per replica.
        name: part of the seed of the initial weights and of the dropout masks.
        sizes: input width, hidden widths, output width.
        ensemble: number of members E, each with its own initial weights; None for a plain net.
        layer_norm: LayerNorm after each hidden linear layer, before the ReLU; a Norm says more.
        dropout: rate after each hidden ReLU; applied only where `noise` is passed to `forward`.
        init: "torch" (torch.nn.Linear's default), "orthogonal" (gain sqrt(2)), "xavier" (uniform, gain 1) or "lecun"
            (cut normal), these three with zero biases, or "tenth" (torch's weights, biases 0.1), in every layer.
        output: how the last layer starts, where it differs.
        trunk: the last layer is a hidden one too: normalised and followed by a ReLU.
        last_hidden: how the layer before the last starts, where it differs.
        tanh: instead of ReLU.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        name: str,
        sizes: Sequence[int],
        ensemble: int | None = None,
        layer_norm: bool | Norm = False,
        dropout: float = 0.0,
        init: str = "torch",
        output: Output | None = None,
        trunk: bool = False,
        last_hidden: Output | None = None,
        tanh: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.sizes, self.ensemble, self.dropout, self.tanh = name, tuple(sizes), ensemble, dropout, tanh
        self.norm, self.trunk = layer_norm if isinstance(layer_norm, Norm) else Norm(), trunk
        members = range(ensemble or 1)
        weights, biases = [], []
        for layer, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            layer_weights, layer_biases = [], []
            for seed in seeds:
                for member in members:
                    generator = generator_of(seed, name, str(member), str(layer))
                    own = {len(sizes) - 2: output, len(sizes) - 3: last_hidden}.get(layer)
                    if own is not None:
                        weight, bias = _init_output(own, fan_in, fan_out, generator)
                    else:
                        weight = _init_weight(init, fan_in, fan_out, generator)
                        bias = _init_bias(init, fan_in, fan_out, generator)
                    layer_weights.append(weight)
                    layer_biases.append(bias)
            lead = (len(seeds),) if ensemble is None else (len(seeds), ensemble)
            weights.append(torch.nn.Parameter(torch.stack(layer_weights).view(*lead, fan_in, fan_out)))
            biases.append(torch.nn.Parameter(torch.stack(layer_biases).view(*lead, 1, fan_out)))
        self.weights, self.biases = torch.nn.ParameterList(weights), torch.nn.ParameterList(biases)
        self.norms = torch.nn.ParameterList()
        if layer_norm:
            for width in sizes[1:] if trunk else sizes[1:-1]:
                scale = torch.nn.Parameter(torch.ones(*lead, 1, width))
                self.norms.extend([scale, torch.nn.Parameter(torch.zeros(*lead, 1, width))])

    def forward(
        self, x: Tensor, noise: Noise | None = None, members: int | Tensor | None = None, frozen: bool = False
    ) -> Tensor:
        """[R, B, in] -> [R, B, out], or [R, E, B, out] with an ensemble (then x may also be [R, E, B, in]).

        Args:
            x: inputs.
            noise: where given, dropout is applied.
            members: only the first so many of an ensemble, or those of these numbers [R, K], int64.
            frozen: the parameters get no gradient (a policy's loss through its critic).
        """
        replicas, batch = x.shape[0], x.shape[-2]
        ensemble = members.shape[1] if isinstance(members, Tensor) else members or self.ensemble
        if ensemble is not None:
            if x.dim() == 3:
                x = x.unsqueeze(1).expand(-1, ensemble, -1, -1)
            x = x.reshape(replicas * ensemble, batch, x.shape[-1])
        weights, biases = self._stacked(self.weights, members, frozen), self._stacked(self.biases, members, frozen)
        if len(self.norms) or self.trunk or (noise is not None and self.dropout):
            norms = self._stacked(self.norms, members, frozen)
            x = self._layer_by_layer(x, weights, biases, norms, noise, ensemble)
        else:
            x = perceptron(x, weights, biases, self.tanh)
        return x if ensemble is None else x.view(replicas, ensemble, batch, -1)

    def input_gradient(self, x: Tensor, first: int) -> Tensor:
        """Gradients [R, E, B, in - first] of an ensemble's one output by the inputs from `first` on, for x [R, B, in].

        They are differentiable by the weights: around an input each open ReLU is linear and each closed one is not
        there, so the gradient is a product of weights. For nets without normalisation.
        """
        assert self.ensemble and not (len(self.norms) or self.trunk or self.tanh) and self.sizes[-1] == 1
        weights, biases = self._stacked(self.weights, None, False), self._stacked(self.biases, None, False)
        rows = x.shape[-2]
        is_open = []
        with torch.no_grad():
            seen = x[:, None].expand(-1, self.ensemble, -1, -1).flatten(0, 1)
            for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
                seen = torch.baddbmm(bias, seen, weight).clamp_(min=0.0)
                is_open.append(seen > 0)
        weights[0] = weights[0][:, first:]
        gradient = weights[-1].transpose(1, 2).expand(-1, rows, -1)
        for weight, through in zip(weights[-2::-1], reversed(is_open), strict=True):
            gradient = torch.bmm(gradient * through, weight.transpose(1, 2))
        return gradient.view(x.shape[0], self.ensemble, rows, -1)

    def _stacked(
        self, parameters: torch.nn.ParameterList, members: int | Tensor | None, frozen: bool
    ) -> list[Tensor]:
        """The parameters as [R, ...] or [R * E, ...]."""
        chosen = [p.detach() if frozen else p for p in parameters]
        if self.ensemble is None:
            return chosen
        if isinstance(members, Tensor):
            replica = torch.arange(len(members), device=members.device)[:, None]
            return [p[replica, members].flatten(0, 1) for p in chosen]
        return [p[:, :members].flatten(0, 1) if members else p.flatten(0, 1) for p in chosen]

    def _layer_by_layer(
        self,
        x: Tensor,
        weights: list[Tensor],
        biases: list[Tensor],
        norms: list[Tensor],
        noise: Noise | None,
        ensemble: int | None,
    ) -> Tensor:
        """The same function with LayerNorm and dropout between the layers."""
        last = len(weights) - 1
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if layer == last and not self.trunk:
                break
            if norms and not self.norm.after:
                x = self._normalized(x, norms, layer)
            x = torch.tanh_(x) if self.tanh else torch.relu_(x)
            if norms and self.norm.after:
                x = self._normalized(x, norms, layer)
            if noise is not None and self.dropout:
                rows = () if ensemble is None else (ensemble,)
                keep = noise.keep(f"{self.name}/dropout{layer}", 1.0 - self.dropout, *rows, *x.shape[1:])
                x = x * (keep.view(x.shape) / (1.0 - self.dropout))
        return x

    def _normalized(self, x: Tensor, norms: list[Tensor], layer: int) -> Tensor:
        scale, shift = norms[2 * layer : 2 * layer + 2]
        return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=self.norm.eps) * scale + shift


class Adam(torch.nn.Module):
    """Adam (Kingma and Ba, 2015) over the parameters of some modules, each with a leading replica axis.

    Moments and the update counter are buffers, so they are part of `state_dict()`.

    Args:
        modules: modules whose parameters are optimised.
        lr: learning rate, one for all replicas.
        cosine_updates: if given, the rate falls from `lr` to 0 along half a cosine over that many updates (and stays
            at 0); update 1 runs at `lr`.
        max_grad_norm: per-replica limit on the global gradient norm.
        beta1: decay of the first moment.
        weight_decay: decoupled from the gradient (AdamW, Loshchilov and Hutter, 2019).
        warmup_updates: over so many updates the rate rises linearly to `lr`; the first runs at `lr` / warmup_updates.
        stacked: False where the parameters are of one replica and have no axis for it.
    """

    count: Tensor
    _ones: Tensor
    _half_lr: Tensor

    def __init__(
        self,
        modules: Iterable[torch.nn.Module],
        lr: float,
        eps: float = 1e-8,
        cosine_updates: int | None = None,
        max_grad_norm: float | None = None,
        beta1: float = 0.9,
        weight_decay: float = 0.0,
        warmup_updates: int | None = None,
        stacked: bool = True,
    ) -> None:
        super().__init__()
        self.beta1, self.weight_decay, self.warmup_updates, self.stacked = beta1, weight_decay, warmup_updates, stacked
        if not isinstance(lr, int | float):
            raise TypeError(f"expected one learning rate for all replicas, got {lr!r}: sweep it with a comma list")
        self.lr, self.eps, self.cosine_updates, self.max_grad_norm = float(lr), eps, cosine_updates, max_grad_norm
        self._params: list[Tensor] = [parameter for module in modules for parameter in module.parameters()]
        for index, parameter in enumerate(self._params):
            self.register_buffer(f"exp_avg_{index}", torch.zeros_like(parameter, requires_grad=False))
            self.register_buffer(f"exp_avg_sq_{index}", torch.zeros_like(parameter, requires_grad=False))
        self.register_buffer("_ones", torch.ones(self._params[0].shape[0] if stacked else 1), persistent=False)
        self.register_buffer("_half_lr", torch.tensor(0.5 * self.lr), persistent=False)
        self.register_buffer("count", torch.zeros(()))  # float32: exact up to 2^24 updates, what the fused kernel takes

    def step(self, loss: Tensor) -> None:
        """One update on `loss` [R]: its sum over replicas is differentiated, so replicas stay independent."""
        found = torch.autograd.grad(loss, self._params, self._ones)
        self._update([grad.contiguous() for grad in found])  # the fused kernel does not read strides

    def reset(self, keep: Tensor | None = None) -> None:
        """Forget the moments and the number of updates; or, with a device scalar, multiply them by it (0 or 1)."""
        names = (f"{kind}_{index}" for kind in ("exp_avg", "exp_avg_sq") for index in range(len(self._params)))
        state = [self.count, *(getattr(self, name) for name in names)]
        if keep is None:
            torch._foreach_zero_(state)
        else:
            torch._foreach_mul_(state, keep)

    def coast(self) -> None:
        """One update with a gradient of zero: moments decay and parameters move on, as where a loss leaves them out."""
        self._update([torch.zeros_like(parameter) for parameter in self._params])

    def rate(self) -> float | Tensor:
        """The learning rate of the next update."""
        if self.cosine_updates is None:
            return self.lr
        progress = (self.count * (math.pi / self.cosine_updates)).clamp_(max=math.pi)
        return torch.addcmul(self._half_lr, self._half_lr, torch.cos(progress))

    def _update(self, grads: list[Tensor]) -> None:
        with torch.no_grad():
            if self.max_grad_norm is not None:
                self._clip(grads, self.max_grad_norm)
            lr = self.rate()
            self.count.add_(1.0)
            if self.warmup_updates is not None:
                lr = lr * (self.count / self.warmup_updates).clamp_(max=1.0)
            count = len(self._params)
            fused = torch._fused_adamw_ if self.weight_decay else torch._fused_adam_
            fused(
                self._params,
                grads,
                [getattr(self, f"exp_avg_{index}") for index in range(count)],
                [getattr(self, f"exp_avg_sq_{index}") for index in range(count)],
                [],
                [self.count] * count,
                lr=lr,
                beta1=self.beta1,
                beta2=0.999,
                weight_decay=self.weight_decay,
                eps=self.eps,
                amsgrad=False,
                maximize=False,
            )

    def _clip(self, grads: list[Tensor], limit: float) -> None:
        rows = [grad.flatten(1) if self.stacked else grad.view(1, -1) for grad in grads]
        squares = torch.stack([row.square().sum(1) for row in rows]).sum(0)  # [R]
        scale = (limit / (squares.sqrt() + 1e-6)).clamp_(max=1.0)
        for row in rows:
            row.mul_(scale[:, None])


def ema_(target: torch.nn.Module, online: torch.nn.Module, tau: float) -> None:
    """Target <- (1 - tau) target + tau online, in place."""
    if not isinstance(tau, int | float):
        raise TypeError(f"expected one rate of the average for all replicas, got {tau!r}: sweep it with a comma list")
    with torch.no_grad():
        torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), tau)
