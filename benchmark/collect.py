"""Collect logged data from our own simulators with scripted behaviour, and write it in NeoRL-2's layout (plus costs).

A behaviour is a hand-written controller with imperfect gains, drawn once per episode, and noise on its actions. So
episodes differ much in return, the mean is mediocre, and a method has something to improve upon; where acting has a
cost, some drawn controllers are careful and some reckless. The recipes below made the files in `datasets/bundled`;
anyone can make them again.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offon.envs import BatchEnv, EnvError, make
from offon.envs.pipeline import DELAY, HISTORY
from offon.envs.point_robot import GOAL, HAZARDS

_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # a fixed date: equal arrays give equal bytes


@dataclass(frozen=True)
class Behaviour:
    """A controller: `gains` has lower and upper bounds; `act` maps obs [n, O] and gains [n] to actions [n, A]."""

    gains: dict[str, tuple[float, float]]  # each drawn uniformly per episode; "noise" is the deviation of the actions
    act: Callable[[Tensor, dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Recipe:
    """What makes one data set; episode k has the environment's seed `seed + k`."""

    name: str
    env_id: str
    episodes: int
    seed: int
    env_options: dict[str, Any] = field(default_factory=dict)


def _push_masses(obs: Tensor, gain: dict[str, Tensor]) -> Tensor:
    """Hold each mass against the springs at its target (roughly), pull it there and damp it."""
    position, velocity, target = obs[:, 0:2], obs[:, 2:4], obs[:, 4:6]
    hold = target * 4.0 - target.flip(1) * 2.0  # the springs' force with both masses at their targets
    force = hold * gain["hold"][:, None] + (target - position) * gain["pull"][:, None]
    return (force - velocity * gain["damp"][:, None]) / 30.0


def _open_gate(obs: Tensor, gain: dict[str, Tensor]) -> Tensor:
    """Move the gate in proportion to the flow still wanted, what is on its way counted in part."""
    outlet, target = obs[:, 0], obs[:, 1]
    # The gate's flow is the outlet's plus this; summed in double, so that the order of the sum leaves no trace.
    on_its_way = obs[:, 2 + HISTORY : 2 + HISTORY + DELAY].double().sum(dim=1).float()
    missing = target + gain["offset"] - outlet - on_its_way * gain["foresight"]
    return (missing * gain["pull"])[:, None]


def _steer(obs: Tensor, gain: dict[str, Tensor]) -> Tensor:
    """Steer for the goal, past any hazard on the way at a distance (a small one leads through it), slower in turns.

    A hazard is passed on the side to which the way to the goal leads, or where `ahead` is large the robot's heading.
    """
    x, y, speed, heading = obs[:, 0], obs[:, 1], obs[:, 2], torch.atan2(obs[:, 4], obs[:, 3])
    aim = torch.atan2(GOAL[1] - y, GOAL[0] - x)
    remaining = torch.hypot(GOAL[0] - x, GOAL[1] - y)
    for hazard_x, hazard_y in HAZARDS * 2:  # past the second one may lie the first
        away = torch.hypot(hazard_x - x, hazard_y - y)
        bearing = torch.atan2(hazard_y - y, hazard_x - x)
        width = torch.asin((gain["distance"] / away).clamp(max=1.0))
        off, ahead = _angle(aim - bearing), _angle(heading - bearing)
        left = torch.lerp(off, ahead, gain["ahead"]) >= 0
        in_the_way = (away < remaining) & (off.abs() < width)
        aim = torch.where(in_the_way, bearing + torch.where(left, width, -width), aim)
    error = _angle(aim - heading)
    wanted = gain["speed"] * error.cos().clamp(min=0.1) ** gain["brake"]
    return torch.stack([(wanted - speed) * gain["push"], error * gain["turn"]], dim=1)


