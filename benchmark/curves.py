"""Learning curves of a run: evaluations and training metrics, recorded along the way and part of every checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

POINTS = 100  # of training metrics, over a run


def log_every(budget: int, looks: int) -> int:
    """Progress between points of the curves of metrics: about a hundred points, each where somebody looks."""
    return max(looks, -(-budget // (looks * POINTS)) * looks)


@dataclass
class Curves:
    """What is recorded along the way, one column per replica."""

    eval_updates: list[int] = field(default_factory=list)
    eval_returns: list[np.ndarray] = field(default_factory=list)  # [R, E] each
    metric_updates: list[int] = field(default_factory=list)
    metrics: dict[str, list[np.ndarray]] = field(default_factory=dict)  # [R] each
    sums: dict[str, Tensor] = field(default_factory=dict)  # [R], since the last point
    summed: int = 0

    def add(self, totals: dict[str, Tensor], count: int) -> None:
        """Adds the sums of the metrics over `count` updates."""
        for name, total in totals.items():
            self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.summed += count

    def close_point(self, update: int) -> None:
        """Makes a point of the mean since the last one; a metric that was not measured, in another phase, is NaN."""
        self.metric_updates.append(update)
        found = {name: (total / self.summed).cpu().numpy() for name, total in self.sums.items()}
        nothing = np.full_like(next(iter(found.values())), np.nan)
        for name in found.keys() - self.metrics.keys():
            self.metrics[name] = [nothing] * (len(self.metric_updates) - 1)
        for name, points in self.metrics.items():
            points.append(found.get(name, nothing))
        self.sums, self.summed = {}, 0

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything, for a checkpoint."""
        tensors = {
            "curves/eval_updates": torch.tensor(self.eval_updates, dtype=torch.int64),
            "curves/metric_updates": torch.tensor(self.metric_updates, dtype=torch.int64),
            "curves/summed": torch.tensor(self.summed),
        }
        if self.eval_returns:
            tensors["curves/eval_returns"] = torch.from_numpy(np.stack(self.eval_returns))
        for name, points in self.metrics.items():
            tensors[f"curves/metric/{name}"] = torch.from_numpy(np.stack(points))
        for name, total in self.sums.items():
            tensors[f"curves/sum/{name}"] = total
        return tensors

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], device: str) -> Curves:
        """What `to_tensors` gave, among other tensors of a checkpoint."""
        curves = cls(
            eval_updates=tensors["curves/eval_updates"].tolist(),
            metric_updates=tensors["curves/metric_updates"].tolist(),
            summed=int(tensors["curves/summed"]),
        )
        if "curves/eval_returns" in tensors:
            curves.eval_returns = list(tensors["curves/eval_returns"].numpy())
        for name, tensor in tensors.items():
            if name.startswith("curves/metric/"):
                curves.metrics[name.removeprefix("curves/metric/")] = list(tensor.numpy())
            elif name.startswith("curves/sum/"):
                curves.sums[name.removeprefix("curves/sum/")] = tensor.to(device)
        return curves

    def of_replica(self, index: int, last_update: int) -> dict[str, np.ndarray]:
        """The curves of one replica, up to the update at which it was last sound."""
        evals = [update for update in self.eval_updates if update <= last_update]
        points = [update for update in self.metric_updates if update <= last_update]
        curves = {"eval_updates": np.array(evals, dtype=np.int64), "metric_updates": np.array(points, dtype=np.int64)}
        if evals:
            curves["eval_returns"] = np.stack([returns[index] for returns in self.eval_returns[: len(evals)]])
        for name, values in self.metrics.items():
            curves[f"metric/{name}"] = np.array([value[index] for value in values[: len(points)]], dtype=np.float32)
        return curves
