"""The stepper runs chunks of updates: eagerly on a CPU, as one captured CUDA graph on a GPU. Same update code."""

from __future__ import annotations

import torch
from torch import Tensor

from offon.algorithms.interface import Algorithm, Rows
from offon.algorithms.noise import CHUNK, Noise
from offon.benchmark.growing_replay import GrowingReplay
from offon.benchmark.replay import Replay
from offon.datasets.transitions import Batch


def snapshot(method: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of all state."""
    return {name: tensor.detach().clone() for name, tensor in method.state_dict().items()}


@torch.no_grad()
def restore(method: torch.nn.Module, state: dict[str, Tensor]) -> None:
    """Copies a state back, in place: addresses never change, captured graphs stay valid.

    Raises:
        ValueError: if the state is of another method, configuration or number of replicas.
    """
    own = method.state_dict()
    if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
        raise ValueError("the stored state does not fit this method: another configuration or number of replicas")
    for name, tensor in own.items():
        tensor.copy_(state[name])


class Stepper:
    """Runs updates in chunks; the numbers of a run do not depend on where chunks are cut.

    Args:
        method: on its device.
        replay: logged rows.
        phase: of the protocol.
        device: where it trains.
        online: rows that the replicas have played, for methods that ask for them.
        chunk: updates whose noise is drawn together.
    """

    first_update = 0  # the first count at which `run` learns

    def __init__(
        self,
        method: Algorithm,
        replay: Replay,
        phase: str,
        device: str,
        online: GrowingReplay | None = None,
        chunk: int = CHUNK,
    ) -> None:
        self.method, self.replay, self.device = method, replay, torch.device(device)
        self.online = online
        self.noise = Noise(method.seeds, phase, device, chunk)
        self._sources = method.sources(phase)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]] = {}  # one for each turn of the noise

    def run(self, first_update: int, count: int) -> dict[str, Tensor]:
        """Updates `first_update` ... `first_update + count - 1`; returns the sum of each metric over them, [R].

        `count` is at most the noise's chunk. On CUDA a whole aligned chunk is replayed as a graph; what is shorter
        runs eagerly.
        """
        chunk = self.noise.chunk
        if not 0 < count <= chunk:
            raise ValueError(f"expected 1 to {chunk} updates, got {count}")
        self.noise.begin_chunk(first_update)
        capture = self.device.type == "cuda" and self.method.capturable
        if capture and count == chunk and first_update % chunk == 0:
            if first_update % self.noise.period not in self._graphs:
                self._capture(first_update)
            graph, metrics = self._graphs[first_update % self.noise.period]
            graph.replay()
            return {name: total.clone() for name, total in metrics.items()}
        return self._updates(count)

    def _updates(self, count: int) -> dict[str, Tensor]:
        seen: dict[str, list[Tensor]] = {}
        for slot in range(count):
            self.noise.begin_update(slot)
            batch = {name: self._draw(name, rows) for name, rows in self._sources.items()}
            for name, value in self.method.update(batch, self.noise).items():
                seen.setdefault(name, []).append(value)
        return {name: torch.stack(values).sum(0) for name, values in seen.items()}

    def _draw(self, name: str, rows: Rows) -> Batch:
        if rows.of == "offline":
            return self.replay.draw(name, rows, self.noise)
        if self.online is None:
            raise ValueError(f"rows {name!r} of what was played were asked for, but under this protocol nobody plays")
        if rows.of == "all":
            return self.online.draw_from_both(self.replay, name, rows, self.noise)
        return self.online.draw(name, rows, self.noise)

    def _capture(self, first_update: int) -> None:
        """Records one chunk; a capture itself runs nothing.

        Before it a whole chunk is run on a side stream, so that every draw is known, and undone from a snapshot.
        """
        before, period = snapshot(self.method), self.noise.period
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._updates(self.noise.chunk)
        torch.cuda.current_stream().wait_stream(side)
        restore(self.method, before)
        if self.noise.period != period:
            self._graphs.clear()  # recorded when turns were thought to come round sooner
        self.noise.begin_chunk(first_update)  # draws whose names the warm-up has just made known
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            metrics = self._updates(self.noise.chunk)
        self._graphs[first_update % self.noise.period] = graph, metrics
