"""The board as one self-contained HTML page: no script, font or picture comes from elsewhere.

Every number stands in a `data-value` attribute exactly as the CSV has it, so that page and CSV can be compared.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import pandas as pd

from offon.benchmark.board_text import READING, cell_text, counts, seeds_shown
from offon.benchmark.cells import Cell, Incident
from offon.benchmark.further_tables import FurtherTable
from offon.benchmark.plots import Plot
from offon.benchmark.records import Record
from offon.benchmark.text_samples import samples_section
from offon.benchmark.text_table import text_facts

SHOWN = {  # column -> heading
    "rank": "rank",
    "task": "task",
    "algorithm": "algorithm",
    "iqm": "IQM",
    "ci_low": "95 % low",
    "ci_high": "95 % high",
    "mean": "mean",
    "std": "std",
    "median": "median",
    "optimality_gap": "gap to 100",
    "oracle_best": "oracle best",
    "behaviour_score": "behaviour",
    "delta_to_behaviour": "vs. behaviour",
    "seeds": "seeds",
    "episodes": "episodes",
    "status": "status",
}
PUBLISHED_SHOWN = {name: SHOWN[name] for name in ("task", "algorithm", "mean", "std", "seeds", "status")}
SUITES_TEXT = (
    "The tasks of a suite that are on this board, pooled, where there are two or more. "
    "A rank needs every task of the suite that has a simulator."
)
NUMBERS = {"rank", "iqm", "ci_low", "ci_high", "mean", "std", "median", "optimality_gap", "oracle_best"} | {
    *("behaviour_score", "delta_to_behaviour", "seeds", "episodes")
}


def page(
    table: pd.DataFrame,
    cells: Sequence[Cell],
    events: Sequence[Incident],
    plots: Sequence[Plot],
    further: Sequence[FurtherTable] = (),
) -> str:
    """The whole page."""
    rows = [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("task", "suite", "published")}
    body = [
        "<h1>Leaderboard</h1>",
        _summary(kinds["task"]),
        _incidents(events),
        _section("Tasks", "Click a heading to sort.", _table(kinds["task"], SHOWN)),
        _section("Suites", SUITES_TEXT, _table(kinds["suite"], SHOWN)),
        _section(
            "Published by others",
            "Not ranked with the rows above: another code base and another protocol, named in each row.",
            _table(kinds["published"], PUBLISHED_SHOWN),
        ),
        *(_further(each) for each in further),
        samples_section(cells),
        *(_figure(plot) for plot in plots),
        "<h2>Where the numbers come from</h2>",
        *(_provenance(cell) for cell in cells),
        f"<h2>How to read this</h2><p>{escape(READING)}</p>",
        *(f"<p>{escape(each.reading)}</p>" for each in further),
    ]
    template = files("offon.benchmark").joinpath("page.html").read_text(encoding="utf-8")
    return template.replace("<!-- board -->", "\n".join(part for part in body if part))


def row_texts(table: pd.DataFrame) -> list[str]:
    """Every row as the page of this table has it."""
    rows = [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
    return [_row(row, PUBLISHED_SHOWN if row["kind"] == "published" else SHOWN) for row in rows]


def rows_of_page(text: str) -> list[dict[str, str]]:
    """The rows that a page shows, in its order: column -> value as in the CSV."""
    reader = _RowReader()
    reader.feed(text)
    return reader.rows


def further_rows(table: FurtherTable) -> list[str]:
    """Every row of a further table as the page has it, in the order of the table."""
    return [_further_row(table, row) for row in table.rows]


def _further(table: FurtherTable) -> str:
    """The sections of a further table."""
    parts = []
    for name, rows in table.sections:
        heads = "".join(f"<th>{escape(heading)}</th>" for heading in table.shown(rows[0]))
        body = "\n".join(_further_row(table, row) for row in rows)
        drawn = f"<table><thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table>"
        parts.append(f'<h3>{escape(name)}</h3><div class="scroll">{drawn}</div>')
    return f"<h2>{escape(table.title)}</h2>{''.join(parts)}"


def _further_row(table: FurtherTable, row: dict[str, Any]) -> str:
    tds = "".join(f"<td>{escape(text)}</td>" for text in table.shown(row).values())
    grey = ' class="unranked"' if table.dimmed(row) else ""
    return f'<tr data-cell="{escape(row["config_id"])}"{grey}>{tds}</tr>'


class _RowReader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "tr" and "data-row" in found:
            self.rows.append({})
        elif tag == "td" and "data-column" in found and self.rows:
            self.rows[-1][str(found["data-column"])] = found.get("data-value") or ""


def _summary(rows: Sequence[dict[str, Any]]) -> str:
    ranked = sum(row["status"] == "ranked" for row in rows)
    tasks, algorithms = len({row["task"] for row in rows}), len({row["algorithm"] for row in rows})
    return (
        f'<p class="lead">{algorithms} algorithm{"s" * (algorithms != 1)} on {tasks} task{"s" * (tasks != 1)}; '
        f"{ranked} of {len(rows)} rows ranked, by the IQM of the last checkpoint.</p>"
    )


def _incidents(events: Sequence[Incident]) -> str:
    if not events:
        return '<p class="good">Every planned run is finished and every record was read.</p>'
    lines = "".join(
        f'<tr><td><span class="word">{escape(event.word)}</span></td><td>{escape(event.task)}</td>'
        f"<td>{escape(event.name)}</td><td>{escape(event.seeds_text)}</td>"
        f"<td>{escape(event.reason)}</td></tr>"
        for event in events
    )
    heads = "".join(f"<th>{name}</th>" for name in ("state", "task", "algorithm", "seeds", "reason"))
    return (
        f'<section class="incidents"><h2>Not in the numbers: {escape(counts(events))}</h2><div class="scroll"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div></section>"
    )


def _section(title: str, text: str, table: str) -> str:
    return f"<h2>{escape(title)}</h2><p>{escape(text)}</p>{table}" if table else ""


def _table(rows: Sequence[dict[str, Any]], shown: dict[str, str]) -> str:
    if not rows:
        return ""
    heads = "".join(
        f'<th{_numeric(column)} aria-sort="none"><button type="button">{escape(heading)}</button></th>'
        for column, heading in shown.items()
    )
    lines = "\n".join(_row(row, shown) for row in rows)
    head = f"<thead><tr>{heads}</tr></thead>"
    return f'<div class="scroll"><table class="sortable">{head}\n<tbody>{lines}</tbody></table></div>'


def _row(row: dict[str, Any], shown: Iterable[str]) -> str:
    status = "ranked" if row["status"] == "ranked" else "unranked"
    tds = []
    for column in shown:
        value = cell_text(column, row[column])
        text = escape(_short_text(column, row, value))
        if column == "algorithm" and row["kind"] == "task":
            text = f'<a href="#cell-{escape(row["config_id"])}">{text}</a>'
        if column == "status" and row["notes"]:
            text += f"<br><small>{escape(row['notes'])}</small>"
        tds.append(f'<td{_numeric(column)} data-column="{column}" data-value="{escape(value)}">{text}</td>')
    return f'<tr data-row="{escape(row["kind"])}" class="{status}">{"".join(tds)}</tr>'


def _short_text(column: str, row: dict[str, Any], value: str) -> str:
    if column == "seeds":
        return seeds_shown(row)
    if column in NUMBERS and value and column not in ("rank", "episodes"):
        return f"{float(value):{'+' if column == 'delta_to_behaviour' else ''}.2f}"
    return value


def _numeric(column: str) -> str:
    return ' class="number"' if column in NUMBERS else ""


def _figure(plot: Plot) -> str:
    picture = base64.b64encode(plot.svg).decode("ascii")  # as an image its ids cannot clash, nor its text run
    image = f'<img alt="{escape(plot.title)}" src="data:image/svg+xml;base64,{picture}">'
    caption = f"<figcaption>{escape(plot.caption)}</figcaption>"
    return f"<h2>{escape(plot.title)}</h2><figure>{image}{caption}</figure>"


def _provenance(cell: Cell) -> str:
    records = [cell.read[seed] for seed in sorted(cell.read)]
    seeds = "".join(_seed_line(record) for record in records)
    heads = "".join(f"<th>{escape(name)}</th>" for name in SEED_HEADINGS)
    data = cell.identity.get("data") or {}
    facts = {
        "cell": cell.cell_id,
        "data": f"{data.get('name')}, sha256 {data.get('sha256')}, {cell.report.get('data_status', 'not read yet')}",
        "collected": str(cell.report.get("data_source", "")),
        "reference scores": _reference(cell),
        **text_facts(cell),
        "code": ", ".join(cell.revisions) + (" (mixed)" if len(cell.revisions) > 1 else ""),
        "versions": _distinct(records, "versions"),
        "hardware": _distinct(records, "hardware"),
        "torch flags": _distinct(records, "torch_flags"),
    }
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items() if text)
    config = escape(json.dumps(cell.identity, indent=1, sort_keys=True))
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{seeds}</tbody></table>"
    return (
        f'<details id="cell-{escape(cell.cell_id)}"><summary>{escape(cell.task)} &middot; {escape(cell.name)} '
        f"<small>{escape(cell.cell_id)}, {len(cell.records)}/{cell.expected} seeds</small></summary>"
        f'<dl>{lines}</dl><div class="scroll">{table if records else "<p>No record yet.</p>"}</div>'
        f"<details><summary>Configuration</summary><pre>{config}</pre></details></details>"
    )


SEED_HEADINGS = (
    *("seed", "status", "mean return", "run", "updates", "device", "revision", "started", "finished"),
    *("wall s of the run", "CPU s of the run", "updates/s", "resumed"),
)


def _seed_line(record: Record) -> str:
    origin, run = record.provenance, record.result.get("run", {})
    returns = record.returns
    values = (
        record.seed,
        record.status,
        "" if returns is None else f"{returns.mean():.4f}",
        run.get("run_id", ""),
        record.result.get("updates", ""),
        f"{run.get('device', '')} {run.get('matmul', '')}, {run.get('replicas', '?')} seeds together",
        f"{origin.get('revision') or 'unknown'}{' + uncommitted changes' if origin.get('dirty') else ''}",
        _time(origin.get("started")),
        _time(origin.get("finished")),
        _brief((origin.get("wall_seconds") or {}).get("total")),
        _brief(origin.get("cpu_seconds")),
        _brief(origin.get("updates_per_second")),
        origin.get("resumed", 0),
    )
    return "<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in values) + "</tr>"


def _brief(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else ""


def _time(value: Any) -> str:
    """A time in seconds since 1970 as UTC; anything else as it stands."""
    if not isinstance(value, (int, float)):
        return str(value or "")
    return datetime.fromtimestamp(value, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _reference(cell: Cell) -> str:
    report = cell.report
    if cell.score_kind != "score":
        return "none: plain returns" if cell.score_kind == "raw" else ""
    return f"min {report['score_min']}, max {report['score_max']} ({report.get('score_source', 'source not recorded')})"


def _distinct(records: Sequence[Record], key: str) -> str:
    """Every different value of a provenance entry, in the order of the seeds."""
    texts = [
        ", ".join(f"{name} {value}" for name, value in sorted((record.provenance.get(key) or {}).items()))
        for record in records
    ]
    return " | ".join(dict.fromkeys(text for text in texts if text))
