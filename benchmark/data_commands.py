"""`offon data`: list, show, fetch, verify, plot, collect."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from offon.benchmark.generated import logged_dataset
from offon.datasets.catalogue import DATASETS
from offon.datasets.errors import DataError

if TYPE_CHECKING:
    from rich.progress import TaskID


def _describe_generated(name: str) -> dict[str, object] | None:
    """What is known of the data of a task that are generated; None for other names."""
    from offon.benchmark.generated import is_generated, option_class
    from offon.benchmark.options import describe_fields
    from offon.benchmark.tasks import load_tasks

    tasks = load_tasks()
    if name not in tasks or not is_generated(tasks[name].dataset):
        return None
    options = describe_fields(option_class(name.partition("/")[0]))
    return {
        "name": name,
        "status": "generated when needed by this package's simulator; its recipe is its identity",
        "options": [f"data.{option}={default}: {meaning}" for option, default, meaning in options],
    }


def show(name: str, as_json: bool) -> int:
    """What is known of a data set."""
    from offon.datasets.verify import describe

    found = _describe_generated(name) or describe(logged_dataset(name))
    if as_json:
        print(json.dumps(found, indent=1))
        return 0
    for key, value in found.items():
        if isinstance(value, list | tuple):
            print(f"{key}:")
            for entry in value:
                print(f"  - {entry}")
        else:
            print(f"{key}: {value}")
    return 0


def verify(name: str, as_json: bool) -> int:
    """Recomputes hash and statistics; exit status 1 if something differs."""
    from offon.datasets.verify import verify as verify_data

    report = verify_data(logged_dataset(name))
    rows = [{"check": r.check, "expected": r.expected, "found": r.found, "ok": r.ok} for r in report.rows]
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            word = "ok" if row["ok"] else "DIFFERS"
            print(f"{word:<9}{row['check']}: expected {row['expected']}, found {row['found']}")
    return 0 if all(row["ok"] for row in rows) else 1


def list_all(part: str, as_json: bool) -> int:
    """Lists the known data sets with their file, if it is here."""
    from offon.datasets.locate import find_all

    chosen = [known for name, known in DATASETS.items() if part in name]
    found = find_all(chosen)
    rows = [
        {"name": known.name, "status": known.status, "path": str(found[known.name]) if known.name in found else None}
        for known in chosen
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        print(f"{row['name']:<42}{row['status']:<11}{row['path'] or 'not here'}")
    print(f"{len(found)} of {len(chosen)} are here; `offon data show NAME` says how to come by the others")
    return 0


def fetch(name: str, as_json: bool, no_network: bool) -> int:
    """Downloads a data set unless its file is here."""
    from offon.datasets.fetch import fetch as fetch_data
    from offon.datasets.load import resolve

    known = DATASETS.get(name := logged_dataset(name))
    if known is None:
        resolve(name)  # a file that is here, or names what there is
        raise DataError(f"expected the name of a task or data set, got the file {name}; it is here already")
    with _Bar(known.name, quiet=as_json) as bar:
        path = fetch_data(known, network=not no_network, progress=bar.show)
    print(json.dumps({"name": known.name, "path": str(path)}) if as_json else f"{known.name} is here: {path}")
    return 0


class _Bar:
    """A bar of downloaded bytes, once there are any; only on a terminal."""

    def __init__(self, name: str, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._bars = Progress(
            *(TextColumn(name, markup=False), BarColumn(bar_width=20), DownloadColumn(), TransferSpeedColumn()),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=quiet or not sys.stderr.isatty(),
        )
        self._id: TaskID | None = None

    def __enter__(self) -> _Bar:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, done: int, total: int | None) -> None:
        if self._id is None:
            self._id = self._bars.add_task("", total=total)
        self._bars.update(self._id, completed=done, total=total)


def plot(name: str, path: Path | None) -> int:
    """Draws what a data set holds."""
    from offon.benchmark.data_plot import draw
    from offon.benchmark.files import write_bytes
    from offon.datasets.load import load

    data = load(logged_dataset(name))
    target = path or Path(f"data-{data.identity.name.replace('/', '-')}.png")
    write_bytes(target, draw(data))
    print(f"wrote {target}")
    return 0


def collect(what: list[str], out: Path | None) -> int:
    """Collects one of the bundled data sets again, data with costs by a recipe, or new data with a policy."""
    from offon.benchmark import cli, collect_policy, safe_recipes
    from offon.benchmark.collect import RECIPES, collect_recipe

    if what == ["help"]:
        print(collect_policy.HELP)
        print(safe_recipes.described())
        return 0
    name, *rest = what
    try:
        if name in RECIPES:
            if rest:
                raise ValueError(f"{name} is bundled and made as it was: it takes no options, got {' '.join(rest)}")
            path = out or Path(f"{name}.npz")
            collect_recipe(name, path)
        elif "=" in name:
            path = collect_policy.collect_options(what, out)
        else:
            path = safe_recipes.collect_safe(name, rest, out)
    except safe_recipes.UnfinishedError as error:
        print(error, file=sys.stderr)
        return {"failed": cli.FAILED, "busy": cli.BUSY}.get(error.status, cli.INTERRUPTED)
    print(f"wrote {path}")
    return 0
