"""The networks of the Fusion simulator, the members of an ensemble stacked: one batched product for all of them.

The weights are those of the KSTAR tokamak simulator by Jaemin Seo (MIT licence), as redistributed with NeoRL-2.
Everything is float32 as in the original; only the last scaling and the mean over the ensemble are in doubles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from offon.envs.assets import Asset, find

WEIGHTS = Asset(
    file="neorl2_fusion_weights.npz",
    sha256=("797252f06be00f800dca5503d028d90cb12829218ecf5bb55bb6736871a4b140",),
    cure="get the public repository NeoRL-2 (polixir/NeoRL2) and run: offon env import neorl2/Fusion CHECKOUT "
    "(needs pip install onnx); or put the file into a folder and export OFFON_DATA=that folder",
)
MEMBERS = 10  # networks per ensemble in the original; the steady model is a single one
UNITS = 200  # of every recurrent layer
# Outputs are scaled by these, (standard deviation, mean): beta_n, q95, q0, li; and beta_p.
_STEADY_SCALE = (0.72255576, 1.5622809, 0.96563557, 0.23868018), (1.22379703, 5.2361062, 1.64438005, 1.12040048)
_LSTM_SCALE = (0.74135689, 1.44731883, 0.56747578, 0.23018484), (1.30934765, 5.20082444, 1.47538417, 1.14439883)
_BETA_SCALE = (0.643390272,), (1.021588,)


class Dense(NamedTuple):
    """An affine map per input, then a linear layer, of E members."""

    scale: Tensor  # [E, 1, I]
    shift: Tensor  # [E, 1, I]
    weight: Tensor  # [E, I, O]
    bias: Tensor  # [E, 1, O]

    def __call__(self, x: Tensor) -> Tensor:
        """[E, B, I] -> [E, B, O]; a single member's input [1, B, I] goes to all."""
        return torch.baddbmm(self.bias, x * self.scale + self.shift, self.weight)


class Scaled(NamedTuple):
    """Dense layers with sigmoids between them, then the members' scaled outputs or their mean."""

    layers: list[Dense]
    std: Tensor  # [K] doubles
    mean: Tensor  # [K] doubles

    def each(self, x: Tensor) -> Tensor:
        """[E, B, I] or [1, B, I] -> [E, B, K] in doubles."""
        for layer in self.layers[:-1]:
            x = layer(x).sigmoid_()
        return self.layers[-1](x)[..., : len(self.std)].double() * self.std + self.mean

    def __call__(self, x: Tensor) -> Tensor:
        """[E, B, I] or [1, B, I] -> [B, K] in doubles."""
        return self.each(x).mean(dim=0)


class Recurrence(NamedTuple):
    """An LSTM layer of E members; the gates stand as input, forget, output, cell."""

    into: Dense  # with the affine map before it, [E, I, 4 UNITS]
    weight: Tensor  # [E, UNITS, 4 UNITS]

    def run(self, gates: list[Tensor]) -> list[Tensor]:
        """Return the outputs [E, B, UNITS] of rows whose `into` is given; the first one's is overwritten."""
        output, cell = _cell(gates[0], None)  # from a state of zeros, which needs no product
        outputs = [output]
        for row in gates[1:]:
            output, cell = _cell(torch.baddbmm(row, output, self.weight), cell)
            outputs.append(output)
        return outputs


