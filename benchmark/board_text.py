"""The leaderboard as text: CSV, Markdown, terminal; numbers are written the same way everywhere."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from offon.benchmark import samples
from offon.benchmark.cells import Incident

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from offon.benchmark.further_tables import FurtherTable

LEFT = ("algorithm", "status")
COUNTS = ("seeds", "episodes", "rank", "seeds_expected")
HEADINGS = ("#", "algorithm", "IQM [95 %]", "mean ± std", "median", "oracle best", "vs. behaviour", "seeds", "status")
NARROW = ("#", "algorithm", "IQM [95 %]", "vs. behaviour", "seeds", "status")  # fits 80 columns
READING = (
    "A score is 100 (return - min) / (max - min) with the task's reference pair; tables marked raw returns have "
    "no such pair and are in no suite. Each seed counts with the mean of its final episodes, played by the last "
    "checkpoint. Rows are ranked by the interquartile mean (IQM: all seeds and tasks pooled, a quarter cut at "
    "each end). The interval is a 95 % stratified bootstrap over seeds. A suite has rows from two tasks on; they "
    "say how many they cover and are ranked only with all its tasks that have a simulator. In a suite row the median "
    "is over tasks and the std over seeds. Oracle best is the best evaluation along the training curve, which nobody "
    "has without the simulator: it ranks nothing. Behaviour is the policy that logged the data. Seeds are finished / "
    "expected; a row with failed, missing, pending, running, interrupted or broken seeds shows what it has and is "
    "not ranked. Nothing is imputed."
)


def cell_text(column: str, value: Any) -> str:
    """A value as the CSV holds it: four decimals, empty where there is nothing."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if column in COUNTS or column in samples.COUNTS:
        return str(int(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        text = f"{value:.4f}"
        return "0.0000" if text == "-0.0000" else text
    return str(value)


def csv_text(table: pd.DataFrame) -> str:
    """The whole table as CSV, the same bytes for the same records."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.columns)
    for row in table.to_dict("records"):
        writer.writerow(cell_text(str(column), value) for column, value in row.items())
    return out.getvalue()


def markdown(table: pd.DataFrame, events: Sequence[Incident], further: Sequence[FurtherTable] = ()) -> str:
    """The board as one Markdown page: what is not in the numbers first, then a table per task and suite."""
    lines = ["# Leaderboard", "", *_incident_lines(events)]
    for (_, name), rows in _sections(table):
        shown = [display(row) | {"status": _status_and_notes(row)} for row in rows]
        headings = _filled(HEADINGS, shown)
        rule = ("---" if heading in LEFT else "---:" for heading in headings)
        lines += ["", f"## {_escaped(name)}", "", f"| {' | '.join(headings)} |", f"| {' | '.join(rule)} |"]
        lines += [f"| {' | '.join(_cell(heading, row[heading]) for heading in headings)} |" for row in shown]
    reading = [READING]
    for each in further:
        for name, rows in each.sections:
            lines += ["", f"## {_escaped(name)}", "", *_further_lines([each.shown(row) for row in rows])]
        reading += ["", each.reading]
    return "\n".join([*lines, "", "## How to read this", "", *reading, ""])


def _further_lines(texts: Sequence[dict[str, str]]) -> list[str]:
    headings = _filled(list(texts[0]), texts)
    rule = ("---" if heading in LEFT else "---:" for heading in headings)
    body = [f"| {' | '.join(_cell(heading, text[heading]) for heading in headings)} |" for text in texts]
    return [f"| {' | '.join(headings)} |", f"| {' | '.join(rule)} |", *body]


def print_table(table: pd.DataFrame, console: Console | None = None, further: Sequence[FurtherTable] = ()) -> None:
    """Print the board to the terminal, one table per task and suite, then the further ones."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    for (_, name), rows in _sections(table):
        shown = [display(row) | ({"status": _status_and_notes(row)} if row["kind"] == "suite" else {}) for row in rows]
        is_narrow = console.width < 110 and any(row["IQM [95 %]"] for row in shown)
        headings = _filled(NARROW if is_narrow else HEADINGS, shown)
        drawn = _terminal_table(name, headings)
        for row, texts in zip(rows, shown, strict=True):
            style = None if row["status"] == "ranked" else "dim"
            drawn.add_row(*(Text(texts[heading]) for heading in headings), style=style)
        console.print(drawn)
    for each in further:
        for name, rows in each.sections:
            shown = [each.shown(row) for row in rows]
            styles = ["dim" if each.dimmed(row) else None for row in rows]
            headings = _filled([text for text in shown[0] if console.width >= 110 or text in each.narrow], shown)
            drawn = _terminal_table(name, headings)
            for texts, style in zip(shown, styles, strict=True):
                drawn.add_row(*(Text(texts[heading]) for heading in headings), style=style)
            console.print(drawn)


def summary(table: pd.DataFrame, events: Sequence[Incident], out_dir: Path) -> str:
    """Two or three lines: what is ranked, what is not in the numbers, where the board is."""
    ours = table[table["kind"] == "task"]
    ranked = int((ours["status"] == "ranked").sum())
    lines = [f"{ours['task'].nunique()} task(s), {len(ours)} row(s), {ranked} ranked"]
    if events:
        lines.append(f"not in the numbers: {counts(events)}")
    return "\n".join([*lines, f"written to {out_dir / 'index.html'}"])


def counts(events: Iterable[Incident]) -> str:
    """How many seeds are in each state, as in "1 failed, 2 pending"."""
    total: Counter[str] = Counter()
    for event in events:
        total[event.word] += max(1, len(event.seeds))
    return ", ".join(f"{count} {word}" for word, count in total.items())


def display(row: dict[str, Any]) -> dict[str, str]:
    """The short form of a row: heading -> text."""

    def number(column: str, sign: str = "") -> str:
        value = row[column]
        return "" if value is None or math.isnan(value) else f"{value:{sign}.2f}"

    interval = f" [{number('ci_low')}, {number('ci_high')}]" if number("ci_low") else ""
    spread = f" ± {number('std')}" if number("std") else ""
    return {
        "#": cell_text("rank", row["rank"]),
        "algorithm": row["algorithm"],
        "IQM [95 %]": number("iqm") + interval,
        "mean ± std": number("mean") + spread,
        "median": number("median"),
        "oracle best": number("oracle_best"),
        "vs. behaviour": number("delta_to_behaviour", "+"),
        "seeds": seeds_shown(row),
        "status": row["status"],
    }


def seeds_shown(row: dict[str, Any]) -> str:
    """Finished over expected seeds, as in 9/10."""
    seeds, expected = cell_text("seeds", row["seeds"]), cell_text("seeds_expected", row["seeds_expected"])
    return f"{seeds}/{expected}" if expected else seeds


def section_title(kind: str, name: str, rows: Sequence[dict[str, Any]]) -> str:
    """Heading of one table: what it is about and, for tasks, what the data scores."""
    if kind == "suite":
        return f"Suite {name}"
    if kind == "published":
        return f"{name}: published by others, not ranked here"
    behaviour = cell_text("behaviour_score", rows[0]["behaviour_score"])
    unit = ", raw returns" if rows[0]["score_kind"] == "raw" else ""
    return f"{name}{unit}" + (f" (behaviour {float(behaviour):.2f})" if behaviour else "")


def _sections(table: pd.DataFrame) -> list[tuple[tuple[str, str], list[dict[str, Any]]]]:
    """Rows by table, with headings."""
    sections: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in table.to_dict("records"):
        sections.setdefault((row["kind"], row["task"]), []).append({str(key): value for key, value in row.items()})
    return [((kind, section_title(kind, name, rows)), rows) for (kind, name), rows in sections.items()]


def _status_and_notes(row: dict[str, Any]) -> str:
    return "; ".join(filter(None, (row["status"], row["notes"])))


def _filled(headings: Sequence[str], rows: Sequence[dict[str, str]]) -> list[str]:
    """The headings under which any row has something."""
    return [heading for heading in headings if any(row[heading] for row in rows)]


def _terminal_table(title: str, headings: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        left = heading in LEFT
        drawn.add_column(heading, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    return drawn


def _incident_lines(events: Sequence[Incident]) -> list[str]:
    if not events:
        return ["Every planned run is finished and every record was read."]
    lines = [f"**Not in the numbers: {counts(events)}.**", ""]
    for event in events:
        seeds = f", seeds {event.seeds_text}" if event.seeds else ""
        reason = f": {event.reason}" if event.reason else ""
        lines.append(f"- {event.word}: {_escaped(event.task)}, {_escaped(event.name)}{seeds}{_escaped(reason)}")
    return lines


def _cell(heading: str, text: str) -> str:
    return _escaped(text) if heading in LEFT else text


def _escaped(text: str) -> str:
    """Text that can break neither a Markdown table nor the page that shows it."""
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{character}" if character in "\\|*`[]" else character for character in text)
