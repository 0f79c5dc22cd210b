from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest

from offon.algorithms import registry
from offon.algorithms.bc import BC
from offon.algorithms.iql import IQL
from offon.algorithms.registry import AlgorithmError, register

PLUGIN = """
from offon import register
from offon.algorithms.bc import BC

@register({name!r}, protocols=("offline",), version=3)
class Plugin(BC):
    pass
"""


def write(folder, text, stem="my_algo"):
    path = folder / f"{stem}.py"
    path.write_text(text)
    return path


def test_the_package_holds_its_three_methods():
    methods = registry.load_all()
    assert {"bc", "iql", "td3_bc"} <= set(methods)
    assert list(methods) == sorted(methods)
    iql = methods["iql"]
    assert (iql.name, iql.version, iql.protocols) == ("iql", 1, ("offline", "offline_to_online"))
    assert registry.file_sha256("iql") is None


@pytest.mark.parametrize("name, hint", [("iqll", "did you mean 'iql'?"), ("td3bc", "did you mean 'td3_bc'?")])
def test_an_unknown_name_gets_the_nearest_one(own_registry, name, hint):
    with pytest.raises(AlgorithmError) as error:
        own_registry.get(name)
    assert f"no algorithm named {name!r}; {hint}" in str(error.value)
    assert f"Known: {', '.join(sorted(own_registry.load_all()))}, or a path to a .py file" in str(error.value)


def test_a_name_like_no_other_gets_the_list(own_registry):
    with pytest.raises(AlgorithmError, match=r"no algorithm named 'zzzz'\. Known: a_lol, awac, bc"):
        own_registry.get("zzzz")


def test_a_file_is_a_method_and_its_bytes_are_part_of_its_identity(own_registry, tmp_path):
    path = write(tmp_path, PLUGIN.format(name="my_algo"))
    method = own_registry.get(str(path))
    assert (method.name, method.version) == ("my_algo", 3)
    assert own_registry.file_sha256("my_algo") == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "my_algo" in own_registry.load_all()


def test_loading_a_file_twice_is_loading_it_once(own_registry, tmp_path):
    path = write(tmp_path, PLUGIN.format(name="my_algo"))
    assert own_registry.load_file(path) == own_registry.load_file(path) == "my_algo"
    assert own_registry.get("my_algo") is own_registry.get(str(path))


def test_a_missing_file_says_how_to_write_one(own_registry, tmp_path):
    with pytest.raises(AlgorithmError, match="no algorithm file at .*nowhere.py; `offon new algorithm NAME`"):
        own_registry.get(str(tmp_path / "nowhere.py"))


def test_a_file_that_is_not_python_is_refused(own_registry, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(AlgorithmError, match=r"expected a Python file \(\.py\), got .*notes.txt"):
        own_registry.load_file(path)


@pytest.mark.parametrize(
    "text, found",
    [
        ("def broken(:\n", "SyntaxError"),
        ("import no_such_package\n", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("1 / 0\n", "ZeroDivisionError"),
    ],
)
def test_a_file_that_fails_to_import_says_why(own_registry, tmp_path, text, found):
    with pytest.raises(AlgorithmError, match=f"my_algo.py could not be imported: {found}"):
        own_registry.load_file(write(tmp_path, text))


def test_a_file_that_registers_nothing_says_what_to_add(own_registry, tmp_path):
    with pytest.raises(AlgorithmError, match=r"registers no method: decorate its class with @register\(NAME"):
        own_registry.load_file(write(tmp_path, "x = 1\n"))


@pytest.mark.parametrize("name", ["iql", "bc"])
def test_a_file_cannot_take_a_name_of_the_package(own_registry, tmp_path, name):
    with pytest.raises(AlgorithmError, match=f"the name '{name}' is taken by offon.algorithms.{name}; choose another"):
        own_registry.load_file(write(tmp_path, PLUGIN.format(name=name)))
    assert own_registry.get(name).__module__ == f"offon.algorithms.{name}"


def test_the_package_comes_first_even_if_nothing_was_loaded_yet(own_registry, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(own_registry, "_load_package", lambda: loaded.append(True))
    own_registry.load_file(write(tmp_path, PLUGIN.format(name="my_algo")))
    assert loaded


def test_a_file_that_fails_after_registering_leaves_nothing_behind(own_registry, tmp_path):
    with pytest.raises(AlgorithmError, match="RuntimeError: too late"):
        own_registry.load_file(write(tmp_path, PLUGIN.format(name="my_algo") + "raise RuntimeError('too late')\n"))
    assert "my_algo" not in own_registry.load_all()
    mended = write(tmp_path, PLUGIN.format(name="my_algo"))
    assert own_registry.load_file(mended) == "my_algo"


@pytest.mark.parametrize("name", ["My_Algo", "my-algo", "2fast", ""])
def test_names_are_snake_case(own_registry, name):
    with pytest.raises(AlgorithmError, match="expected a snake_case name"):
        register(name, protocols=("offline",))(type("Plugin", (BC,), {}))


@pytest.mark.parametrize("protocols", [(), ("offline", "lunar")])
def test_unknown_protocols_are_refused(own_registry, protocols):
    with pytest.raises(AlgorithmError, match="my_algo: expected protocols among"):
        register("my_algo", protocols=protocols)(type("Plugin", (BC,), {}))


def test_a_config_that_is_no_dataclass_is_refused(own_registry):
    class Config(IQL.Config):
        strength: float = 1.0  # without the decorator this is no setting

    with pytest.raises(AlgorithmError, match=r"add @dataclass\(frozen=True\)"):
        register("my_algo", protocols=("offline",))(type("Plugin", (IQL,), {"Config": Config}))
    decorated = type("Plugin", (IQL,), {"Config": dataclass(frozen=True)(Config)})
    assert register("my_algo", protocols=("offline",))(decorated).name == "my_algo"


def test_methods_of_installed_packages_are_found(own_registry, tmp_path, monkeypatch):
    write(tmp_path, PLUGIN.format(name="packaged"), stem="some_package")
    monkeypatch.syspath_prepend(tmp_path)
    entry = EntryPoint("packaged", "some_package:Plugin", registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == registry.ENTRY_POINTS else [])
    assert own_registry.get("packaged").version == 3


def test_an_installed_package_that_fails_is_named(own_registry, monkeypatch):
    entry = EntryPoint("lost", "no_such_package:Method", registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    with pytest.raises(AlgorithmError, match="the algorithm 'lost' of the installed package .* mend or uninstall"):
        own_registry.load_all()
