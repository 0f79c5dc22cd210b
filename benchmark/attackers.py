"""Corruption of a job's data, and the critics that adversarial attacks are made against: trained once, then kept.

An attacker is EDAC or SAC-N, trained on the clean data as they were logged; its weights lie in the cache under the hash
of its recipe and of the data, and so does what its attack left. The identity of the data says the hash of the weights:
two machines need not train to the same bits, and their rows are then not mixed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offon.algorithms.interface import Spec
from offon.algorithms.noise import CHUNK
from offon.algorithms.registry import get
from offon.algorithms.sac import SACN
from offon.benchmark import kept
from offon.benchmark.replay import Replay, columns_of
from offon.benchmark.stepper import Stepper, restore
from offon.datasets.corruption import ELEMENTS, Corruption, Victim, corrupt, entry
from offon.datasets.errors import DataError
from offon.datasets.hashes import cache_folder
from offon.datasets.options import typed
from offon.datasets.transitions import Transitions

_VERSION = 1  # raised when the training of an attacker or an attack changes a number
_SEED = 0
_PHASE = "offline"
_DONE = "updates_done"  # beside the state of an attacker in training


@dataclass(frozen=True)
class CorruptionOptions(Corruption):
    """`corruption.KEY=VALUE` of `offon run`: what is done to the logged data, and against whom."""

    attacker: str = "edac"  # method whose critics are attacked, where the mode is adversarial: edac, or sac_n
    attacker_updates: int = 100_000  # of its training on the clean data; 3,000,000 in the published protocol
    attacker_critics: int = 10  # their mean is attacked
    attacker_width: int = 256  # of its three hidden layers

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        super().__post_init__()
        for name in ("attacker_updates", "attacker_critics", "attacker_width"):
            if getattr(self, name) < 1:
                raise DataError(f"expected corruption.{name} of at least 1, got {getattr(self, name)}")


def corruption_of_options(given: Mapping[str, Any]) -> CorruptionOptions:
    """The options of a corruption, defaults filled in.

    Raises:
        DataError: names an option that there is not, or a value of another type.
    """
    values = typed(CorruptionOptions, given, "corruption.", "a corruption has")
    if "attack" not in given and given:
        raise DataError(f"corruption.{next(iter(given))} goes with corruption.attack=…; say what is attacked")
    return CorruptionOptions(**values)


def corrupted(original: Transitions, options: Mapping[str, Any], device: str = "cpu") -> Transitions:
    """The logged data after the corruption of a job; without one, as they are.

    Args:
        original: as logged.
        options: the fields of CorruptionOptions, or nothing.
        device: where an attacker is trained and attacked.
    """
    chosen = CorruptionOptions(**options)
    if not chosen.needs_victim:
        return corrupt(original, chosen)
    victim = victim_of(original, chosen, device)
    key = _key(original, [asdict(chosen), victim.facts])
    path = cache_folder() / "corrupted" / f"{key}.safetensors"
    names = [ELEMENTS[element] for element in chosen.elements]
    known = kept.read(path, names)
    if known is None:
        _say(f"attacks {chosen.attack} of {original.identity.name} ({chosen.rate:g} of {original.size:,} rows), once")
        found = corrupt(original, chosen, victim)
        kept.write(path, {name: getattr(found, name) for name in names})
        return found
    noted = original.identity.extended(entry(chosen, victim.facts))
    return replace(original, **known, recorded_return=original.behaviour_return, identity=noted)


def victim_of(original: Transitions, options: CorruptionOptions, device: str = "cpu") -> Victim:
    """The critics and the policy that an attack is made against; trained here if the cache has none.

    Raises:
        DataError: if the attacker is no variant of SAC-N, or its training breaks.
    """
    built = _untrained(original, options, device)
    recipe = {
        "victim": options.attacker,
        "victim_updates": options.attacker_updates,
        "victim_critics": options.attacker_critics,
        "victim_width": options.attacker_width,
        "victim_seed": _SEED,
    }
    path = cache_folder() / "attackers" / f"{_key(original, [recipe, built.version])}.safetensors"
    known = kept.read(path, list(built.state_dict()))
    try:
        restore(built, known or {})
    except ValueError:
        _say(
            f"trains the attacker ({options.attacker}, {options.attacker_updates:,} updates) on "
            f"{original.identity.name}, once; corruption.attacker_updates= changes how long"
        )
        partial = path.with_name(f"{path.stem}-partial.safetensors")
        _train(built, original, options.attacker_updates, device, partial)
        kept.write(path, dict(built.state_dict()))
        kept.remove(partial)

    seen = {
        f"{part}.{name}": tensor
        for part in ("policy", "critic")
        for name, tensor in getattr(built, part).state_dict().items()
    }

    def value(obs: Tensor, action: Tensor) -> Tensor:
        rows = torch.cat((obs, action), -1)[None].to(device)
        return built.critic(rows, frozen=True).squeeze(-1).mean(1)[0].to(obs.device)

    def act(obs: Tensor, normal: Tensor) -> Tensor:
        return built.policy.sample(obs[None].to(device), normal[None].to(device))[0][0].to(obs.device)

    return Victim(value, act, (*recipe.items(), ("victim_sha256", kept.sha256_of(seen))))


def _untrained(original: Transitions, options: CorruptionOptions, device: str) -> SACN:
    method = get(options.attacker)
    if not issubclass(method, SACN):
        raise DataError(f"expected corruption.attacker sac_n or a variant of it, got {options.attacker!r}")
    config = method.Config(n_critics=options.attacker_critics, hidden_dims=(options.attacker_width,) * 3)
    updates = {_PHASE: options.attacker_updates}
    built = method(Spec(original.obs_dim, original.act_dim, updates=updates, stats=original.stats()), config, (_SEED,))
    built.prepare(original)
    built.to(device).begin(_PHASE)
    return built


def _train(method: SACN, original: Transitions, updates: int, device: str, partial: Path) -> None:
    """Trains to the end, from where an earlier attempt has left off; every tenth of the way is kept."""
    replay = Replay(original, columns_of(method.sources(_PHASE)), device, method.config.discount)
    stepper = Stepper(method, replay, _PHASE, device)
    done, tenth = 0, max(1, updates // 10)
    known = kept.read(partial, [*method.state_dict(), _DONE])
    if known is not None:
        done = int(known.pop(_DONE))
        restore(method, known)
    for first in range(done, updates, CHUNK):
        stop = min(first + CHUNK, updates)
        totals = stepper.run(first, stop - first)
        if first // tenth < stop // tenth and stop < updates:
            kept.write(partial, {**method.state_dict(), _DONE: torch.tensor(stop)})
            _say(f"attacker: {stop:,} of {updates:,} updates, mean value {float(totals['q']) / (stop - first):.4g}")
    if not all(bool(parameter.isfinite().all()) for parameter in method.parameters()):
        kept.remove(partial)
        raise DataError(f"the attacker of {original.identity.name} broke in its training; choose fewer updates")


def _key(original: Transitions, what: object) -> str:
    return kept.key_of(_VERSION, original.identity.as_dict(), what)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
