"""The training loop of text methods: logged responses are drawn, weighed and learned; a killed one goes on."""

from __future__ import annotations

import shutil
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
from offon.algorithms.sequence_losses import BY_ADVANTAGE, Objective, Scored, pick, priority, sequence_loss, updates_for
from offon.algorithms.stacked import put_back_
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
    apart: float = 30.0  # seconds between them at least
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

    def forget(self, name: str) -> None:
        """Removes what was kept under a name."""
        shutil.rmtree(self.folder / name, ignore_errors=True)


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
        if self.objective.variant in BY_ADVANTAGE and self.objective.filtered:
            made = updates_for(self.weight > 0, self.updates)
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
    device = course.weight.device
    state = _State(model, model.optimizer(settings.lr, settings.max_grad_norm), len(seeds), device)
    noise = Noise(seeds, f"text/{course.name}", device)
    made = course.made().to(device)
    everyone, last = int(made.min()), int(made.max())
    uniform = not settings.prioritized or course.objective.variant == "nll"
    probability = priority(torch.ones_like(course.weight) if uniform else course.weight)
    first, earlier = state.begin(keep, course.name)
    start = saved = time.perf_counter()
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
            state.optimizer.step(loss)
        else:
            _step_some(model, state.optimizer, loss, moves)
        state.watch(info, moves, made)
        if update % max(1, last // _POINTS) == 0:
            state.note(update + 1, info, moves)
        now = time.perf_counter()
        if keep is not None and (update + 1 == last or ((update + 1) % keep.every == 0 and now - saved >= keep.apart)):
            keep.save(course.name, update + 1, state.tensors(), state.log, earlier + now - start)
            saved = time.perf_counter()
    metrics = {name: total.tolist() for name, total in state.totals.items()}
    return Trained({**metrics, "updates": made.float().tolist()}, state.log, earlier)


class _State:
    """All that a checkpoint holds: weights, moments, running means and the log."""

    def __init__(self, model: LanguageModel, optimizer: Adam, replicas: int, device: torch.device) -> None:
        self.model, self.optimizer = model, optimizer
        self.totals = {name: torch.zeros(replicas, device=device) for name in _WATCHED}
        self.log: Log = {name: [] for name in ("update", *_WATCHED, "log_ratio")}

    def begin(self, keep: Keep | None, name: str) -> tuple[int, float]:
        """The update to begin with, and the seconds that those before it took."""
        kept = None if keep is None else keep.load(name)
        if kept is None:
            return 0, 0.0
        tensors, facts = kept
        self.model.load(checkpoints.part(tensors, "model/"))
        self.optimizer.load_state_dict(checkpoints.part(tensors, "optimizer/"))
        for key, total in self.totals.items():
            total.copy_(tensors[f"totals/{key}"])
        self.log = facts["log"]
        return facts["update"], facts["seconds"]

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        parts = {"model": self.model.state(), "optimizer": self.optimizer.state_dict(), "totals": self.totals}
        return {f"{part}/{name}": tensor for part, held in parts.items() for name, tensor in held.items()}

    def watch(self, info: dict[str, Tensor], moves: Tensor, made: Tensor) -> None:
        """Adds an update to the means over all that are made."""
        for name, total in self.totals.items():
            total += info[name] * moves / made.clamp(min=1)

    def note(self, update: int, info: dict[str, Tensor], moves: Tensor) -> None:
        """Adds an update to the log."""
        self.log["update"].append(update)
        for name in (*_WATCHED, "log_ratio"):
            self.log[name].append(round(float(info[name][moves].mean()), 6))


def _step_some(model: LanguageModel, optimizer: Adam, loss: Tensor, moves: Tensor) -> None:
    """One step, after which the seeds that do not move [R] stand where they stood."""
    weights = list(model.state().values())
    before = [weight.clone() for weight in weights]
    optimizer.step(loss)
    put_back_(weights, before, moves)
