"""Programs that a speed benchmark asks for rounds of work over a pipe; those of the peers stand here.

This file is run as a script by the interpreter that a peer is installed in, where OffOn is not: nothing but the
standard library at the top, Python 3.9 and later. Every peer trains its own networks (two hidden layers of 256 units)
on one core with its own sampler and its own update, without logging, evaluation or its outer loop.

d3rlpy was run with version 2.8. The CORL programs follow the public interface of its single-file scripts
(`ReplayBuffer`, `ImplicitQLearning`, `TD3_BC`, `BC`); they were not run on a checkout of CORL itself.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

Run = Callable[[int], None]  # does so many units of work, and waits for them
Facts = dict[str, Any]  # "chunk": units to be asked for together; "yield": seed-updates or steps in one unit

CORL_FILES = {"iql": "iql.py", "td3_bc": "td3_bc.py", "bc": "any_percent_bc.py"}
_CORL_FOLDER = Path("algorithms", "offline")
_CORL_IMPORTS = ("d4rl", "gym", "pyrallis", "wandb")  # environments, options and logging: no part of an update


def serve(prepare: Callable[[Facts], tuple[Facts, Run]]) -> None:
    """Prepares the job in the first argument, then does as many units as each line of standard input says.

    Answers are lines of JSON: the facts once ready, then the seconds of each round. What libraries print goes to
    standard error.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    facts, run = prepare(json.loads(sys.argv[1]))
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        run(int(line))
        seconds = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        print(json.dumps(seconds), file=answers, flush=True)


def synthetic_arrays(job: Facts) -> Facts:
    """Noise of the job's shape in episodes that end by a time limit, float32."""
    import numpy as np

    rng = np.random.default_rng(0)
    rows, length = job["episodes"] * job["length"], job["length"]
    timeouts = np.zeros(rows, dtype=np.float32)
    timeouts[length - 1 :: length] = 1.0
    return {
        "observations": rng.normal(size=(rows, job["obs_dim"])).astype(np.float32),
        "actions": rng.uniform(-1, 1, size=(rows, job["act_dim"])).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "next_observations": rng.normal(size=(rows, job["obs_dim"])).astype(np.float32),
        "terminals": np.zeros(rows, dtype=np.float32),
        "timeouts": timeouts,
    }


def d3rlpy_training(job: Facts) -> tuple[Facts, Run]:
    """d3rlpy: `update` on batches of the data set's own sampler; rates and networks as its defaults."""
    import d3rlpy
    import torch

    torch.set_num_threads(1)
    arrays = synthetic_arrays(job)
    names = ("observations", "actions", "rewards", "terminals", "timeouts")
    dataset = d3rlpy.dataset.MDPDataset(*(arrays[name] for name in names[:4]), timeouts=arrays["timeouts"])
    configs = {"iql": d3rlpy.algos.IQLConfig, "td3_bc": d3rlpy.algos.TD3PlusBCConfig, "bc": d3rlpy.algos.BCConfig}
    config = configs[job["method"]](batch_size=job["batch_size"])
    algo = config.create(device="cuda:0" if job["device"] == "cuda" else "cpu:0")
    algo.build_with_dataset(dataset)

    def run(updates: int) -> None:
        for _ in range(updates):
            algo.update(dataset.sample_transition_batch(job["batch_size"]))
        _wait(job["device"])

    return _facts(d3rlpy=d3rlpy.__version__), run


def corl_training(job: Facts) -> tuple[Facts, Run]:
    """CORL: the trainer's `train` on batches of its replay buffer."""
    import torch

    torch.set_num_threads(1)
    module = _corl_module(job["checkout"], job["method"])
    device, rows = job["device"], job["episodes"] * job["length"]
    buffer = module.ReplayBuffer(job["obs_dim"], job["act_dim"], rows, device)
    buffer.load_d4rl_dataset(synthetic_arrays(job))
    trainer = _corl_trainer(module, job)

    def run(updates: int) -> None:
        for _ in range(updates):
            trainer.train([column.to(device) for column in buffer.sample(job["batch_size"])])
        _wait(device)

    return _facts(), run


def _corl_module(checkout: str, method: str) -> Any:
    """A script of CORL as a module, with stand-ins for what an update does not use."""
    sys.modules.update({name: MagicMock() for name in _CORL_IMPORTS})
    path = corl_file(checkout, method)
    spec = importlib.util.spec_from_file_location("corl_" + method, str(path))
    if spec is None or spec.loader is None:
        raise ImportError("expected a Python file: " + str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def corl_file(checkout: str, method: str) -> Path:
    """The script of a method in a checkout of CORL."""
    return Path(checkout) / _CORL_FOLDER / CORL_FILES[method]


def _corl_trainer(module: Any, job: Facts) -> Any:
    """Networks, optimisers and trainer, as the script's own `train` puts them together, with its default settings."""
    import torch

    obs_dim, act_dim, device = job["obs_dim"], job["act_dim"], job["device"]
    named = {}

    def add(name: str, network: Any, optimizer: str) -> None:
        named[name] = network.to(device)
        named[optimizer] = torch.optim.Adam(network.parameters(), lr=3e-4)

    if job["method"] == "iql":
        add("actor", module.GaussianPolicy(obs_dim, act_dim, 1.0), "actor_optimizer")
        add("q_network", module.TwinQ(obs_dim, act_dim), "q_optimizer")
        add("v_network", module.ValueFunction(obs_dim), "v_optimizer")
        return module.ImplicitQLearning(max_action=1.0, device=device, **named)
    add("actor", module.Actor(obs_dim, act_dim, 1.0), "actor_optimizer")
    if job["method"] == "bc":
        return module.BC(max_action=1.0, device=device, **named)
    add("critic_1", module.Critic(obs_dim, act_dim), "critic_1_optimizer")
    add("critic_2", module.Critic(obs_dim, act_dim), "critic_2_optimizer")
    return module.TD3_BC(max_action=1.0, device=device, **named)


def _facts(**versions: str) -> Facts:
    import torch

    return {
        "chunk": 50,
        "yield": 1,
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, **versions},
    }


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


PEERS = {"d3rlpy": d3rlpy_training, "corl": corl_training}

if __name__ == "__main__":
    serve(lambda job: PEERS[job["peer"]](job))
