"""A trained policy to act with: `offon.load(RUN).act(obs)`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from offon.algorithms.noise import ActNoise
from offon.benchmark import checkpoints
from offon.benchmark.builder import assemble
from offon.benchmark.records import RecordError
from offon.benchmark.rollout import first_obs
from offon.benchmark.runs import Job, find_run
from offon.benchmark.stepper import restore


class LoadedRun:
    """The policies of a run, one per seed, as they stood at its last checkpoint.

    Attributes:
        job: what was trained.
        policy: the R policies, for `offon.benchmark.evaluator.evaluate`.
        update: progress behind the checkpoint, in the unit of the protocol.
    """

    def __init__(self, job: Job) -> None:
        if job.settings["protocol"] == "text":
            raise RecordError(
                f"{job.folder}: language models do not act; their records say what their responses earn, and samples=8 "
                "of `offon run` keeps some as text"
            )
        if set(job.statuses()) == {"failed"}:
            raise RecordError(f"{job.folder}: all replicas failed; nothing to act with (the records say why)")
        found = checkpoints.load_latest(job.folder, with_rows=False)
        if found is None:
            raise RecordError(f"{job.folder}: no checkpoint yet; train it first (`offon runs resume {job.run_id}`)")
        tensors, header = found
        _, method, self.policy = assemble(job)
        restore(method, checkpoints.part(tensors, "method/"))
        self.job, self.update = job, int(header["update"])

    @property
    def seeds(self) -> list[int]:
        """The seeds of the run, in the order of its replicas."""
        return self.job.seeds

    def replica_of(self, seed: int) -> int:
        """The number of the replica that has a seed."""
        if self.seeds.count(seed) != 1:
            hint = "; several settings share it" if seed in self.seeds else ""
            raise ValueError(f"expected a seed that one replica has, among {self.seeds}, got {seed}{hint}")
        return self.seeds.index(seed)

    def act(self, obs: np.ndarray, seed: int | None = None, t: int = 0) -> np.ndarray:
        """Actions of a memoryless policy.

        Args:
            obs: raw observations [obs_dim] or [N, obs_dim]; in a finite MDP the number of the state, [1] or [N, 1].
            seed: which replica acts; the first of the run if not given.
            t: step inside the episode; counts for methods that learn each step apart.

        Returns:
            Actions [act_dim] or [N, act_dim]: float32 in the box [-1, 1], unless the task has another space of actions.
        """
        spec = self.policy.method.spec
        rows = np.atleast_2d(np.asarray(obs, dtype=np.int64 if spec.action == "index" else np.float32))
        if rows.ndim != 2 or rows.shape[1] != spec.obs_dim:
            raise ValueError(f"expected observations [{spec.obs_dim}] or [N, {spec.obs_dim}], got {np.shape(obs)}")
        if self.policy.method.memory(1):
            raise ValueError(f"{self.job.label} remembers its episode; evaluate it with `offon evaluate`")
        index = 0 if seed is None else self.replica_of(seed)
        x = first_obs(self.policy.method, torch.from_numpy(rows).expand(len(self.seeds), -1, -1))
        x.t += t
        noise = ActNoise(self.seeds, "eval", torch.zeros(len(rows), dtype=torch.int64), x.t)
        chosen = self.policy.act(x, noise)[index]
        action = (chosen.clamp(-1.0, 1.0) if spec.action == "box" else chosen).numpy()
        return action if np.ndim(obs) > 1 else action[0]


def load(run: str | Path, out: str | Path = "runs") -> LoadedRun:
    """The trained policies of a run.

    Args:
        run: a run folder, a run id or the beginning of one.
        out: the results folder in which an id is looked up.

    Raises:
        RecordError: if there is no such run, or it has no checkpoint.
    """
    return LoadedRun(find_run(str(run), Path(out)))
