"""What a user sees while runs train: rich bars, one JSON line per event, or nothing but errors."""

from __future__ import annotations

import json
import sys
from typing import Any

MODES = ("auto", "rich", "json", "quiet")


class Progress:
    """Receives the events of all runs; use as a context manager."""

    def __enter__(self) -> Progress:
        """Starts the display."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the display."""

    def emit(self, event: dict[str, Any]) -> None:
        """Shows one event."""
        if event["event"] in ("error", "busy", "replica_failed", "note"):
            print(sentence(event), file=sys.stderr)


class JsonProgress(Progress):
    """One JSON object per line on standard output."""

    def emit(self, event: dict[str, Any]) -> None:
        """Prints one event."""
        print(json.dumps(event, sort_keys=True), flush=True)


class RichProgress(Progress):
    """One bar per run: rate, time left and current score."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars
        from rich.table import Column

        self._console = Console(stderr=True)
        self._bars = Bars(
            TextColumn("{task.description}", markup=False, table_column=Column()),  # wraps before numbers are cut
            BarColumn(bar_width=12),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[score]}"),
            console=self._console,
        )
        self._ids: dict[str, Any] = {}

    def __enter__(self) -> Progress:
        """Shows the bars."""
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the last state of the bars on the screen."""
        self._bars.stop()

    def emit(self, event: dict[str, Any]) -> None:
        """Moves a bar, or prints what is worth a line."""
        if event["event"] in ("error", "busy", "replica_failed", "interrupted", "note"):
            self._console.print(sentence(event), markup=False, highlight=False)
            return
        run_id = event["run_id"]
        if run_id not in self._ids:
            name = f"{event['label']} {event['task']} seeds {_brief(event['seeds'])}"
            self._ids[run_id] = self._bars.add_task(name, total=event["updates"], rate="", score="")
        rate, score = event.get("updates_per_second"), event.get("score")
        raw = event.get("mean_return")
        shown = f"score {score:.1f}" if score is not None else f"return {raw:.1f}" if raw is not None else ""
        self._bars.update(
            self._ids[run_id],
            completed=event["update"],
            rate=f"{rate * len(event['seeds']):.0f} {event.get('unit', 'updates')}/s" if rate else "",  # of all seeds
            score=shown,
        )


def sentence(event: dict[str, Any]) -> str:
    """One event in words."""
    who = f"run {event['run_id']}"
    if "label" in event:
        who = f"{event['label']} on {event['task']}, seeds {_brief(event['seeds'])} ({who})"
    if event["event"] == "busy":
        return f"{who}: is being trained already by {event['holder']}; left alone"
    if event["event"] == "replica_failed":
        first, last = event["span"]
        between = f"between {event.get('unit', 'updates')} {first} and {last}"
        return f"{who}: seed {event['seed']} broke (non-finite values {between}); it is frozen"
    if event["event"] == "interrupted":
        return f"{who}: stopped with a checkpoint"
    return f"{who}: {event['message']}"


def _brief(seeds: list[int]) -> str:
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}-{seeds[-1]}"
    return ",".join(map(str, seeds))


def make_progress(mode: str) -> Progress:
    """The display of a mode; `auto` is rich on a terminal, else quiet.

    Raises:
        ValueError: for an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"expected progress among {', '.join(MODES)}, got {mode!r}")
    if mode == "auto":
        mode = "rich" if sys.stderr.isatty() else "quiet"
    return {"rich": RichProgress, "json": JsonProgress, "quiet": Progress}[mode]()
