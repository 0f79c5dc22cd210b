"""The randomness of methods: every draw is a function of seed, phase, name and step, never of call order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from offon.counter import GAMMA, bits_at, key_of, mix, to_integers, to_normal, to_uniform

CHUNK = 50  # updates whose noise is drawn together, outside a captured graph
_BUFFER_LIMIT = 1 << 25  # elements; a larger draw is made step by step to spare memory


def _mark_drawn(drawn: set[str], name: str, turn: str) -> None:
    if name in drawn:
        raise ValueError(f"noise {name!r} was drawn twice in one {turn}: give each draw a name of its own")
    drawn.add(name)


@lru_cache(maxsize=1024)
def _keys(seeds: tuple[int, ...], phase: str, name: str, device: torch.device) -> Tensor:
    """The keys of a draw, [R]; kept, because a CUDA graph that is being recorded takes nothing from the host."""
    return torch.tensor([key_of(seed, phase, name) for seed in seeds], dtype=torch.int64, device=device)


class _Draws:
    """The four kinds of draw, on top of `_draw(kind, name, shape, convert)`."""

    def _draw(self, kind: str, name: str, shape: tuple[int, ...], convert: Callable[[Tensor], Tensor]) -> Tensor:
        raise NotImplementedError

    def normal(self, name: str, *shape: int) -> Tensor:
        """Standard normals, float32."""
        return self._draw("normal", name, shape, to_normal)

    def uniform(self, name: str, *shape: int) -> Tensor:
        """Uniforms in [0, 1), float32."""
        return self._draw("uniform", name, shape, to_uniform)

    def integers(self, name: str, high: int | Tensor, *shape: int) -> Tensor:
        """Integers in [0, high), int64; `high` may be a device tensor (a growing replay) and must be below 2^31."""
        kind = "integers" if isinstance(high, Tensor) else f"integers{high}"  # the same name may get another bound
        return self._draw(kind, name, shape, lambda bits: to_integers(bits, high))

    def keep(self, name: str, p: float, *shape: int) -> Tensor:
        """A 0/1 float32 mask whose entries are 1 with probability `p` (not rescaled)."""
        return self._draw(f"keep{p}", name, shape, lambda bits: (to_uniform(bits) < p).to(torch.float32))


class Noise(_Draws):
    """Noise of training: each draw is [R, *shape], a function of (replica seed, phase, name, update number).

    The runner calls `begin_chunk` before every chunk of updates and sets the slot of the update inside it; the
    numbers of a whole chunk are drawn at once, into buffers whose addresses stay the same (CUDA graphs read them).
    """

    def __init__(
        self, seeds: Sequence[int], phase: str, device: torch.device | str = "cpu", chunk: int = CHUNK
    ) -> None:
        self._seeds, self._phase, self._device, self.chunk = tuple(seeds), phase, torch.device(device), chunk
        self._steps = torch.zeros(chunk, dtype=torch.int64, device=self._device)
        self._offsets = torch.arange(chunk, dtype=torch.int64, device=self._device)
        self._keys: dict[str, Tensor] = {}
        self._buffers: dict[tuple, tuple[Tensor, Callable[[], Tensor]]] = {}
        self._drawn: set[str] = set()
        self._first, self._slot = 0, 0
        self.period = 1  # updates after which the turns that were asked for come round together

    def begin_chunk(self, first_update: int) -> None:
        """Draws the known numbers of updates `first_update` ... `first_update + chunk - 1`."""
        self._first = first_update
        torch.add(self._offsets, first_update, out=self._steps)
        for buffer, refill in self._buffers.values():
            buffer.copy_(refill())
        self.begin_update(0)

    def begin_update(self, slot: int) -> None:
        """Moves to one update of the chunk."""
        self._slot = slot
        self._drawn.clear()

    def turn(self, period: int) -> int:
        """This update's number modulo `period`, a Python int: how a method acts only on every second update.

        Under CUDA graph capture the branch taken is recorded: where `period` does not divide the chunk, as beside
        environment steps, there is a graph for each turn with which a chunk begins.
        """
        self.period = math.lcm(self.period, period)
        return (self._first + self._slot) % period

    def _key(self, name: str) -> Tensor:
        if name not in self._keys:
            keys = [key_of(seed, self._phase, name) for seed in self._seeds]
            self._keys[name] = torch.tensor(keys, dtype=torch.int64, device=self._device)
        return self._keys[name]

    def _draw(self, kind: str, name: str, shape: tuple[int, ...], convert: Callable[[Tensor], Tensor]) -> Tensor:
        _mark_drawn(self._drawn, name, "update")
        slot_key = (kind, name, shape)
        entry = self._buffers.get(slot_key)
        if entry is not None:
            return entry[0][self._slot]
        count = math.prod(shape)
        key = self._key(name)

        def bits(steps: Tensor) -> Tensor:
            return convert(bits_at(key, steps[:, None], count)).view(len(steps), len(self._seeds), *shape)

        if self.chunk * len(self._seeds) * count > _BUFFER_LIMIT:
            return bits(self._steps[self._slot : self._slot + 1])[0]
        buffer = bits(self._steps)
        self._buffers[slot_key] = (buffer, lambda: bits(self._steps))
        return buffer[self._slot]


class Under(Noise):
    """The same noise under names that begin with a prefix: for parts of an update that are run several times."""

    def __init__(self, noise: Noise, prefix: str) -> None:
        self._noise, self._prefix = noise, prefix

    def under(self, prefix: str) -> Under:
        """The same under a longer prefix."""
        return Under(self._noise, f"{self._prefix}/{prefix}")

    def turn(self, period: int) -> int:
        """As the noise itself says."""
        return self._noise.turn(period)

    def _draw(self, kind: str, name: str, shape: tuple[int, ...], convert: Callable[[Tensor], Tensor]) -> Tensor:
        return self._noise._draw(kind, f"{self._prefix}/{name}", shape, convert)


class ActNoise(_Draws):
    """Noise of acting: each draw is [R, N, *shape], a function of (replica seed, phase, name, episode seed, t).

    Args:
        seeds: replica seeds, R of them.
        phase: "eval" or the name of the training phase.
        episode_seeds: int64 [N] or [R, N].
        t: int64 [R, N] or [N], the step inside the episode.
    """

    def __init__(self, seeds: Sequence[int], phase: str, episode_seeds: Tensor, t: Tensor) -> None:
        self._seeds, self._phase = tuple(seeds), phase
        self._episodes = mix(episode_seeds * GAMMA)
        self._t = t
        self._drawn: set[str] = set()

    def _draw(self, kind: str, name: str, shape: tuple[int, ...], convert: Callable[[Tensor], Tensor]) -> Tensor:
        _mark_drawn(self._drawn, name, "step")
        device = self._episodes.device
        base = mix(_keys(self._seeds, self._phase, name, device)[:, None] ^ self._episodes)  # [R, N]
        bits = bits_at(base, self._t.expand(base.shape), math.prod(shape))
        return convert(bits).view(*base.shape, *shape)
