"""Evaluation speed: environment steps per CPU-second on one thread, against one environment stepped by itself.

Three groups per simulator: "steps" alone; whole "episodes", with their resets; and "evaluation" of R policies on E
episodes each. Gymnasium environments and robots have the last alone, against a loop over one Gymnasium environment. The
simulators whose originals cannot be installed are also set against the rate that was measured of the original, on
another machine. As a program, this module is one contestant.
"""

from __future__ import annotations

from itertools import count
from typing import Any

from offon.benchmark import bench_peers, device
from offon.benchmark.bench_contest import Contestant, own_command

SIMULATORS = ("neorl2/DMSD", "neorl2/Pipeline")
SLOW_SIMULATORS = ("neorl2/Simglucose", "neorl2/Fusion", "neorl2/RocketRecovery")  # without a reference of our own
GYMNASIUM = ("gymnasium/Pendulum-v1",)
ROBOTS = ("mujoco/HalfCheetah-v4", "mujoco/Swimmer-v4")  # whose episodes are of full length
ORIGINAL_RATES = {  # steps per second of one environment of NeoRL-2 0.0.2 on one core, as measured elsewhere
    "neorl2/DMSD": 15_000,
    "neorl2/Pipeline": 33_000,
    "neorl2/Simglucose": 126,
    "neorl2/Fusion": 5,  # with one thread per network; 0.7 as it comes
    "neorl2/RocketRecovery": 6_400,
}
BATCHES = (1, 100, 1000)
POLICIES = ((1, 10), (1, 100), (10, 100))  # R and E
CUDA_EPISODES = (10, 1000, 100_000)  # of one policy
REFERENCE = "own single-env reference"
_STEPS = 100  # asked for together
_ACTIONS = 64  # different ones, taken in turn


def contestants(where: str = "cpu") -> list[Contestant]:
    """Ours and the single environments, group by group; on CUDA ours alone, captured against eager."""
    if where == "cuda":
        return [
            _contestant("offon", "evaluation", env, episodes, device="cuda", captured=captured)
            for env in SIMULATORS
            for episodes in CUDA_EPISODES
            for captured in (True, False)
        ]
    found = []
    for env in SIMULATORS:
        found += [_contestant(REFERENCE, "steps", env)] + [_contestant("offon", "steps", env, n) for n in BATCHES]
        found += [_contestant(REFERENCE, "episodes", env), _contestant("offon", "episodes", env, BATCHES[-1])]
    found += [_contestant("offon", "steps", env, BATCHES[-1]) for env in SLOW_SIMULATORS if _can_be_made(env)]
    for env in (*SIMULATORS, *GYMNASIUM, *filter(_can_be_made, ROBOTS)):
        found.append(_contestant(REFERENCE, "evaluation", env))
        policies = POLICIES if env not in ROBOTS else POLICIES[:-1]
        found += [_contestant("offon", "evaluation", env, episodes, replicas) for replicas, episodes in policies]
    return found


def _contestant(
    who: str, kind: str, env: str, n: int = 1, replicas: int = 1, device: str = "cpu", captured: bool = False
) -> Contestant:
    size = "" if who != "offon" else f"R={replicas} E={n}" if kind == "evaluation" else f"N={n}"
    size += " captured" if captured else ""
    job = {"kind": kind, "env": env, "n": n, "replicas": replicas, "single": who != "offon"}
    job |= {"device": device, "captured": captured}
    return Contestant(who, f"{kind} {env}", size, own_command("bench_evaluate"), job)


