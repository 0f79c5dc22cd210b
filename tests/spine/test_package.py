"""What is installed, what it imports, and what stands nowhere in its source."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import offon
from offon import algorithms, benchmark, datasets, envs

ROOT = Path(offon.__file__).resolve().parent.parent
FOLDERS = {
    name: Path(package.__file__).resolve().parent
    for name, package in (("algorithms", algorithms), ("benchmark", benchmark), ("datasets", datasets), ("envs", envs))
}
SOURCES = [path for folder in (*FOLDERS.values(), ROOT / "offon") for path in sorted(folder.glob("*.py"))]
HEAVY = {"torch", "hydra", "pandas", "matplotlib", "gymnasium", "h5py", "rich"}
MAY_IMPORT = {
    "envs": {"envs", "counter"},
    "datasets": {"datasets", "counter"},
    "algorithms": {"algorithms", "datasets.transitions", "counter"},
    "benchmark": {"benchmark", "algorithms", "datasets", "envs", "counter", "__version__"},
}


def imported_by(code):
    script = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import offon",
        "from offon.benchmark.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from offon.benchmark.cli import main\nmain(['tasks'])",
        "from offon.benchmark.cli import main\nmain(['tasks', '--json'])",
    ],
)
def test_the_first_word_is_not_kept_waiting_by_heavy_imports(code):
    assert not imported_by(code) & HEAVY


@pytest.mark.parametrize("name", FOLDERS)
def test_no_folder_of_ours_is_a_top_level_package(name):
    code = f"import importlib.util\nprint(importlib.util.find_spec({name!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert str(FOLDERS[name]) not in done.stdout
    assert str(FOLDERS[name]) not in str(importlib.util.find_spec(name))


def test_every_public_name_can_be_imported():
    for name in offon.__all__:
        assert getattr(offon, name) is not None
    assert set(offon.__all__) <= set(dir(offon))
    with pytest.raises(AttributeError, match="module 'offon' has no attribute 'nothing'; it exports"):
        _ = offon.nothing


def ours(path):
    """The modules of ours that a file imports, without those for type checkers only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("offon.") for name in names if name.startswith("offon."))


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_point_downwards(folder):
    for path in sorted(FOLDERS[folder].glob("*.py")):
        for name in ours(path):
            allowed = any(f"{name}.".startswith(f"{known}.") for known in MAY_IMPORT[folder])
            assert allowed, f"{path} imports offon.{name}"


def test_the_public_face_imports_nothing_of_ours_until_it_is_asked():
    assert list(ours(ROOT / "offon" / "__init__.py")) == []


@pytest.mark.parametrize(
    "pattern",
    [
        r"allow_pickle\s*=\s*True",
        r"\btorch\.load\b",
        r"\bimport pickle\b|\bpickle\.load",
        r"except\s*:",
        r"\bhydra\.utils\.instantiate\b|\b_target_\b",
        r"\beval\(|\bexec\(",
        r"/home/|/root/|/tmp/",
    ],
)
def test_what_stands_nowhere_in_the_source(pattern):
    found = [path.name for path in SOURCES if re.search(pattern, path.read_text(encoding="utf-8"))]
    assert found == []


def test_the_package_says_that_it_is_typed_and_ships_its_data():
    assert (ROOT / "offon" / "py.typed").exists()
    assert (FOLDERS["benchmark"] / "tasks.csv").exists() and (FOLDERS["datasets"] / "catalogue.csv").exists()
    assert sum(path.stat().st_size for path in (FOLDERS["datasets"] / "bundled").iterdir()) < 2_500_000
