"""`offon data`: show, verify, fetch, collect."""

from __future__ import annotations

import json
from pathlib import Path


def _dataset_name(name: str) -> str:
    """The data set behind a task name; other names and paths stay as they are.

    Raises:
        DataError: for data that are generated, of which there is no file.
    """
    from offon.benchmark.generated import is_generated
    from offon.benchmark.tasks import load_tasks
    from offon.datasets.errors import DataError

    tasks = load_tasks()
    if name in tasks and is_generated(tasks[name].dataset):
        raise DataError(f"{name}: its data are generated when they are needed, there is no file; `data show` says how")
    return tasks[name].dataset if name in tasks else name


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

    found = _describe_generated(name) or describe(_dataset_name(name))
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

    report = verify_data(_dataset_name(name))
    rows = [{"check": r.check, "expected": r.expected, "found": r.found, "ok": r.ok} for r in report.rows]
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            word = "ok" if row["ok"] else "DIFFERS"
            print(f"{word:<9}{row['check']}: expected {row['expected']}, found {row['found']}")
    return 0 if all(row["ok"] for row in rows) else 1


def fetch(name: str, as_json: bool) -> int:
    """Says where a data set is, or where it can be had and how to make it found."""
    from offon.datasets.load import resolve

    known, path = resolve(_dataset_name(name))  # raises with the places searched, the source and the cure
    label = known.name if known else path.name
    print(json.dumps({"name": label, "path": str(path)}) if as_json else f"{label} is here: {path}")
    return 0


def collect(name: str, out: Path | None) -> int:
    """Collects one of the bundled data sets again, by its recipe."""
    from offon.benchmark.collect import collect_recipe

    path = out or Path(f"{name}.npz")
    collect_recipe(name, path)
    print(f"wrote {path}")
    return 0