def _cell(gates: Tensor, cell: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the output and the doubled cell [E, B, UNITS] from gates [E, B, 4 UNITS], which are overwritten.

    tanh(x) is written 2 sigmoid(2x) - 1, as torch takes four times as long over a tanh; `_arrange` doubles the columns
    of the cell's input, which is exact.
    """
    admit, forget, emit, fresh = gates.sigmoid_().split(UNITS, dim=-1)
    fresh.mul_(4.0).sub_(2.0)  # twice the tanh
    cell = admit * fresh if cell is None else (forget * cell).addcmul_(admit, fresh)
    return cell.sigmoid().mul_(2.0).sub_(1.0).mul_(emit), cell


class Recurrent(NamedTuple):
    """The recurrent networks of E members."""

    first: Recurrence
    second: Recurrence
    head: Scaled

    def run(self, gates: list[Tensor]) -> Tensor:
        """Return the members' outputs [E, B, 4] in doubles; gates [E, B, 4 UNITS] of each row, oldest first."""
        hidden = torch.cat(self.first.run(gates), dim=1)  # [E, rows * B, UNITS]
        rows = self.second.into(hidden).chunk(len(gates), dim=1)
        return self.head.each(self.second.run(list(rows))[-1])


class Networks:
    """The steady model, the recurrent ensemble and the ensemble for beta_p."""

    def __init__(
        self, device: torch.device, members: int = MEMBERS, arrays: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Take the weights of the first `members` of each ensemble, from the file unless they are given."""
        if arrays is None:
            with np.load(find(WEIGHTS), allow_pickle=False) as file:
                arrays = dict(file)
        steady, beta, lstm = (
            _stack(arrays, kind, count, device) for kind, count in (("nn", 1), ("bpw", members), ("lstm", members))
        )
        self.steady = _scaled([_dense(steady, i, i) for i in range(4)], *_STEADY_SCALE)
        self.beta = _scaled([_dense(beta, i, i) for i in range(3)], *_BETA_SCALE)
        # A core's cache holds the weights of one member; a GPU is the busier the more go together.
        together = 1 if device.type == "cpu" else members
        self._groups = [_recurrent(lstm, slice(at, at + together)) for at in range(0, members, together)]

    def gates_of(self, rows: Tensor) -> list[Tensor]:
        """What a row [B, 21] gives to the first layer's gates, per group of members [E, B, 4 UNITS]."""
        return [group.first.into(rows[None]) for group in self._groups]

    def recur(self, window: list[list[Tensor]]) -> Tensor:
        """Gates of each row, oldest first and used up -> beta_n, q95, q0, li: [B, 4] in doubles."""
        outputs = [group.run(list(gates)) for group, gates in zip(self._groups, zip(*window, strict=True), strict=True)]
        return torch.cat(outputs).mean(dim=0)


def _stack(file: Mapping[str, np.ndarray], kind: str, count: int, device: torch.device) -> dict[str, Tensor]:
    """Return the arrays of the first `count` networks of a kind, stacked, vectors as [E, 1, I]."""
    names = [key.removeprefix(f"{kind}0/") for key in file if key.startswith(f"{kind}0/")]
    stacks = {name: np.stack([file[f"{kind}{member}/{name}"] for member in range(count)]) for name in names}
    return {
        name: torch.from_numpy(array if array.ndim == 3 else array[:, None]).to(device)
        for name, array in stacks.items()
    }


def _recurrent(stack: dict[str, Tensor], members: slice) -> Recurrent:
    part = {name: tensor[members] for name, tensor in stack.items()}
    head = _scaled([_dense(part, 2, 0), _dense(part, 3, 1)], *_LSTM_SCALE)
    return Recurrent(_recurrence(part, 0), _recurrence(part, 1), head)


def _dense(stack: dict[str, Tensor], norm: int, layer: int) -> Dense:
    parts = (f"bn{norm}_scale", f"bn{norm}_shift", f"fc{layer}_w", f"fc{layer}_b")
    return Dense(*(stack[part] for part in parts))


def _recurrence(stack: dict[str, Tensor], layer: int) -> Recurrence:
    into = [stack[part] for part in (f"bn{layer}_scale", f"bn{layer}_shift")]
    weights = [_arrange(stack[f"lstm{layer}_{part}"]) for part in ("wx", "b", "wh")]
    return Recurrence(Dense(*into, *weights[:2]), weights[2])


def _arrange(columns: Tensor) -> Tensor:
    """Order the gates input, forget, output, cell instead of input, forget, cell, output, and double the last."""
    admit, forget, fresh, emit = columns.split(UNITS, dim=-1)
    return torch.cat([admit, forget, emit, fresh * 2.0], dim=-1)


def _scaled(layers: list[Dense], std: tuple[float, ...], mean: tuple[float, ...]) -> Scaled:
    device = layers[0].weight.device
    return Scaled(layers, *(torch.tensor(part, dtype=torch.float64, device=device) for part in (std, mean)))
