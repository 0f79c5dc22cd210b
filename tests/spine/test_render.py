"""Traces and films of single episodes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.image import imread

from offon.benchmark import render, seeds
from offon.benchmark.evaluator import evaluate
from offon.benchmark.load import load
from offon.envs import EnvError


def test_the_episode_that_is_drawn_is_the_evaluators(finished):
    (job,) = finished.jobs
    loaded = load(str(job.folder))
    chosen = seeds.episode_seeds(seeds.REPORTING, 4)
    expected = evaluate(loaded.policy, "neorl2/DMSD", chosen)
    for replica, episode in ((0, 0), (1, 3)):
        trace = render.play(loaded, replica, episode)
        assert trace.total == expected.returns[replica, episode]
        assert trace.obs.shape == (101, 6) and trace.action.shape == (100, 2) and trace.cost is None
        assert np.isclose(trace.reward.astype(np.float64).sum(), trace.total)
        again = loaded.act(trace.obs[:-1], seed=loaded.seeds[replica])
        np.testing.assert_allclose(again, trace.action, atol=1e-5)


def test_the_command_writes_a_plot_and_says_the_return(finished, offon, tmp_path):
    (job,) = finished.jobs
    plot = tmp_path / "new" / "trace.png"
    done = offon("render", job.run_id, "--out", finished.path, "--seed", 1, "--episode", 2, "--plot", plot)
    assert done.status == 0 and "seed 1, episode 2: return " in done.out and "100 steps" in done.out
    assert imread(plot).shape[1] > 800
    assert [path.name for path in plot.parent.iterdir()] == ["trace.png"]


def trace_of(obs_dim: int, cost: bool = False, steps: int = 30) -> render.Trace:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(steps + 1, obs_dim)), rng.normal(size=(steps, 3)), rng.normal(size=steps)
    return render.Trace(*values, (rng.uniform(size=steps) > 0.5).astype(float) if cost else None, 1.0, 7)


@pytest.mark.parametrize(("obs_dim", "images"), [(5, 0), (40, 1)])
def test_many_components_are_a_heat_map_and_few_are_lines(obs_dim, images, monkeypatch):
    seen = []
    monkeypatch.setattr(render.Figure, "savefig", lambda self, *_, **__: seen.append(self))
    render.draw(trace_of(obs_dim, cost=True), "title")
    (figure,) = seen
    panels = [axes for axes in figure.axes if axes.get_ylabel()]
    assert len(panels[0].images) == images and len(panels[0].lines) == (0 if images else obs_dim)
    labels = {axes.get_ylabel().split("\n")[0] for axes in panels}
    assert {"observation", "action", "reward", "return", "cost", "cost so far"} == labels


def test_equal_traces_give_equal_bytes():
    assert render.draw(trace_of(4), "$x") == render.draw(trace_of(4), "$x")


def test_what_cannot_be_filmed_is_refused_and_nothing_is_written(finished, offon, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (job,) = finished.jobs
    done = offon("render", job.folder, "--animate", tmp_path / "film.gif")
    assert done.status == 2 and "nothing draws neorl2/DMSD: its trace is the picture" in done.err
    assert not list(tmp_path.glob("*.gif")) and not list(tmp_path.glob("*.png"))


class Painter:
    """Stands in for an environment that draws: frames whose colour counts them."""

    def __init__(self, env):
        self.env, self.count = env, 0

    def __getattr__(self, name):
        return getattr(self.env, name)

    def render(self, row):
        self.count += 1
        return np.full((8, 8, 3), self.count, np.uint8)


def test_a_film_has_a_frame_for_every_observation_and_shows_the_same_episode(monkeypatch):
    from PIL import Image

    from offon import envs

    make, options = envs.make, []

    def painting(env_id, n, **given):
        options.append(given)
        return Painter(make(env_id, n))

    env = make("gymnasium/Pendulum-v1", 1)
    actions = np.linspace(-1, 1, 12, dtype=np.float32)[:, None]
    import torch

    obs = [env.reset(None, [7]), *(env.step(torch.from_numpy(action[None])).obs for action in actions)]
    trace = render.Trace(torch.cat(obs).numpy(), actions, np.zeros(12), None, 0.0, 7)
    monkeypatch.setattr(envs, "make", painting)
    film = Image.open(io.BytesIO(render.film("gymnasium/Pendulum-v1", {}, trace)))
    assert film.n_frames == 13 and options == [{"render_mode": "rgb_array"}]
    other = render.Trace(trace.obs + 1, actions, np.zeros(12), None, 0.0, 7)
    with pytest.raises(EnvError, match="the film would show another episode"):
        render.film("gymnasium/Pendulum-v1", {}, other)


def test_a_failure_of_graphics_says_what_helps():
    class Broken:
        def render(self, row):
            raise RuntimeError("no context")

    with pytest.raises(EnvError, match="drawing failed .RuntimeError: no context.; .*MUJOCO_GL=egl"):
        render._frame(Broken())
    Broken.render = lambda self, row: None
    with pytest.raises(EnvError, match="expected a picture from render.., got NoneType"):
        render._frame(Broken())


@pytest.mark.parametrize(
    ("env_id", "drawn"),
    [
        ("gymnasium/Pendulum-v1", "Pendulum-v1"),
        ("mujoco/Ant-v5", "Ant-v5"),
        ("dsrl/HopperVelocity", "Hopper-v4"),
        ("dsrl/BallRun", None),
        ("neorl2/Fusion", None),
    ],
)
def test_robots_are_drawn_by_gymnasium(env_id, drawn):
    assert render._drawn_as(env_id) == drawn


def test_a_run_without_a_simulator_has_nothing_to_draw(offon, tmp_path):
    rows = np.zeros((40, 2), np.float32)
    ends = np.arange(40) % 10 == 9
    path = tmp_path / "log.npz"
    np.savez(path, obs=rows, actions=rows[:, :1], rewards=rows[:, 0], terminals=ends & False, timeouts=ends)
    few = ("updates=50", "seeds=1", "workers=1", "progress=quiet", "matmul=default", f"out={tmp_path / 'out'}")
    assert offon("run", "algorithm=bc", "algorithm.hidden_dims=[8]", f"dataset={path}", *few).status == 0
    (run,) = (tmp_path / "out" / "runs").iterdir()
    done = offon("render", run)
    assert done.status == 2 and "has no simulator (training only); nothing to act in" in done.err
