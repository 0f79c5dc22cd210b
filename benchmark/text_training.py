"""The training loop of text methods: logged responses are drawn, weighed and learned; a killed one goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offon.algorithms.language_model import LanguageModel
from offon.algorithms.nn import Adam
from offon.algorithms.noise import Noise
from offon.algorithms.sequence_losses import BY_ADVANTAGE, Objective, Scored, pick, priority, sequence_loss
from offon.benchmark import checkpoints
from offon.benchmark.text_settings import TextSettings

Metrics = dict[str, list[float]]  # one number per seed
Log = dict[str, list[float]]  # one number per point, the mean over seeds
_WATCHED = ("weight", "at_lower", "at_upper")
_POINTS = 50  # of a log


@dataclass(frozen=True)
class Keep:
    """Where unfinished work is kept, and of what it is; what is kept of anything else is refused."""

    folder: Path
    of: str  # settings and data
    every: int = 10  # updates between checkpoints
    say: Callable[[str], None] = lambda text: None  # hears what has been kept

    def of_seed(self, seed: int) -> Keep:
        """A place of its own for a seed."""
        return replace(self, folder=self.folder / f"seed-{seed}")

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was kept last under a name."""
        found = checkpoints.load_latest(self.folder / name)
        if found is not None and found[1]["of"] != self.of:
            where = self.folder / name
            raise ValueError(f"{where} holds unfinished work of other settings or data; choose another --out")
        return found

    def save(self, name: str, update: int, tensors: dict[str, Tensor], log: Log, seconds: float) -> None:
        """Keeps the state after an update and so many seconds; the log's numbers come back as they are."""
        facts = {"of": self.of, "update": update, "log": log, "seconds": seconds}
        checkpoints.save(self.folder / name, update, tensors, facts)
        self.say(f"{name}: {f'{update} updates' if update else 'done'}, kept")


@dataclass(frozen=True)
class Course:
    """What is to be made of a model: `updates` of an objective, on rows drawn by their weight [R, N]."""

    name: str
    objective: Objective
    updates: int
    weight: Tensor
    scored: Callable[[LanguageModel, Tensor], Scored]  # rows [R, B], as the model sees them

    def made(self) -> Tensor:
        """Updates of each seed, [R]: where advantages count, the share of positive ones of all."""
        made = torch.full((len(self.weight),), self.updates)
        if self.objective.variant in BY_ADVANTAGE:
            made = ((self.weight > 0).float().mean(-1) * self.updates).long().clamp(min=1)
        return made


@dataclass(frozen=True)
class Trained:
    """What came of a course."""

    metrics: Metrics  # means over the updates
    log: Log  # how the weights went at up to 50 updates
    earlier: float  # seconds that were spent on it before it was killed


def train(
    model: LanguageModel, course: Course, settings: TextSettings, seeds: Sequence[int], keep: Keep | None
) -> Trained:
    """Trains a model in place; each seed makes its updates and then stands."""
    start = time.perf_counter()
    device = course.weight.device
    optimizer = model.optimizer(settings.lr, settings.max_grad_norm)
    noise = Noise(seeds, f"text/{course.name}", device)
    made = course.made().to(device)
    everyone, last = int(made.min()), int(made.max())
    uniform = not settings.prioritized or course.objective.variant == "nll"
    probability = priority(torch.ones_like(course.weight) if uniform else course.weight)
    totals = {key: torch.zeros(len(seeds), device=device) for key in _WATCHED}
    log: Log = {key: [] for key in ("update", *_WATCHED, "log_ratio")}
    first, earlier = 0, 0.0
    if keep is not None and (kept := keep.load(course.name)) is not None:
        first, log, earlier = kept[1]["update"], kept[1]["log"], kept[1]["seconds"]
        _take_over(kept[0], model, optimizer, totals)
    if first < last and first % noise.chunk:
        noise.begin_chunk(first - first % noise.chunk)
    for update in range(first, last):
        if update % noise.chunk == 0:
            noise.begin_chunk(update)
        noise.begin_update(update % noise.chunk)
        rows = pick(probability, noise.uniform("rows", settings.batch_size))  # [R, B]
        loss, info = sequence_loss(course.scored(model, rows), course.objective)
        moves = update < made
        if update < everyone:
            optimizer.step(loss)
        else:
            _step_some(model, optimizer, loss, moves)
        for key, total in totals.items():
            total += info[key] * moves / made
        if update % max(1, last // _POINTS) == 0:
            log["update"].append(update + 1)
            for key in log.keys() - {"update"}:
                log[key].append(round(float(info[key][moves].mean()), 6))
        if keep is not None and ((update + 1) % keep.every == 0 or update + 1 == last):
            state = {f"model/{name}": value for name, value in model.state().items()}
            state |= {f"optimizer/{name}": value for name, value in optimizer.state_dict().items()}
            state |= {f"totals/{name}": total for name, total in totals.items()}
            keep.save(course.name, update + 1, state, log, earlier + time.perf_counter() - start)
    metrics = {**{key: total.tolist() for key, total in totals.items()}, "updates": made.float().tolist()}
    return Trained(metrics, log, earlier)


def _take_over(kept: dict[str, Tensor], model: LanguageModel, optimizer: Adam, totals: dict[str, Tensor]) -> None:
    model.load(checkpoints.part(kept, "model/"))
    optimizer.load_state_dict(checkpoints.part(kept, "optimizer/"))
    for name, total in totals.items():
        total.copy_(kept[f"totals/{name}"])


def _step_some(model: LanguageModel, optimizer: Adam, loss: Tensor, moves: Tensor) -> None:
    """One step, after which the seeds that do not move [R] stand where they stood."""
    weights = list(model.state().values())
    before = [weight.clone() for weight in weights]
    optimizer.step(loss)
    for old, new in zip(before, weights, strict=True):
        torch.where(moves.view(-1, *[1] * (old.dim() - 1)), new, old, out=new)
