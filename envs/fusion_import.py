"""The weights of the Fusion simulator from a checkout of the public NeoRL-2 repository, which holds them as ONNX files.

A graph is read as the chain of layers it is: affine maps (batch normalisation), dense layers, LSTM layers. What was
read is kept only if the simulator then gives the numbers that are known of it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offon.envs import assets
from offon.envs.base import EnvError
from offon.envs.fusion import Fusion
from offon.envs.fusion_networks import MEMBERS, UNITS, WEIGHTS, Networks

FOLDER = Path("neorl2/envs/data/fusion_lstm/weights")
# Per kind: folder, number of models, layers in their order.
KINDS = {
    "nn": (1, ("bn0", "fc0", "bn1", "fc1", "bn2", "fc2", "bn3", "fc3")),
    "bpw": (MEMBERS, ("bn0", "fc0", "bn1", "fc1", "bn2", "fc2")),
    "lstm": (MEMBERS, ("bn0", "lstm0", "bn1", "lstm1", "bn2", "fc0", "bn3", "fc1")),
}
# beta_p, q95, li at the start of seed 0, and after a step of action 0 and one of action 1.
KNOWN = (
    (1.3470410108566284, 4.840888977050781, 1.0795382261276245),
    (1.4047038555145264, 4.977166652679443, 0.8689180016517639),
    (1.0009350776672363, 4.121860027313232, 0.8255341053009033),
)
TOLERANCE = 3e-5  # of other hardware

_SILENT = ("Sigmoid", "Transpose", "Squeeze", "Unsqueeze", "Reshape", "Slice", "Gather", "Identity", "Cast", "Shape")


def import_weights(checkout: Path) -> Path:
    """Read the ONNX files of a checkout, check them, and put them as one file into the cache; return its path.

    Raises:
        EnvError: if the package onnx or a file is missing, or if the networks do not do what they should.
    """
    if importlib.util.find_spec("onnx") is None:
        raise EnvError("reading the weights needs the package onnx; run: pip install onnx")
    folder = next((found for found in (checkout / FOLDER, checkout) if (found / "lstm").is_dir()), None)
    if folder is None:
        raise EnvError(f"expected a checkout of NeoRL-2, found no folder {FOLDER} below {checkout}")
    arrays: dict[str, np.ndarray] = {}
    for kind, (count, layers) in KINDS.items():
        for member in range(count):
            path = folder / kind / f"best_model{member}.onnx"
            found = read_layers(path)
            arrays |= {f"{kind}{member}/{name}": array for name, array in _named(path, layers, found)}
    _check(arrays)

    def write(path: Path) -> None:
        with open(path, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # names are keywords here

    return assets.keep(WEIGHTS, write)


def read_layers(path: Path) -> list[dict[str, np.ndarray]]:
    """Return the layers of an ONNX model in order: {scale, shift}, {w, b} or {wx, wh, b}, float32."""
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import numpy_helper

    if not path.is_file():
        raise EnvError(f"expected the file {path}, found none; is the checkout complete (git lfs pull)?")
    try:
        graph = onnx.load(str(path)).graph
    except DecodeError as error:
        raise EnvError(f"{path}: expected an ONNX model, but it cannot be read ({error})") from error
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    layers: list[dict[str, np.ndarray]] = []
    for node in graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            continue
        given = [constants[name] for name in node.input if name in constants]
        _read_node(path, node, given, layers)
    return layers


def _read_node(path: Path, node: Any, given: list[np.ndarray], layers: list[dict[str, np.ndarray]]) -> None:
    """Add what a node does to the layers before it."""
    last = layers[-1] if layers else {}
    if node.op_type == "MatMul":
        layers.append({"w": given[0], "b": np.zeros(given[0].shape[1], np.float32)})
    elif node.op_type == "Gemm":
        transposed = any(one.name == "transB" and one.i for one in node.attribute)
        layers.append({"w": given[0].T if transposed else given[0], "b": given[1]})
    elif node.op_type in ("Mul", "Add", "Sub") and given:
        value = given[0].ravel() if node.op_type != "Sub" else -given[0].ravel()
        if node.op_type == "Mul":
            layers.append({"scale": value, "shift": np.zeros_like(value)})
        elif "w" in last and not last["b"].any():
            last["b"] = value
        elif "scale" in last:
            last["shift"] = last["shift"] + value
        else:
            layers.append({"scale": np.ones_like(value), "shift": value})
    elif node.op_type == "BatchNormalization":
        gamma, beta, mean, variance = given
        epsilon = next((one.f for one in node.attribute if one.name == "epsilon"), 1e-5)
        scale = gamma / np.sqrt(variance + np.float32(epsilon))
        layers.append({"scale": scale, "shift": beta - mean * scale})
    elif node.op_type == "LSTM":
        layers.append(_lstm(*given[:3]))
    elif node.op_type not in _SILENT:
        raise EnvError(f"{path}: expected a chain of affine maps, dense and LSTM layers, found a node {node.op_type}")


def _lstm(into: np.ndarray, recurrent: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    """ONNX has the gates as rows, input, output, forget, cell, and two biases; we input, forget, cell, output."""
    order = np.concatenate([np.arange(UNITS) + gate * UNITS for gate in (0, 2, 3, 1)])
    both = bias[0, : 4 * UNITS] + bias[0, 4 * UNITS :]
    return {"wx": into[0][order].T, "wh": recurrent[0][order].T, "b": both[order]}


def _named(
    path: Path, names: tuple[str, ...], layers: list[dict[str, np.ndarray]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Pair the layers that were read with the names they have here."""
    kinds = {"bn": {"scale", "shift"}, "fc": {"w", "b"}, "lstm": {"wx", "wh", "b"}}
    found = [set(layer) for layer in layers]
    if found != [kinds[name.rstrip("0123456789")] for name in names]:
        raise EnvError(f"{path}: expected the layers {', '.join(names)}, found {[sorted(one) for one in found]}")
    for name, layer in zip(names, layers, strict=True):
        for part, array in layer.items():
            yield f"{name}_{part}", np.ascontiguousarray(array, dtype=np.float32)


def _check(arrays: Mapping[str, np.ndarray]) -> None:
    """Let the simulator run with the weights and compare with what is known."""
    try:
        env = Fusion(1, networks=Networks(torch.device("cpu"), arrays=arrays))
        seen = [env.reset(None, [0]), *(env.step(torch.full((1, 6), action)).obs for action in (0.0, 1.0))]
    except RuntimeError as error:  # of a product of unfitting shapes
        raise EnvError(f"the networks in the checkout are not those of the Fusion simulator: {error}") from error
    difference = float((torch.cat(seen)[:, 6:9] - torch.tensor(KNOWN)).abs().max())
    if not difference < TOLERANCE:
        raise EnvError(
            f"with the weights of this checkout the simulator is off by {difference:.2g} where at most {TOLERANCE} was "
            "expected; nothing was kept. Is it the repository polixir/NeoRL2?"
        )
