"""Make the model file of the page in docs/studio: python docs/export_onnx.py [WEIGHTS] [FOLDER]

WEIGHTS (data/models/diffusion.safetensors) become FOLDER/model.onnx (FOLDER: docs/studio), the
weights in half precision, and FOLDER/model.json: all that the page's scripts know of the network,
of chords and of scales. ONNX Runtime computes in float32. The file is compared with PyTorch first.
"""

import copy
import hashlib
import json
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pychord
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from utils import diffusion, harmony, unet
from utils.files import MusicError, atomic

WEIGHTS, FOLDER = ROOT / "data/models/diffusion.safetensors", ROOT / "docs/studio"
INPUTS = ("x_t", "log_snr", "x_0_hat", "known", "style", "shift")
OUTPUTS = ("logits", "velocity", "pixel_logits")
OPSET = 18
SMALL = 1024  # numbers; smaller tensors stay in single precision
ALIKE = 1e-4  # largest difference of a probability or a velocity between ONNX Runtime and PyTorch


class Call(nn.Module):
    """One call of the network, its mask as float32: WebGPU has no tensors of bool."""

    def __init__(self, network: unet.UNet):
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, log_snr: Tensor, x_0_hat: Tensor, known: Tensor, style: Tensor,
                shift: Tensor) -> unet.Prediction:
        return self.network(x_t, log_snr, x_0_hat, known > 0.5, style, shift)


def halved(network: unet.UNet) -> unet.UNet:
    """A copy of a network, its large tensors rounded to half precision and back."""
    rounded = copy.deepcopy(network)
    with torch.no_grad():
        for tensor in rounded.state_dict().values():
            if tensor.numel() >= SMALL:
                tensor.copy_(tensor.half().float())
    return rounded


def example(style: int, seed: int = 0, log_snr: float = -2.0) -> tuple[Tensor, ...]:
    """Inputs of one call: noise, some of it known, and labels."""
    random = torch.Generator().manual_seed(seed)
    x_t = torch.randn(1, 2, 128, 128, generator=random)
    x_0_hat, known = torch.rand(1, 2, 128, 128, generator=random), torch.zeros(1, 1, 128, 128)
    known[..., :40] = 1
    return x_t, torch.tensor([log_snr]), x_0_hat, known, torch.tensor([style]), torch.tensor([0])


def export(network: unet.UNet) -> bytes:
    """A `halved` network as an ONNX model that keeps its large tensors in half precision."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what tracing makes constant is constant
        path, given = Path(folder, "model.onnx"), example(network.style_number())
        torch.onnx.export(Call(network).eval(), given, path, input_names=INPUTS,
                          output_names=OUTPUTS, opset_version=OPSET, dynamo=False)
        model = onnx.load(path)
    exact_alpha_bar(model.graph)
    store_in_half(model.graph)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def exact_alpha_bar(graph: onnx.GraphProto) -> None:
    """Writes sigmoid(log_snr) as 1 / (1 + exp(-log_snr)).

    ONNX Runtime's sigmoid is 0 below -18, but alpha_bar divides.
    """
    noise_levels = {"log_snr"} | {node.output[0] for node in graph.node
                                  if node.op_type == "Cast" and node.input[0] == "log_snr"}
    at, node = next((i, node) for i, node in enumerate(graph.node)
                    if node.op_type == "Sigmoid" and node.input[0] in noise_levels)
    graph.node.remove(node)
    graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "one"))
    steps = [("Neg", [node.input[0]]), ("Exp", ["a.Neg"]), ("Add", ["a.Exp", "one"]),
             ("Reciprocal", ["a.Add"])]
    for step, (kind, given) in enumerate(steps):
        output = node.output[0] if kind == "Reciprocal" else f"a.{kind}"
        graph.node.insert(at + step, helper.make_node(kind, given, [output]))


def store_in_half(graph: onnx.GraphProto) -> None:
    """Keeps the large tensors that lose nothing by it in half precision."""
    casts = []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        half = values.astype(np.float16) if values.dtype == np.float32 else values
        if values.dtype == np.float32 and values.size >= SMALL and (half == values).all():
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    for node in casts:
        graph.node.insert(0, node)


def differences(model: bytes, network: unet.UNet) -> list[float]:
    """How far probabilities, velocities and per-pixel probabilities are from PyTorch's, at most,
    over calls from the noisiest level to the least noisy one."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    maps, largest = (torch.sigmoid, torch.clone, torch.sigmoid), [0.0] * len(OUTPUTS)
    for seed, log_snr in enumerate(diffusion.log_snr(network.schedule())[[0, 400, 700, 999]]):
        given = example(network.style_number(), seed, log_snr.item())
        found = session.run(OUTPUTS, {name: value.numpy() for name, value in
                                      zip(INPUTS, given, strict=True)})
        with torch.no_grad():
            wanted = Call(network).eval()(*given)
        largest = [max(most, (scale(torch.from_numpy(a)) - scale(b)).abs().max().nan_to_num(1e9)
                       .item()) for most, scale, a, b in zip(largest, maps, found, wanted,
                                                             strict=True)]
    return largest


def facts(network: unet.UNet, model: bytes, weights: bytes) -> dict:
    """What the page's scripts need to know, as JSON: `diffusion.js` and `harmony.js` read it.

    It says of which `weights` the model was made, so that a test sees when it is of others.
    """
    config = network.config
    qualities = {name: np.flatnonzero(harmony.chord_tones(f"C{name}")).tolist()
                 for name in pychord.QualityManager().get_qualities()}
    return {
        "bytes": len(model), "sha256": hashlib.sha256(model).hexdigest(),
        "weights": hashlib.sha256(weights).hexdigest(),
        "network": {"mean": config.mean, "std": config.std, "noise_steps": config.noise_steps,
                    "noise_shift": config.noise_shift, "guidance": config.guidance,
                    "style": network.style_number(), "active_counts": config.active_counts,
                    "onset_counts": config.onset_counts,
                    "velocity_spreads": config.velocity_spreads,
                    "silent_rows": np.flatnonzero(diffusion.silent_rows(network)).tolist()},
        "harmony": {"classes": harmony.CLASSES, "harte": harmony.HARTE, "degrees": harmony.DEGREES,
                    "qualities": qualities, "outside": harmony.OUTSIDE,
                    "modes": {name: np.flatnonzero(harmony.scale_tones(f"C {name}")).tolist()
                              for name in harmony.SCALES}},
    }


def main(weights: Path = WEIGHTS, folder: Path = FOLDER) -> None:
    """Export, compare, write. Raises `MusicError` where the model differs from PyTorch's."""
    network = unet.load(weights)
    rounded = halved(network)
    model = export(rounded)
    alike, rounding = differences(model, rounded), differences(model, network)
    if max(alike) > ALIKE:
        raise MusicError(f"{weights}: the exported model differs from PyTorch's by {max(alike):.1e}"
                         "; nothing is written")
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in (("model.onnx", model), ("model.json", json.dumps(
            facts(network, model, weights.read_bytes()), separators=(",", ":")).encode())):
        with atomic(folder / name) as temporary:
            temporary.write_bytes(data)
        print(f"{folder / name}: {len(data):,} bytes")
    for name, same, half in zip(OUTPUTS, alike, rounding, strict=True):
        print(f"{name}: at most {same:.1e} from PyTorch's, {half:.1e} with the rounding to half")


if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:]))
    except MusicError as error:
        sys.exit(str(error))
