"""`offon render`: what a trained policy does in one episode, as a plot and, where that can be drawn, as a film."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from offon import envs
from offon.benchmark import files, seeds
from offon.benchmark.drawing import png_of, style
from offon.benchmark.evaluator import Evaluator
from offon.benchmark.load import LoadedRun, load

_MOST_LINES = 10  # in a panel; more components are shown as a heat map
_PANEL_INCHES = 1.9
_FRAMES_PER_SECOND = 30


@dataclass(frozen=True)
class Trace:
    """One episode of T steps."""

    obs: np.ndarray  # [T + 1, O]
    action: np.ndarray  # [T, A]
    reward: np.ndarray  # [T]
    cost: np.ndarray | None  # [T]; None where the environment has none
    total: float  # the return, as the evaluator adds it up
    episode_seed: int


def play(loaded: LoadedRun, replica: int, episode: int) -> Trace:
    """Play one of the published episodes with one replica of a run, exactly as the evaluator does.

    Args:
        loaded: the run.
        replica: its number in the run.
        episode: its number in the list of reporting seeds.
    """
    seen: list[tuple[np.ndarray, ...]] = []
    first: list[np.ndarray] = []
    over = False

    def watch(x: Any, action: Any, result: envs.StepResult) -> None:
        nonlocal over
        if over:
            return
        if not first:
            first.append(x.obs[replica, 0].numpy().copy())
        row = [result.obs[replica], action[replica, 0], result.reward[replica], result.cost[replica]]
        seen.append(tuple(part.numpy().copy() for part in row))
        over = bool(result.terminated[replica] | result.truncated[replica])

    task = loaded.job.task
    evaluator = Evaluator(loaded.policy, task["env"], "cpu", loaded.job.settings["env_options"])
    (chosen,) = seeds.episode_seeds(seeds.REPORTING, 1, episode)
    found = evaluator.evaluate([chosen], watch=watch)
    obs, action, reward, cost = (np.stack(column) for column in zip(*seen, strict=True))
    shown_cost = cost if found.costs is not None else None
    return Trace(np.concatenate([first, obs]), action, reward, shown_cost, float(found.returns[replica, 0]), chosen)


def draw(trace: Trace, title: str) -> bytes:
    """Return a PNG: observations, actions, rewards and costs over time."""
    with style():
        heights = [1.6, 1.0, 1.0, *([1.0] if trace.cost is not None else [])]
        figure = Figure(figsize=(9, _PANEL_INCHES * sum(heights)), layout="constrained")
        axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        figure.suptitle(title, fontsize=10)
        _components(axes[0], trace.obs, "observation", "o")
        _components(axes[1], trace.action, "action", "a")
        _amounts(axes[2], trace.reward, "reward", "return")
        if trace.cost is not None:
            _amounts(axes[3], trace.cost, "cost", "cost so far")
        axes[-1].set_xlabel("step")
        axes[-1].set_xlim(0, len(trace.reward))
        return png_of(figure)


def _components(axes: Axes, values: np.ndarray, name: str, letter: str) -> None:
    """Draw a few components as lines, many as a heat map of each one's own range."""
    steps, count = values.shape
    if count <= _MOST_LINES:
        for index in range(count):
            axes.plot(np.arange(steps), values[:, index], lw=1, label=f"{letter}{index}", color=f"C{index}")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7, handlelength=1.2)
        axes.set_ylabel(name)
        return
    low, high = values.min(axis=0), values.max(axis=0)
    shown = (values - low) / np.where(high > low, high - low, 1.0)
    image = axes.imshow(
        shown.T, aspect="auto", origin="lower", interpolation="nearest", extent=(0, steps, -0.5, count - 0.5)
    )
    axes.figure.colorbar(image, ax=axes, ticks=[0, 1], pad=0.01).ax.set_yticklabels(["least", "most"], fontsize=7)
    axes.set_ylabel(f"{name}\n(each in its own range)")