def _angle(angle: Tensor) -> Tensor:
    """The same angle in [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2.0 * math.pi) - math.pi


BEHAVIOURS: dict[str, Behaviour] = {
    "neorl2/DMSD": Behaviour(
        {"hold": (0.8, 1.1), "pull": (5.0, 120.0), "damp": (5.0, 50.0), "noise": (0.05, 0.3)}, _push_masses
    ),
    "neorl2/Pipeline": Behaviour(
        {"pull": (0.005, 0.1), "foresight": (0.25, 1.0), "offset": (-30.0, 30.0), "noise": (0.05, 0.5)}, _open_gate
    ),
    "fisor/PointRobot": Behaviour(
        {
            "distance": (0.4, 1.25),  # kept from the centre of a hazard, whose radius is 0.8
            "ahead": (0.0, 1.0),
            "speed": (0.8, 2.4),
            "brake": (1.0, 4.0),
            "push": (1.0, 4.0),
            "turn": (2.0, 6.0),
            "noise": (0.05, 0.4),
        },
        _steer,
    ),
}
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        # the seeds lie apart from those of training and evaluation
        Recipe("dmsd-small", "neorl2/DMSD", episodes=100, seed=7_000_000),
        Recipe("pipeline-small", "neorl2/Pipeline", episodes=30, seed=8_000_000),
        Recipe("point-robot-small", "fisor/PointRobot", episodes=180, seed=9_000_000, env_options={"start": "mixed"}),
    )
}


def collect(env_id: str, episodes: int, seed: int, env_options: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
    """Run the scripted behaviour; rows in episode order, float32, as in NeoRL-2's files, with costs if there are any.

    An episode depends on `seed + k` only, so more episodes continue the same data set.
    """
    if env_id not in BEHAVIOURS:
        raise EnvError(f"no scripted behaviour for {env_id!r}; there is one for {', '.join(BEHAVIOURS)}")
    env = make(env_id, episodes, **(env_options or {}))
    gains, noise = _draw(BEHAVIOURS[env_id], env, seed)

    def act(obs: Tensor, step: int) -> Tensor:
        return (BEHAVIOURS[env_id].act(obs, gains) + noise[:, step]).clamp(-1.0, 1.0)

    found = play(env, range(seed, seed + episodes), act)
    env.close()
    return found


def play(env: BatchEnv, seeds: Sequence[int], act: Callable[[Tensor, int], Tensor]) -> dict[str, np.ndarray]:
    """Play one episode in every row and return the rows that count, episode by episode, float32.

    Args:
        env: one row for each seed.
        seeds: of the episodes.
        act: observations [n, O] and the number of the step -> actions [n, A] in [-1, 1].
    """
    obs = env.reset(None, seeds)
    steps: list[tuple[Tensor, ...]] = []
    alive, played = torch.ones(env.n, dtype=torch.bool), []
    for step in range(env.spec.horizon):
        action = act(obs, step)
        result = env.step(action)
        cut = result.truncated & ~result.terminated
        costs = (result.cost,) if env.spec.has_cost else ()
        steps.append((obs, action, result.reward, result.obs, result.terminated, cut, *costs))
        played.append(alive)
        obs, alive = result.obs, alive & ~(result.terminated | result.truncated)
        if not alive.any():
            break
    names = ("obs", "action", "reward", "next_obs", "done", "truncated", *(("cost",) if env.spec.has_cost else ()))
    kept = torch.stack(played, dim=1)
    columns = (torch.stack(column, dim=1)[kept] for column in zip(*steps, strict=True))
    return {name: column.numpy().astype(np.float32) for name, column in zip(names, columns, strict=True)}


def collect_recipe(name: str, path: Path) -> dict[str, np.ndarray]:
    """Collect a named data set, write it and return its arrays."""
    if name not in RECIPES:
        raise EnvError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    arrays = collect(recipe.env_id, recipe.episodes, recipe.seed, recipe.env_options)
    write_npz(path, arrays)
    return arrays


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a compressed NPZ in one piece; the same arrays give the same bytes (with the same zlib)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for name, array in arrays.items():
                    member = zipfile.ZipInfo(f"{name}.npy", _ZIP_DATE)
                    archive.writestr(member, _npy(array), zipfile.ZIP_DEFLATED, compresslevel=9)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _draw(behaviour: Behaviour, env: BatchEnv, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Draw each episode's gains and action noise: a dict of [n], and [n, horizon, act_dim]."""
    gains, noise = [], []
    low, high = np.array(list(behaviour.gains.values())).T
    for episode in range(env.n):
        rng = np.random.default_rng([seed + episode, 1])  # 1: another stream than the simulator's
        gains.append(rng.uniform(low, high))
        noise.append(rng.standard_normal((env.spec.horizon, env.spec.act_dim), dtype=np.float32))
    table = torch.from_numpy(np.stack(gains).astype(np.float32))
    named = {name: table[:, column] for column, name in enumerate(behaviour.gains)}
    return named, torch.from_numpy(np.stack(noise)) * named["noise"][:, None, None]
