"""The file that `offon new algorithm NAME` writes: a complete method of about 60 lines to start from."""

from __future__ import annotations

import importlib.util
import keyword
from pathlib import Path
from string import Template

from offon.algorithms import registry
from offon.algorithms.registry import AlgorithmError

_TEXT = Template('''"""$title: say in a sentence what is new. This is a complete method; change what you like.

The policy imitates the logged actions, weighted by how much better they are than its own (after AWAC, Nair et al.,
2020). R replicas (seeds) train together: every tensor has a leading axis R, and replicas never interact.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from offon import Algorithm, DeterministicPolicy, losses, nn, register


@register("$name", protocols=("offline",))
class $title(Algorithm):
    """Advantage-weighted imitation."""

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        """Settings: the comment behind a field is its help text; set one with `algorithm.temperature=1`."""

        temperature: float = 3.0  # how strongly the advantage weighs an action
        max_weight: float = 100.0  # largest weight
        tau: float = 0.005  # rate of the target average
        hidden_dims: tuple[int, ...] = (256, 256)  # hidden widths of both networks
        lr: float = 3e-4  # Adam's learning rate
        normalize_obs: bool = True  # standardise observations

    config: Config

    def __init__(self, spec, config, seeds):
        super().__init__(spec, config, seeds)
        # a net's name is part of its seed: two nets, two names
        self.policy = DeterministicPolicy(seeds, "policy", (spec.obs_dim, *config.hidden_dims, spec.act_dim))
        self.critic = nn.MLP(seeds, "critic", (spec.obs_dim + spec.act_dim, *config.hidden_dims, 1), ensemble=2)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.policy_optimizer = nn.Adam([self.policy], config.lr)
        self.critic_optimizer = nn.Adam([self.critic], config.lr)

    def update(self, batch, noise):
        """One step. No .item(), no Python branch on a tensor; randomness only as noise.normal(name, *shape)."""
        data = batch["data"]  # obs, action, next_obs [R, B, ...]; reward, terminated, truncated [R, B]
        with torch.no_grad():
            next_q = self._min_q(data.next_obs, self.policy(data.next_obs))
            target = losses.td_target(data.reward, data.terminated, next_q, self.hp("discount"))  # hp(...) is [R, 1]
        critic_loss = losses.critic_loss(self.critic(data.obs_action).squeeze(-1), target)  # [R]
        self.critic_optimizer.step(critic_loss)
        action = self.policy(data.obs)
        with torch.no_grad():
            advantage = self._min_q(data.obs, data.action) - self._min_q(data.obs, action)
            weight = torch.minimum(torch.exp(self.hp("temperature") * advantage), self.hp("max_weight"))
        policy_loss = (weight * (action - data.action).square().sum(-1)).mean(-1)  # over rows only: [R]
        self.policy_optimizer.step(policy_loss)
        nn.ema_(self.target_critic, self.critic, self.config.tau)
        return {"critic_loss": critic_loss.detach(), "policy_loss": policy_loss.detach()}

    def _min_q(self, obs, action):
        return self.target_critic(torch.cat((obs, action), -1)).squeeze(-1).amin(1)  # [R, 2, B, 1] -> [R, B]

    def act(self, x, noise, mode):
        """Actions [R, N, act_dim] in [-1, 1] for observations x.obs [R, N, obs_dim]; mode is "eval" or "explore"."""
        return self.policy(x.obs)
''')


def write_template(name: str, folder: Path) -> Path:
    """Writes `folder/name.py`; what to do with it next is `offon check` on the path that is returned.

    Raises:
        AlgorithmError: if the name is not snake_case or is taken, or the file stands already.
    """
    if not name.isidentifier() or name != name.lower() or name.startswith("_") or keyword.iskeyword(name):
        raise AlgorithmError(f"expected a snake_case name such as my_algo, got {name!r}")
    if importlib.util.find_spec(name) is not None:
        raise AlgorithmError(f"a Python module is named {name!r}, which {name}.py would hide; choose another name")
    if name in registry.load_all():
        raise AlgorithmError(f"there is an algorithm named {name!r} already; choose another name")
    path = folder / f"{name}.py"
    title = "".join(word.capitalize() for word in name.split("_"))
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(_TEXT.substitute(name=name, title=title))
    except FileExistsError:
        raise AlgorithmError(f"{path} stands already and is left as it is; choose another name or folder") from None
    except OSError as error:
        raise AlgorithmError(f"{folder}: {error.strerror}; name a folder that exists (--folder)") from error
    return path
