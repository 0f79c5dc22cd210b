"""Speed online: environment steps with updates of R seeds against one process a seed, and updates against a plain loop.

Both are WSRL's online phase. In the first group four critics learn twice for each step that is taken in neorl2/DMSD; in
the second ten critics of two hidden layers of 256 units learn four times on 256 rows of the size of Hopper, then the
policy once on all 1,024. Seeds in one program and one seed in a program of its own are counted in seed-steps per
CPU-second, so that the ratio is that to as many processes as there are seeds. N environments of a seed take N steps at
once, then learn as often as for N steps. As a program, this is one contestant.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from offon.benchmark import bench_peers, device
from offon.benchmark.bench_contest import Contestant, own_command

if TYPE_CHECKING:
    from offon.datasets.transitions import Transitions

ENV = "neorl2/DMSD"
STEPS, UPDATES = f"environment steps {ENV}", "updates"
ALONE = "a process a seed"
LOOP = "loop over critics"
REPLICAS = 8
TOGETHER = 8  # environments of a seed
_ACTING = {"n_critics": 4, "utd": 2, "batch_size": 128}
_LEARNING = {"n_critics": 10, "utd": 4, "batch_size": 256}
_SAME = {"warmup": 0, "shared_head": False, "coasting": False, "last_hidden_gain": 0.0}  # what the loop does too
_WIDTHS = {"obs_dim": 11, "act_dim": 3}
_CHUNK = 10


def contestants(where: str) -> list[Contestant]:
    """Ours with several replicas, and those it is compared with."""

    def contestant(who: str, group: str, size: str, **job: Any) -> Contestant:
        return Contestant(who, group, size, own_command("bench_online"), {"device": where, **job})

    return [
        contestant(ALONE, STEPS, "", what="steps", replicas=1),
        contestant("offon", STEPS, f"R={REPLICAS}", what="steps", replicas=REPLICAS),
        *(
            contestant("offon", STEPS, f"R={seeds}, N={TOGETHER}", what="steps", replicas=seeds, together=TOGETHER)
            for seeds in (1, REPLICAS)
        ),
        contestant(LOOP, UPDATES, "", what="loop", replicas=1),
        contestant("offon", UPDATES, "R=1", what="updates", replicas=1),
        contestant("offon", UPDATES, f"R={REPLICAS}", what="updates", replicas=REPLICAS),
    ]


def learning(job: dict[str, Any]) -> tuple[dict[str, Any], bench_peers.Run]:
    """One contestant: what it does in a unit of work, and of how many seeds that is a step."""
    device.configure(job["device"], "default")
    once = {"steps": _steps, "updates": _updates, "loop": _plain}[job["what"]](job)
    numbers = count(1)

    def run(units: int) -> None:
        for _ in range(units):
            once(next(numbers))
        if job["device"] == "cuda":
            torch.cuda.synchronize()

    facts = {
        "chunk": _CHUNK,
        "yield": job["replicas"] * job.get("together", 1),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__},
    }
    return facts, run


def _steps(job: dict[str, Any]) -> Any:
    from offon import envs
    from offon.benchmark.acting_stepper import acting_stepper
    from offon.benchmark.builder import prepared
    from offon.benchmark.trial import ONLINE

    spec, together = envs.env_spec(ENV), job.get("together", 1)
    begun, data = _begun(job, spec.obs_dim, spec.act_dim, _ACTING)
    env = envs.make(ENV, job["replicas"] * together, device=job["device"])
    known = prepared(data, begun.method.config)
    acting = acting_stepper(begun.method, known, env, begun.online.capacity, job["device"], ONLINE)
    acting.online.set_state(begun.online.state())
    return lambda number: acting.run(number * together, together)


def _updates(job: dict[str, Any]) -> Any:
    from offon.benchmark.stepper import Stepper
    from offon.benchmark.trial import ONLINE

    begun, _ = _begun(job, **_WIDTHS, settings=_LEARNING)
    stepper = Stepper(begun.method, begun.replay, ONLINE, job["device"], begun.online, chunk=1)
    return lambda number: stepper.run(number, 1)


def _begun(job: dict[str, Any], obs_dim: int, act_dim: int, settings: dict[str, Any]) -> tuple[Any, Transitions]:
    """WSRL online, with a full replay of made-up rows, and these rows."""
    from offon.algorithms.wsrl import WSRL
    from offon.benchmark.synthetic import random_transitions
    from offon.benchmark.trial import ONLINE, start

    seeds, data = tuple(range(job["replicas"])), random_transitions(obs_dim, act_dim, 20, 1000)
    config = WSRL.Config(**{**_SAME, **settings})
    return start(WSRL, ONLINE, seeds, data, device=job["device"], config=config), data


def _plain(job: dict[str, Any]) -> Any:
    loop = Loop(**_WIDTHS, **_LEARNING, where=job["device"])
    return lambda number: loop.update()


class Loop:
    """The same update of one seed the plain way: a module for each critic, visited one after the other."""

    def __init__(self, obs_dim: int, act_dim: int, n_critics: int, utd: int, batch_size: int, where: str) -> None:
        self.utd, self.batch_size, self.act_dim = utd, batch_size, act_dim
        self.policy = _network(obs_dim, 2 * act_dim).to(where)
        self.critics = [_network(obs_dim + act_dim, 1).to(where) for _ in range(n_critics)]
        self.targets = [_network(obs_dim + act_dim, 1).to(where) for _ in range(n_critics)]
        self.log_temperature = torch.zeros((), device=where, requires_grad=True)
        critics = [parameter for critic in self.critics for parameter in critic.parameters()]
        self.critic_optimizer = torch.optim.Adam(critics, lr=3e-4)
        self.policy_optimizer = torch.optim.Adam(self.policy.parameters(), lr=1e-4)
        self.temperature_optimizer = torch.optim.Adam([self.log_temperature], lr=1e-4)
        self.obs, self.next_obs = torch.randn(2, 20_000, obs_dim, device=where)
        self.action = torch.rand(20_000, act_dim, device=where) * 2.0 - 1.0
        self.reward = torch.randn(20_000, device=where)

    def update(self) -> Tensor:
        """Critics on each part of the rows, then the policy and the temperature on all; returns the critics' loss."""
        rows = torch.randint(len(self.obs), (self.utd, self.batch_size), device=self.obs.device)
        for part in rows:
            loss = self._update_critics(part)
        self._update_policy(rows.flatten())
        return loss

    def _update_critics(self, rows: Tensor) -> Tensor:
        with torch.no_grad():
            action, _ = self._sample(self.next_obs[rows])
            inputs = torch.cat((self.next_obs[rows], action), -1)
            chosen = torch.randint(len(self.targets), (2,)).tolist()
            next_q = torch.minimum(*(self.targets[index](inputs) for index in chosen)).squeeze(-1)
            target = self.reward[rows] + 0.99 * next_q
        inputs = torch.cat((self.obs[rows], self.action[rows]), -1)
        losses = [torch.nn.functional.mse_loss(critic(inputs).squeeze(-1), target) for critic in self.critics]
        loss = torch.stack(losses).mean()
        self.critic_optimizer.zero_grad()
        loss.backward()
        self.critic_optimizer.step()
        with torch.no_grad():
            for target_critic, critic in zip(self.targets, self.critics, strict=True):
                for old, new in zip(target_critic.parameters(), critic.parameters(), strict=True):
                    old.lerp_(new, 0.005)
        return loss.detach()

    def _update_policy(self, rows: Tensor) -> None:
        action, log_prob = self._sample(self.obs[rows])
        inputs = torch.cat((self.obs[rows], action), -1)
        q = torch.stack([critic(inputs).squeeze(-1) for critic in self.critics]).amin(0)
        loss = (self.log_temperature.detach().exp() * log_prob - q).mean()
        self.policy_optimizer.zero_grad()
        loss.backward()
        self.policy_optimizer.step()
        with torch.no_grad():
            _, log_prob = self._sample(self.next_obs[rows])
        temperature_loss = -self.log_temperature.exp() * (log_prob.mean() - self.act_dim)
        self.temperature_optimizer.zero_grad()
        temperature_loss.backward()
        self.temperature_optimizer.step()

    def _sample(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.policy(obs).chunk(2, -1)
        log_std = log_std.clamp(-20.0, 2.0)
        normal = torch.randn_like(mean)
        before = mean + log_std.exp() * normal
        squash = 2.0 * (0.693147 - before - torch.nn.functional.softplus(-2.0 * before))
        return torch.tanh(before), (-0.5 * normal.square() - log_std - 0.918939 - squash).sum(-1)


def _network(inputs: int, outputs: int) -> torch.nn.Sequential:
    nn = torch.nn
    first = (nn.Linear(inputs, 256), nn.LayerNorm(256), nn.ReLU())
    return nn.Sequential(*first, nn.Linear(256, 256), nn.LayerNorm(256), nn.ReLU(), nn.Linear(256, outputs))


if __name__ == "__main__":
    bench_peers.serve(learning)