def _amounts(axes: Axes, values: np.ndarray, name: str, total: str) -> None:
    """Draw what each step gave, and its sum on an axis of its own."""
    steps = np.arange(1, len(values) + 1)
    axes.plot(steps, values, lw=0.8, color="C0")
    axes.set_ylabel(name, color="C0")
    sums = axes.twinx()
    sums.plot(steps, np.cumsum(values, dtype=np.float64), lw=1.2, color="C3")
    sums.set_ylabel(total, color="C3")
    sums.spines["right"].set_visible(True)


def film(env_id: str, options: dict[str, Any], trace: Trace) -> bytes:
    """Return an animated GIF of the same episode, played again where Gymnasium draws it.

    Raises:
        EnvError: if there is nothing that draws this environment, or if drawing fails here; says what helps.
    """
    drawn = _drawn_as(env_id)
    if drawn is None or (options and not env_id.startswith("gymnasium/")):
        what = f"{env_id} with other dynamics" if options else env_id
        raise envs.EnvError(f"nothing draws {what}: its trace is the picture. Films are made of gymnasium/ and mujoco/")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a version is not the latest: it is the one that was acted in
        env: Any = envs.make(f"gymnasium/{drawn}", 1, **options, render_mode="rgb_array")
        try:
            seen = env.reset(None, [trace.episode_seed])
            frames = [_frame(env)]
            for action in trace.action:
                seen = env.step(torch.from_numpy(action[None])).obs
                frames.append(_frame(env))
        finally:
            env.close()
    if not np.array_equal(seen[0].numpy(), trace.obs[-1]):
        raise envs.EnvError(f"gymnasium/{drawn} came to another end than {env_id}: the film would show another episode")
    return _gif(frames)


def _drawn_as(env_id: str) -> str | None:
    """Return the Gymnasium id that draws an environment."""
    suite, _, name = env_id.partition("/")
    if suite in ("gymnasium", "mujoco"):
        return name
    return f"{name.removesuffix('Velocity')}-v4" if suite == "dsrl" and name.endswith("Velocity") else None


def _frame(env: Any) -> np.ndarray:
    try:
        picture = env.render(0)
    except Exception as error:  # of graphics libraries, each with errors of its own
        raise envs.EnvError(
            f"drawing failed ({type(error).__name__}: {error}); without a screen MuJoCo draws with MUJOCO_GL=egl (a "
            "driver with EGL) or MUJOCO_GL=osmesa (the library libosmesa6); Gymnasium's classics need pygame"
        ) from error
    if not isinstance(picture, np.ndarray):
        raise envs.EnvError(f"expected a picture from render(), got {type(picture).__name__}: it cannot draw headless")
    return picture


def _gif(frames: Sequence[np.ndarray]) -> bytes:
    from PIL import Image  # stands beside matplotlib

    images = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    duration = 1000 // _FRAMES_PER_SECOND
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)
    return buffer.getvalue()


def render_run(name: str, runs: Path, seed: int | None, episode: int, plot: Path | None, animation: Path | None) -> int:
    """Draw one episode of a run's last checkpoint and say where it is.

    Args:
        name: run folder or id.
        runs: results folder of an id.
        seed: whose policy acts; None: the first of the run.
        episode: number in the list of reporting seeds.
        plot: PNG to write; None: trace-ID.png here.
        animation: GIF to write; None: no film.
    """
    loaded = load(name, runs)
    task = loaded.job.task
    if task["env"] is None:
        raise ValueError(f"run {loaded.job.run_id} has no simulator (training only); nothing to act in")
    replica = 0 if seed is None else loaded.replica_of(seed)
    trace = play(loaded, replica, episode)
    cost = "" if trace.cost is None else f", cost {float(trace.cost.sum()):g}"
    facts = f"return {trace.total:.2f}{cost}, {len(trace.reward)} steps"
    title = f"{loaded.job.label} on {task['name']}, seed {loaded.seeds[replica]}, episode {episode}: {facts}"
    plot = plot or Path(f"trace-{loaded.job.run_id}.png")
    if animation is not None:  # first: nothing is written if it cannot be drawn
        moving = film(task["env"], loaded.job.settings["env_options"], trace)
        files.write_bytes(animation, moving)
        print(f"wrote {animation}")
    files.write_bytes(plot, draw(trace, title))
    print(f"wrote {plot}: {title}")
    return 0