def evaluation(job: dict[str, Any]) -> tuple[dict[str, Any], bench_peers.Run]:
    """One contestant: what it does in a unit of work, and how many environment steps that is."""
    import torch

    from offon import envs

    device.configure(job["device"], "default")
    spec = envs.env_spec(job["env"])
    prepare = {
        ("steps", True): _single_steps,
        ("steps", False): _batched_steps,
        ("episodes", True): _single_episodes,
        ("episodes", False): _batched_episodes,
        ("evaluation", True): _single_evaluation,
        ("evaluation", False): _batched_evaluation,
    }
    run = prepare[job["kind"], job["single"]](job, spec)
    alone = job["kind"] == "steps"
    facts = {
        "chunk": _STEPS if alone and job["env"] not in SLOW_SIMULATORS else 1,
        "yield": job["n"] if alone else job["n"] * job["replicas"] * spec.horizon,
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__},
    }
    if alone and not job["single"] and job["env"] in ORIGINAL_RATES:
        facts["original_rate"] = ORIGINAL_RATES[job["env"]]
    return facts, run


def _can_be_made(env_id: str) -> bool:
    """Whether the packages and files are there; what is missing is said by `offon env check`."""
    from offon import envs

    try:
        envs.make(env_id, 1).close()
    except envs.EnvError:
        return False
    return True


def _actions(n: int, act_dim: int) -> Any:
    import torch

    return torch.rand(_ACTIONS, n, act_dim, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0


def _single_steps(job: dict[str, Any], spec: Any) -> bench_peers.Run:
    from offon.benchmark.bench_reference import single_env

    env, actions = single_env(job["env"]), _actions(1, spec.act_dim).numpy()[:, 0]
    env.reset(0)

    def run(units: int) -> None:
        for step in range(units):
            env.step(actions[step % _ACTIONS])

    return run


def _batched_steps(job: dict[str, Any], spec: Any) -> bench_peers.Run:
    from offon import envs

    env, actions = envs.make(job["env"], job["n"]), _actions(job["n"], spec.act_dim)
    env.reset(None, range(job["n"]))

    def run(units: int) -> None:
        for step in range(units):
            env.step(actions[step % _ACTIONS])

    return run


def _single_episodes(job: dict[str, Any], spec: Any) -> bench_peers.Run:
    from offon.benchmark.bench_reference import single_env

    env, actions, seeds = single_env(job["env"]), _actions(1, spec.act_dim).numpy()[:, 0], count()

    def run(units: int) -> None:
        for _ in range(units):
            env.reset(next(seeds))
            for step in range(spec.horizon):
                env.step(actions[step % _ACTIONS])

    return run


def _batched_episodes(job: dict[str, Any], spec: Any) -> bench_peers.Run:
    from offon import envs

    env, actions, seeds = envs.make(job["env"], job["n"]), _actions(job["n"], spec.act_dim), count()

    def run(units: int) -> None:
        for _ in range(units):
            env.reset(None, [next(seeds) for _ in range(job["n"])])
            for step in range(spec.horizon):
                env.step(actions[step % _ACTIONS])

    return run


def _single_evaluation(job: dict[str, Any], spec: Any) -> bench_peers.Run:
    from offon.benchmark.bench_reference import single_env, single_policy

    env, act, seeds = single_env(job["env"]), single_policy(spec.obs_dim, spec.act_dim), count()

    def run(units: int) -> None:
        for _ in range(units):
            obs, over = env.reset(next(seeds)), False
            while not over:
                obs, _, terminated, truncated = env.step(act(obs))
                over = terminated or truncated

    return run


def _batched_evaluation(job: dict[str, Any], spec: Any) -> bench_peers.Run:
    from offon.algorithms.bc import BC
    from offon.algorithms.interface import Spec
    from offon.benchmark.evaluator import Evaluator
    from offon.benchmark.rollout import Policy

    method = BC(Spec(spec.obs_dim, spec.act_dim), BC.Config(normalize_obs=False), range(job["replicas"]))
    method.capturable = job["captured"]
    evaluator = Evaluator(Policy(method.to(job["device"]), {}), job["env"], job["device"])
    seeds = count()

    def run(units: int) -> None:
        for _ in range(units):
            evaluator.evaluate([next(seeds) for _ in range(job["n"])])

    return run


if __name__ == "__main__":
    bench_peers.serve(evaluation)
