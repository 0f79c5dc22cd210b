"""Speed contests: every contestant is a process that stays alive and works one round at a time, in turn.

Start-up and warm-up are outside the rounds, and since all take turns, a busy neighbour slows all of them: what counts
are ratios, formed round by round.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

ROUND_SECONDS = 1.5  # that a contestant works in a round
_ERROR_LINES = 12


class BenchError(ValueError):
    """A benchmark cannot be run as asked."""


@dataclass(frozen=True)
class Contestant:
    """One thing to be timed."""

    who: str  # "offon", or whose work it is that ours is compared with
    group: str  # only contestants of one group are compared
    size: str  # for people: what distinguishes ours inside a group
    command: tuple[str, ...]  # a program built on `bench_peers.serve`
    job: dict[str, Any]  # its argument


@dataclass
class Timing:
    """What was measured of one contestant."""

    contestant: Contestant
    facts: dict[str, Any]
    rates: list[float] = field(default_factory=list)  # per round
    ratios: dict[str, list[float]] = field(default_factory=dict)  # by who was beaten, or not

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the paths of this machine."""
        known = self.contestant
        return {
            "who": known.who,
            "group": known.group,
            "size": known.size,
            "rate": spread(self.rates),
            "rates": self.rates,
            "ratios": {who: spread(ratios) for who, ratios in self.ratios.items()},
            "job": {name: value for name, value in known.job.items() if name != "checkout"},
            "facts": self.facts,
        }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


class _Process:
    """A contestant at work; leaving the context ends it."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        self._errors = tempfile.TemporaryFile("w+", errors="replace")
        self._process = subprocess.Popen(
            [*contestant.command, json.dumps(contestant.job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # it holds nothing worth saving
        self._process.communicate()
        self._errors.close()

    def answer(self) -> dict[str, Any]:
        """The next line it writes."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._errors.seek(0)
        said = "".join(self._errors.readlines()[-_ERROR_LINES:]).strip()
        known = self.contestant
        raise BenchError(
            f"{known.who} ({known.group} {known.size}".rstrip() + f") stopped with status {self._process.returncode} "
            f"where a measurement was expected; run it by hand to mend it. It said:\n{said}"
        )

    def work(self, units: int) -> dict[str, float]:
        """The seconds, "cpu" and "wall", that so many units take."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{units}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: `answer` says why
        return self.answer()


def hold(
    contestants: Sequence[Contestant],
    rounds: int,
    clock: str = "cpu",
    units: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Timing]:
    """Times all contestants in interleaved rounds.

    Args:
        contestants: who takes part, in the order of turns.
        rounds: how often each works.
        clock: "cpu" or "wall" (where the work is not done by the CPU).
        units: units of work per round; None: as many whole chunks as take about `ROUND_SECONDS`.
        tell: is told what happens.
    """
    if rounds < 1:
        raise BenchError(f"expected at least one round, got {rounds}")
    with ExitStack() as stack:
        tell(f"starting {len(contestants)} processes")
        processes = [stack.enter_context(_Process(contestant)) for contestant in contestants]
        timings = [Timing(process.contestant, process.answer()) for process in processes]
        shares = [units or _share(*each, clock) for each in zip(processes, timings, strict=True)]
        for number in range(rounds):
            tell(f"round {number + 1} of {rounds}")
            for process, timing, share in zip(processes, timings, shares, strict=True):
                timing.rates.append(share * timing.facts["yield"] / process.work(share)[clock])
    _compare(timings)
    return timings


def _share(process: _Process, timing: Timing, clock: str) -> int:
    """Units per round, found after one chunk of warm-up."""
    chunk = timing.facts["chunk"]
    process.work(chunk)
    return chunk * max(1, round(ROUND_SECONDS / process.work(chunk)[clock]))


def _compare(timings: Sequence[Timing]) -> None:
    """Fills in the ratios of ours to each other contestant of the same group, round by round."""
    for ours in (timing for timing in timings if timing.contestant.who == "offon"):
        for other in timings:
            if other.contestant.who != "offon" and other.contestant.group == ours.contestant.group:
                pairs = zip(ours.rates, other.rates, strict=True)
                ours.ratios[other.contestant.who] = [mine / theirs for mine, theirs in pairs]


def own_command(module: str) -> tuple[str, ...]:
    """How a program of ours is started; `-P` keeps the working directory off the import path."""
    return (sys.executable, "-P", "-m", f"offon.benchmark.{module}")
