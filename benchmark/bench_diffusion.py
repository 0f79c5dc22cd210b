"""Speed of sampling from diffusion policies: actions of R seeds in one batch, against a plain loop over the seeds.

FISOR at its published size decides for 20 episodes of every seed: 16 candidates each, five denoising steps, the safest
taken. The loop has ordinary modules, one network a seed, and either gives each seed its 20 episodes at once or, as the
released code does, one observation at a time. As a program, this module is one contestant.
"""

from __future__ import annotations

import math
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from offon.benchmark import bench_peers, device
from offon.benchmark.bench_contest import Contestant, own_command

if TYPE_CHECKING:
    from offon.algorithms.fisor import FISOR

GROUP = "actions of FISOR"
SEEDS_LOOP, EPISODES_LOOP = "loop over seeds", "loop over seeds and episodes"
REPLICAS = (1, 8)
EPISODES = 20
_OBS_DIM, _ACT_DIM = 11, 2  # of PointRobot


def contestants(where: str) -> list[Contestant]:
    """The loops over eight seeds, and ours with one seed and with eight."""

    def contestant(who: str, size: str, **job: Any) -> Contestant:
        full = {"device": where, "episodes": EPISODES, "settings": {}, **job}
        return Contestant(who, GROUP, size, own_command("bench_diffusion"), full)

    return [
        contestant(EPISODES_LOOP, "", what="loop", replicas=REPLICAS[-1], together=1),
        contestant(SEEDS_LOOP, "", what="loop", replicas=REPLICAS[-1], together=EPISODES),
        *(contestant("offon", f"R={replicas}", what="batch", replicas=replicas) for replicas in REPLICAS),
    ]


def sampling(job: dict[str, Any]) -> tuple[dict[str, Any], bench_peers.Run]:
    """One contestant: what it does in a unit of work, and how many actions that is."""
    device.configure(job["device"], "default")
    method = policies(job["replicas"], job["settings"]).to(job["device"])
    obs = torch.randn(job["replicas"], job["episodes"], _OBS_DIM, device=job["device"])
    once = _batch(method, obs) if job["what"] == "batch" else _loop(method, obs, job["together"])

    def run(units: int) -> None:
        for _ in range(units):
            once()
        if job["device"] == "cuda":
            torch.cuda.synchronize()

    facts = {
        "chunk": 1,
        "yield": job["replicas"] * job["episodes"],
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__},
    }
    return facts, run


def policies(replicas: int, settings: dict[str, Any]) -> FISOR:
    """Untrained policies of so many seeds."""
    from offon.algorithms.fisor import FISOR
    from offon.algorithms.interface import Spec

    return FISOR(Spec(_OBS_DIM, _ACT_DIM), FISOR.Config(**settings), range(replicas))


def _batch(method: FISOR, obs: Tensor) -> Any:
    from offon.algorithms.noise import ActNoise
    from offon.benchmark.rollout import first_obs

    x, steps, episodes = first_obs(method, obs), count(), torch.arange(obs.shape[1], device=obs.device)

    def once() -> Tensor:
        x.t.fill_(next(steps))
        with torch.no_grad():
            return method.act(x, ActNoise(method.seeds, "eval", episodes, x.t), "eval")

    return once


def _loop(method: FISOR, obs: Tensor, together: int) -> Any:
    plain = [Plain(method, replica) for replica in range(method.replicas)]

    def once() -> None:
        for policy, seen in zip(plain, obs, strict=True):
            for part in seen.split(together):
                policy.act(part, policy.draw(len(part)))

    return once


class Plain:
    """The same policy of one seed from ordinary modules, with that seed's weights."""

    def __init__(self, method: FISOR, replica: int) -> None:
        net, config = method.acting_policy, method.config
        self.candidates, self.act_dim, self.chain = config.candidates, method.spec.act_dim, net.chain
        self.kernel = net.kernel[replica]
        self.time = _perceptron(net.time, replica, torch.nn.Mish)
        self.entry, self.exit = _linear(net.entry, 0, replica), _linear(net.exit, 0, replica)
        self.blocks = []
        for block in range(config.blocks):
            norm = torch.nn.LayerNorm(config.width, eps=1e-6).to(self.kernel.device)
            norm.weight.data, norm.bias.data = net.scale[replica, block, :, 0].data, net.shift[replica, block, 0].data
            up, down = (_linear(net.blocks, layer, replica, block) for layer in (0, 1))
            self.blocks.append(torch.nn.Sequential(norm, up, torch.nn.Mish(), down))
        self.critics = [_perceptron(method.target_critic, replica, torch.nn.ReLU, member) for member in range(2)]

    def draw(self, rows: int) -> Tensor:
        """Normals [rows, T, C, A] as `act` wants them."""
        steps = len(self.chain.signal)
        return torch.randn(rows, steps, self.candidates, self.act_dim, device=self.kernel.device)

    @torch.no_grad()
    def act(self, obs: Tensor, normals: Tensor) -> Tensor:
        """The safest of the candidates of each row, [rows, A]."""
        steps = normals.shape[1]
        seen = obs.repeat_interleave(self.candidates, 0)
        x = normals[:, 0].flatten(0, 1)
        for step in reversed(range(steps)):
            more = normals[:, steps - step].flatten(0, 1) if step else None
            x = self.chain.back(x, self._guess(x, seen, step), step, more).clamp(-1.0, 1.0)
        pairs = torch.cat((seen, x), -1)
        harm = torch.stack([critic(pairs) for critic in self.critics]).amax(0).view(len(obs), -1)
        return x.view(len(obs), self.candidates, -1)[torch.arange(len(obs)), harm.argmin(1)]

    def _guess(self, x: Tensor, obs: Tensor, step: int) -> Tensor:
        angle = 2.0 * math.pi * torch.full((len(x), 1), float(step), device=x.device) @ self.kernel
        code = self.time(torch.cat((angle.cos(), angle.sin()), -1))
        hidden = self.entry(torch.cat((x, obs, code), -1))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.exit(torch.nn.functional.mish(hidden))


def _linear(net: Any, layer: int, replica: int, member: int | None = None) -> torch.nn.Linear:
    weight, bias = (each[layer][replica].detach() for each in (net.weights, net.biases))
    weight, bias = (weight, bias) if member is None else (weight[member], bias[member])
    made = torch.nn.Linear(weight.shape[0], weight.shape[1], device=weight.device)
    made.weight.data, made.bias.data = weight.T.contiguous(), bias[0].clone()
    return made


def _perceptron(net: Any, replica: int, between: Any, member: int | None = None) -> torch.nn.Sequential:
    layers = [_linear(net, layer, replica, member) for layer in range(len(net.weights))]
    return torch.nn.Sequential(*(part for layer in layers[:-1] for part in (layer, between())), layers[-1])


if __name__ == "__main__":
    bench_peers.serve(sampling)
