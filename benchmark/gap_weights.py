"""`offon gap`: whether H2O's weights find the transitions that a simulator gets wrong.

The policy of a run plays in the simulator that it learned in. At every step the true environment is put into the same
state and does the same action, so the error of each simulated transition is known, which the method never is told.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from offon import envs
from offon.algorithms.h2o import H2O
from offon.algorithms.noise import ActNoise
from offon.benchmark import seeds
from offon.benchmark.builder import Loaded, job_data
from offon.benchmark.drawing import png_of, style
from offon.benchmark.files import write_bytes
from offon.benchmark.load import LoadedRun, load
from offon.benchmark.rollout import first_obs

_PHASE = "gap"
_LOGGED_ROWS = 10_000
_GROUPS = 10  # of simulated transitions by their error, in the plot


@dataclass(frozen=True)
class Weighed:
    """What one replica's classifiers say of simulated [N] and logged [M] transitions."""

    seed: int
    error: np.ndarray  # [N] distance of the simulated from the true successor, in standard deviations of the data
    importance: np.ndarray  # [N] w of the simulated ones
    gap: np.ndarray  # [N] u of the simulated ones
    logged_importance: np.ndarray  # [M]
    logged_gap: np.ndarray  # [M]

    @property
    def facts(self) -> dict[str, float]:
        """Rank correlations with the error, which ought to be below 0 for w and above for u, and means."""
        return {
            "seed": self.seed,
            "transitions": len(self.error),
            "mean_error": float(self.error.mean()),
            "error_with_importance": _rank_correlation(self.error, self.importance),
            "error_with_gap": _rank_correlation(self.error, self.gap),
            "importance_simulated": float(self.importance.mean()),
            "importance_logged": float(self.logged_importance.mean()),
            "gap_simulated": float(self.gap.mean()),
            "gap_logged": float(self.logged_gap.mean()),
        }


def show(run: str, out: Path, episodes: int, plot: Path | None, as_json: bool) -> int:
    """Weigh transitions with every replica of a run, print what came out and draw it.

    Args:
        run: folder or id.
        out: results folder of an id.
        episodes: played by each replica.
        plot: PNG to write; None: gap-RUN.png here.
        as_json: print JSON.
    """
    loaded = load(run, out)
    found = weigh(loaded, episodes)
    if as_json:
        print(json.dumps([each.facts for each in found], indent=1))
    else:
        for each in found:
            print(_sentence(each.facts))
    target = plot or Path(f"gap-{loaded.job.run_id}.png")
    write_bytes(target, draw(found, f"{loaded.job.label}, {loaded.job.task['name']}, {_where(loaded)}"))
    if not as_json:
        print(f"wrote {target}")
    return 0


def weigh(loaded: LoadedRun, episodes: int) -> list[Weighed]:
    """What the classifiers of each replica say of transitions of its own policy, and of logged ones.

    Raises:
        ValueError: if the run is not H2O's, or acted in the true environment, or neither simulator can be put back.
    """
    method, data = loaded.policy.method, job_data(loaded.job)
    if not isinstance(method, H2O) or not isinstance(data, Loaded):
        raise ValueError(f"expected a run of h2o, whose classifiers weigh transitions, got one of {method.name}")
    if "acting_options" not in loaded.job.settings:
        raise ValueError("the run acted in the true environment: there is no gap; train it with dynamics.KEY=")
    deviation = data.moments["obs_std"] + 1e-6
    rows = np.linspace(0, data.original.size - 1, min(_LOGGED_ROWS, data.original.size)).astype(np.int64)
    original = data.original
    logged = tuple(column[rows] for column in (original.obs, original.action, original.next_obs))
    found = []
    for replica, seed in enumerate(loaded.seeds):
        obs, action, simulated, true = _play(loaded, replica, episodes)
        error = ((simulated - true) / deviation).norm(dim=-1).numpy()
        weights = _weights(loaded, replica, obs, action, simulated)
        found.append(Weighed(seed, error, *weights, *_weights(loaded, replica, *logged)))
    return found


