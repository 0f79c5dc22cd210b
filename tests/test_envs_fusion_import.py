"""Fusion's weights from ONNX files like those of the public repository, written here from the weights at hand."""

from __future__ import annotations

import numpy as np
import pytest

from offon.envs import EnvError, make
from offon.envs.assets import find
from offon.envs.fusion_import import FOLDER, KINDS, import_weights, read_layers
from offon.envs.fusion_networks import UNITS, WEIGHTS

onnx = pytest.importorskip("onnx", reason="needs the package onnx")


class Writer:
    """An ONNX graph that grows node by node."""

    def __init__(self, style: str) -> None:
        self.style, self.nodes, self.constants, self.at = style, [], [], "x"

    def constant(self, array) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))
        return name

    def node(self, kind: str, *constants, **attributes) -> None:
        out = f"t{len(self.nodes)}"
        inputs = [self.at, *(self.constant(array) for array in constants)]
        self.nodes.append(onnx.helper.make_node(kind, inputs, [out], **attributes))
        self.at = out

    def norm(self, scale, shift) -> None:
        if self.style == "folded":
            self.node("Mul", scale)
            self.node("Add", shift)
        else:
            ones, zeros = np.ones_like(scale), np.zeros_like(scale)
            self.node("BatchNormalization", scale, shift, zeros, ones, epsilon=0.0)

    def dense(self, w, b) -> None:
        if self.style == "folded":
            self.node("MatMul", w)
            self.node("Add", b)
        else:
            self.node("Gemm", w.T, b, transB=1)

    def lstm(self, wx, wh, b) -> None:
        order = np.concatenate([np.arange(UNITS) + gate * UNITS for gate in (0, 3, 1, 2)])  # to i, o, f, c
        both = np.concatenate([b[order], np.zeros_like(b)])
        self.node("Transpose", perm=[1, 0, 2])
        self.node("LSTM", wx.T[order][None], wh.T[order][None], both[None], hidden_size=UNITS)
        self.node("Squeeze")

    def save(self, path) -> None:
        info = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", self.at)]
        graph = onnx.helper.make_graph(self.nodes, "network", info[:1], info[1:], self.constants)
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(onnx.helper.make_model(graph), str(path))


def write_checkout(folder, arrays, style: str) -> None:
    for kind, (count, layers) in KINDS.items():
        for member in range(count):
            writer = Writer(style)
            for layer in layers:
                parts = {key: arrays[key] for key in arrays if key.startswith(f"{kind}{member}/{layer}_")}
                getattr(writer, {"b": "norm", "f": "dense", "l": "lstm"}[layer[0]])(*parts.values())
                if layer[0] == "f" and layer != layers[-1]:
                    writer.node("Sigmoid")
            writer.save(folder / FOLDER / kind / f"best_model{member}.onnx")


@pytest.fixture
def weights():
    try:
        path = find(WEIGHTS)
    except EnvError as missing:
        pytest.skip(str(missing))
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@pytest.mark.slow
@pytest.mark.parametrize("style", ["folded", "separate"])
def test_weights_are_imported_from_a_checkout_and_used_from_the_cache(style, weights, tmp_path, monkeypatch):
    write_checkout(tmp_path / "checkout", weights, style)
    monkeypatch.delenv("OFFON_DATA", raising=False)
    monkeypatch.setenv("OFFON_CACHE", str(tmp_path / "cache"))
    with pytest.raises(EnvError, match="offon env import neorl2/Fusion CHECKOUT"):
        make("neorl2/Fusion", 1)
    path = import_weights(tmp_path / "checkout")
    assert find(WEIGHTS) == path and path.parent == tmp_path / "cache"
    with np.load(path, allow_pickle=False) as file:
        assert set(file) == set(weights)
        assert all(np.array_equal(file[name], weights[name]) for name in file)
    make("neorl2/Fusion", 1, members=1)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EnvError, match="expected sha256"):
        find(WEIGHTS)


@pytest.mark.slow
def test_weights_that_do_something_else_are_not_kept(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("OFFON_CACHE", str(tmp_path / "cache"))
    weights["nn0/fc0_b"] = weights["nn0/fc0_b"] + np.float32(0.01)
    write_checkout(tmp_path / "checkout", weights, "folded")
    with pytest.raises(EnvError, match="the simulator is off by .* nothing was kept"):
        import_weights(tmp_path / "checkout")
    assert not (tmp_path / "cache").exists()


def test_what_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(EnvError, match="expected a checkout of NeoRL-2, found no folder"):
        import_weights(tmp_path)
    (tmp_path / FOLDER / "lstm").mkdir(parents=True)
    with pytest.raises(EnvError, match="best_model0.onnx, found none; is the checkout complete"):
        import_weights(tmp_path)
    broken = tmp_path / FOLDER / "nn" / "best_model0.onnx"
    broken.parent.mkdir()
    broken.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(EnvError, match="expected an ONNX model, but it cannot be read"):
        import_weights(tmp_path)


def test_a_graph_that_is_no_chain_of_layers_is_refused(tmp_path):
    writer = Writer("folded")
    writer.node("Conv", np.ones((1, 1, 1)))
    writer.save(tmp_path / "model.onnx")
    with pytest.raises(EnvError, match="found a node Conv"):
        read_layers(tmp_path / "model.onnx")


def test_layers_in_another_order_are_refused(tmp_path):
    writer = Writer("folded")
    writer.dense(np.ones((3, 2)), np.ones(2))
    writer.save(tmp_path / FOLDER / "nn" / "best_model0.onnx")
    (tmp_path / FOLDER / "lstm").mkdir()
    with pytest.raises(EnvError, match=r"expected the layers bn0, fc0, .* found \[\['b', 'w'\]\]"):
        import_weights(tmp_path)


def test_without_onnx_the_cure_is_named(tmp_path, monkeypatch):
    from offon.envs import fusion_import

    monkeypatch.setattr(fusion_import.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvError, match="pip install onnx"):
        import_weights(tmp_path)


def test_known_numbers_are_those_of_the_weights_at_hand(weights):
    from offon.envs.fusion_import import _check

    _check(weights)
