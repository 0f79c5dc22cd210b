"""Corrupted data: some rows have observation, action, reward or successor changed, by chance or against a Q.

The protocol of Yang et al., 2023 (arXiv 2310.12955). Every row is attacked with probability `rate`, anew for each
element; terminations, episodes and rows that are not attacked stay as they were to the bit. An attack against a value
function takes that function as an argument: nothing is trained here.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offon.datasets.errors import DataError
from offon.datasets.transitions import Transitions, column_moments

ELEMENTS = {"obs": "obs", "action": "action", "reward": "reward", "dynamics": "next_obs"}  # attack -> column, in order
ATTACKS = ("none", *ELEMENTS, "mixed")
MODES = ("random", "adversarial")
REWARD_SPAN = 30.0  # random rewards are uniform in +-30 scale, whatever the data's
PGD_STEPS = 100
_STEP = 0.01  # of a PGD step, in scales
_CHUNKS = 10  # in which attacked rows are descended
_MARK = "corruption="  # what the entry of DataIdentity.transforms begins with


@dataclass(frozen=True)
class Corruption:
    """What is done to logged data before anything else."""

    attack: str = "none"  # none, obs, action, reward, dynamics (next observations) or mixed (all four, in this order)
    mode: str = "random"  # random, or adversarial: rewards change sign, the rest lowers the values of a trained critic
    rate: float = 0.3  # chance of each row to be attacked
    scale: float = 1.0  # largest change in standard deviations; rewards: uniform in +-30 scale, or times -scale
    seed: int = 0  # of the choice of rows and of the noise; one corrupted data set for all seeds of a run

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        for name, known in (("attack", ATTACKS), ("mode", MODES)):
            value = getattr(self, name)
            if value not in known:
                near = difflib.get_close_matches(str(value), known, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise DataError(f"expected corruption.{name} among {', '.join(known)}, got {value!r}{hint}")
        if not 0.0 <= self.rate <= 1.0:
            raise DataError(f"expected corruption.rate in [0, 1], got {self.rate}")
        if not self.scale >= 0.0:
            raise DataError(f"expected corruption.scale of 0 or more, got {self.scale}")
        if not 0 <= self.seed < 2**32:
            raise DataError(f"expected corruption.seed from 0 to 2^32 - 1, got {self.seed}")

    @property
    def elements(self) -> tuple[str, ...]:
        """What is attacked, in order; nothing at a rate of 0."""
        if self.attack == "none" or self.rate == 0.0:
            return ()
        return tuple(ELEMENTS) if self.attack == "mixed" else (self.attack,)

    @property
    def needs_victim(self) -> bool:
        """Whether it is an attack on a value function."""
        return self.mode == "adversarial" and bool(set(self.elements) - {"reward"})


@dataclass(frozen=True)
class Victim:
    """The value function that an attack lowers, and the policy that goes with it; both must carry gradients."""

    value: Callable[[Tensor, Tensor], Tensor]  # obs [n, O], action [n, A] -> mean over the critics [n]
    act: Callable[[Tensor, Tensor], Tensor]  # obs [n, O], standard normals [n, A] -> sampled actions [n, A]
    facts: tuple[tuple[str, Any], ...] = ()  # what it is, for the identity of the data


def corrupt(transitions: Transitions, corruption: Corruption, victim: Victim | None = None) -> Transitions:
    """Return the corrupted transitions; their identity says how, and their behaviour return stays that of the log.

    Args:
        transitions: as logged, neither normalised nor with other rewards.
        corruption: what to do.
        victim: for adversarial attacks; it takes and gives tensors on the CPU.
    """
    if not corruption.elements:
        return transitions
    if corruption.needs_victim and victim is None:
        raise DataError(f"an adversarial attack on {corruption.attack} needs a value function to attack; give one")
    rng = np.random.RandomState(corruption.seed)
    generator = torch.Generator().manual_seed(corruption.seed)
    found = transitions
    for element in corruption.elements:  # a later attack sees what earlier ones left
        rows = attacked_rows(rng, found.size, corruption.rate)
        found = _attack(found, element, rows, corruption, rng, generator, victim)
    return replace(
        found,
        recorded_return=transitions.behaviour_return,
        identity=transitions.identity.extended(entry(corruption, victim.facts if victim else ())),
    )


def entry(corruption: Corruption, facts: Sequence[tuple[str, Any]] = ()) -> str:
    """Return what a corruption adds to the transforms of an identity: JSON behind a mark, the same for the same."""
    plain = {name: value for name, value in asdict(corruption).items() if name in Corruption.__dataclass_fields__}
    known = facts if corruption.needs_victim else ()
    return _MARK + json.dumps(plain | dict(known), sort_keys=True)


def corruption_of(transforms: Sequence[str]) -> dict[str, Any]:
    """Return what `entry` noted among the transforms of an identity; empty for clean data."""
    noted = [text.removeprefix(_MARK) for text in transforms if text.startswith(_MARK)]
    return json.loads(noted[0]) if noted else {}


def is_noted(transform: str) -> bool:
    """Return whether an entry of DataIdentity.transforms is a corruption."""
    return transform.startswith(_MARK)


def attacked_rows(rng: np.random.RandomState, size: int, rate: float) -> np.ndarray:
    """Return the numbers of the attacked rows: each with the chance `rate`, so their number is binomial."""
    return np.flatnonzero(rng.random_sample(size) < rate)


def _attack(
    found: Transitions,
    element: str,
    rows: np.ndarray,
    corruption: Corruption,
    rng: np.random.RandomState,
    generator: torch.Generator,
    victim: Victim | None,
) -> Transitions:
    column = getattr(found, ELEMENTS[element])
    chosen, scale = torch.from_numpy(rows), corruption.scale
    before = column[chosen]
    if element == "reward":
        if corruption.mode == "random":
            after = torch.from_numpy(rng.uniform(-REWARD_SPAN * scale, REWARD_SPAN * scale, len(rows)))
        else:
            after = -scale * before.double()
    else:
        std = column_moments(column)[1]  # of the whole column as it is now
        if corruption.mode == "random":
            draws = torch.from_numpy(rng.uniform(-scale, scale, tuple(before.shape)))
        else:
            assert victim is not None
            draws = adversarial_draws(found, element, chosen, std.float(), scale, generator, victim).double()
        after = before.double() + draws * std
    changed = column.clone()
    changed[chosen] = after.float()
    return replace(found, **{ELEMENTS[element]: changed})


def adversarial_draws(
    found: Transitions,
    element: str,
    rows: Tensor,
    std: Tensor,
    scale: float,
    generator: torch.Generator,
    victim: Victim,
) -> Tensor:
    """Return changes in standard deviations [n, D], at most `scale`, that lower the victim's values.

    The start holds the standard deviation once more, as in the released code: it may lie outside the box, and the first
    step brings it back. Of a next observation the value is that of the action which the victim's policy samples there,
    with a gradient through the policy; the released code hands the critic the policy's whole output, and stops.
    """
    obs, action, next_obs = found.obs[rows], found.action[rows], found.next_obs[rows]
    width = action.shape[1]

    def objective(index: Tensor) -> Callable[[Tensor], Tensor]:
        def value(change: Tensor) -> Tensor:
            if element == "obs":
                return victim.value(obs[index] + change, action[index]).mean()
            if element == "action":
                return victim.value(obs[index], action[index] + change).mean()
            moved = next_obs[index] + change
            sampled = victim.act(moved, torch.randn(len(index), width, generator=generator))
            return victim.value(moved, sampled).mean()

        return value

    start = (2.0 * torch.rand(len(rows), len(std), generator=generator) - 1.0) * scale * std
    size = max(1, len(rows) // _CHUNKS)
    stops = [size * number for number in range(1, _CHUNKS) if size * number < len(rows)]
    chunks = torch.tensor_split(torch.arange(len(rows)), stops)
    return torch.cat([descend(objective(index), start[index], std, scale) for index in chunks])


def descend(
    objective: Callable[[Tensor], Tensor], start: Tensor, std: Tensor, scale: float, steps: int = PGD_STEPS
) -> Tensor:
    """Return changes, in standard deviations, after projected steps down the objective of change * std."""
    change = start
    for _ in range(steps):
        change = change.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(objective(change * std), change)
        change = (change.detach() + fresh_adam_step(gradient, _STEP * scale)).clamp_(-scale, scale)
    return change.detach()


def fresh_adam_step(gradient: Tensor, lr: float) -> Tensor:
    """Return the first step of Adam: nearly the sign of the gradient times the rate."""
    return -lr * gradient / (gradient.abs() + 1e-8)


def describe(noted: dict[str, Any]) -> str:
    """Return a corruption as `corruption_of` gave it in words; "none" for clean data."""
    if not noted:
        return "none"
    further = f", seed {noted['seed']}" if noted["seed"] else ""
    victim = f", against {noted['victim']} {noted['victim_sha256'][:8]}" if "victim_sha256" in noted else ""
    return f"{noted['mode']} {noted['attack']}, rate {noted['rate']:g}, scale {noted['scale']:g}{further}{victim}"