@torch.no_grad()
def _play(loaded: LoadedRun, replica: int, episodes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Observations, actions, and the successors in the simulator and in the true environment, [N, ...] each."""
    settings, env_id, method = loaded.job.settings, loaded.job.task["env"], loaded.policy.method
    simulator = envs.make(env_id, episodes, **settings["acting_options"])
    true = envs.make(env_id, episodes, **settings["env_options"])
    chosen = seeds.acting_seeds([loaded.seeds[replica]], torch.zeros(1, dtype=torch.int64), episodes)[0]
    x = first_obs(method, simulator.reset(None, chosen.tolist()).expand(method.replicas, -1, -1).clone())
    true.reset(None, chosen.tolist())
    alive, steps = torch.ones(episodes, dtype=torch.bool), []
    for _ in range(simulator.spec.horizon):
        state = simulator.snapshot()
        if state is None:
            raise envs.EnvError(f"{env_id} cannot be put into a state; its errors are not known")
        true.restore(state)
        action = loaded.policy.act(x, ActNoise(method.seeds, _PHASE, chosen, x.t), "explore")[replica]
        result = simulator.step(action)
        steps.append((x.obs[replica].clone(), action, result.obs, true.step(action).obs, alive))
        alive = alive & ~(result.terminated | result.truncated)
        if not alive.any():
            break
        x.obs, x.t = result.obs.expand(method.replicas, -1, -1).clone(), x.t + 1
    simulator.close()
    true.close()
    *columns, played = (torch.stack(column) for column in zip(*steps, strict=True))
    obs, action, simulated, successor = (column[played] for column in columns)
    return obs, action, simulated, successor


@torch.no_grad()
def _weights(
    loaded: LoadedRun, replica: int, obs: Tensor, action: Tensor, following: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Importance and gap of raw transitions, as the method of one replica sees them."""
    method = loaded.policy.method
    assert isinstance(method, H2O)
    pair = torch.cat((loaded.policy.normalized(obs), action), -1)
    after = loaded.policy.normalized(following)
    normal = torch.randn(method.config.n_samples, *after.shape, generator=torch.Generator().manual_seed(0))
    every = [part.expand(method.replicas, *part.shape) for part in (pair, after, normal)]
    weight, gap = method.weights(every[0], every[1], every[2])
    return weight[replica].numpy(), gap[replica].numpy()


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's; nan where one of them is constant."""
    ranks = [pd.Series(values).rank().to_numpy() for values in (first, second)]
    if min(float(each.std()) for each in ranks) == 0.0:
        return float("nan")
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _sentence(facts: dict[str, float]) -> str:
    return (
        f"seed {facts['seed']}: {facts['transitions']:,} simulated transitions, error {facts['mean_error']:.3g} "
        f"standard deviations; rank correlation of the error with w {facts['error_with_importance']:+.2f}, with u "
        f"{facts['error_with_gap']:+.2f}; mean w {facts['importance_simulated']:.3g} simulated, "
        f"{facts['importance_logged']:.3g} logged; mean u {facts['gap_simulated']:.3g} and {facts['gap_logged']:.3g}"
    )


def _where(loaded: LoadedRun) -> str:
    true: dict[str, Any] = loaded.job.settings["env_options"]
    changed = {k: v for k, v in loaded.job.settings["acting_options"].items() if true.get(k) != v}
    return ", ".join(f"{name}={value}" for name, value in sorted(changed.items()))


def draw(found: list[Weighed], title: str) -> bytes:
    """A PNG: w and u of logged and simulated transitions, and w by the error of the simulator; all replicas pooled."""
    pooled = {name: np.concatenate([getattr(each, name) for each in found]) for name in _COLUMNS}
    with style():
        figure = Figure(figsize=(10.5, 3.2), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        figure.suptitle(title, fontsize=10)
        for axes, name, label, scale in ((left, "importance", "w, log10", np.log10), (middle, "gap", "u", np.asarray)):
            both = [scale(pooled[f"logged_{name}"]), scale(pooled[name])]
            edges = np.histogram_bin_edges(np.concatenate(both), 50).tolist()
            for values, who, colour in zip(both, ("logged", "simulated"), ("C0", "C1"), strict=True):
                weights = np.full(len(values), 1.0 / len(values))
                axes.hist(values, edges, weights=weights, histtype="step", color=colour, label=who)
            axes.set(xlabel=label, ylabel="share of transitions")
            axes.legend(fontsize=8)
        order = np.array_split(np.argsort(pooled["error"]), _GROUPS)
        at = [float(pooled["error"][group].mean()) for group in order]
        parts = np.array([np.percentile(np.log10(pooled["importance"][group]), (25, 50, 75)) for group in order])
        right.plot(at, parts[:, 1], "o-", color="C1", markersize=4)
        right.fill_between(at, parts[:, 0], parts[:, 2], color="C1", alpha=0.2, linewidth=0)
        right.set(xlabel="error of the simulator (std), by tenths", ylabel="w, log10: median, quartiles")
        right.grid(alpha=0.25)
        return png_of(figure)


_COLUMNS = ("error", "importance", "gap", "logged_importance", "logged_gap")
