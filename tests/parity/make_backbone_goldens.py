"""Writes tiny random backbones with transformers and timm, their states and gradients.

    pip install torch timm transformers && python tests/parity/make_backbone_goldens.py

Written with torch 2.13.0, timm 1.0.31 and transformers 5.24.0. Facebook's DINOv2 is no
package: its file has the tensors of transformers' model under the names of
`dinov2/models/vision_transformer.py`. NAME.outputs.npz holds what the model in NAME gives
for `backbone_inputs`: states, those of images of another size, and the gradients of a
weighted sum of the states, by names of tensors.
"""

import backbone_inputs as inputs
import numpy as np
import timm
import torch
import transformers
import weights_inputs
from safetensors.torch import load_file

SIZES = dict(
    hidden_size=inputs.WIDTH,
    num_hidden_layers=inputs.DEPTH,
    num_attention_heads=inputs.HEADS,
    image_size=inputs.IMAGE_SIZE,
    patch_size=inputs.PATCH_SIZE,
    num_labels=inputs.NUM_CLASSES,
)
TIMM = dict(
    img_size=inputs.IMAGE_SIZE,
    patch_size=inputs.PATCH_SIZE,
    embed_dim=inputs.WIDTH,
    depth=inputs.DEPTH,
    num_heads=inputs.HEADS,
    num_classes=inputs.NUM_CLASSES,
)


def pixels(size):
    return torch.from_numpy(inputs.images(size).transpose(0, 3, 1, 2).copy())


def store(name, run, model, rename):
    """Writes the outputs of `run`: model, pixels -> states."""
    model.zero_grad()
    states = run(model, pixels(inputs.IMAGE_SIZE))
    (states * torch.from_numpy(inputs.weight(tuple(states.shape)))).sum().backward()
    found = {"states": states, "other": run(model, pixels(inputs.OTHER_SIZE))}
    for tensor, value in model.named_parameters():
        if value.grad is not None:
            found[f"grad/{rename.get(tensor, tensor)}"] = value.grad
    arrays = {key: value.detach().numpy() for key, value in found.items()}
    np.savez_compressed(inputs.FOLDER / f"{name}.outputs.npz", **arrays)


def saved_names(model, folder):
    """{name in memory: name in the file}, by equal values; some share one file tensor."""
    file = load_file(folder / "model.safetensors")
    return {
        name: next((n for n, t in file.items() if torch.equal(t, value)), name)
        for name, value in model.state_dict().items()
    }


def hugging_face(name, seed, model_class, **changes):
    config = model_class.config_class(**SIZES, **changes)
    model = weights_inputs.fill(model_class(config), seed)
    model.save_pretrained(inputs.FOLDER / name)

    def run(model, image):
        return model.base_model(image).last_hidden_state

    store(name, run, model, saved_names(model, inputs.FOLDER / name))
    return model


def of_timm(name, seed, architecture, **changes):
    model = timm.create_model(architecture, **TIMM, dynamic_img_size=True, **changes)
    model = weights_inputs.fill(model, seed)
    timm.models.save_for_hf(model, inputs.FOLDER / name, safe_serialization=True)
    store(name, lambda model, image: model.forward_features(image), model, {})


def facebook(name, model):
    """The encoder of transformers' model, with Facebook's names."""
    file = load_file(inputs.FOLDER / name / "model.safetensors")
    prefix = f"{model.base_model_prefix}."
    found = {}
    for key, tensor in file.items():
        key = key.removeprefix(prefix).removeprefix("embeddings.")
        for old, new in {
            "position_embeddings": "pos_embed",
            "patch_embeddings.projection": "patch_embed.proj",
            "encoder.layer": "blocks",
            "attention.output.dense": "attn.proj",
            "layernorm": "norm",
            "weights_in": "w12",
            "weights_out": "w3",
            "layer_scale1.lambda1": "ls1.gamma",
            "layer_scale2.lambda1": "ls2.gamma",
        }.items():
            key = key.replace(old, new)
        found[key] = tensor
    for block in range(inputs.DEPTH):
        for kind in ("weight", "bias"):
            names = [
                f"blocks.{block}.attention.attention.{part}.{kind}"
                for part in ("query", "key", "value")
            ]
            parts = [found.pop(part) for part in names]
            found[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
    found = {k: v for k, v in found.items() if not k.startswith("classifier")}
    torch.save(found, inputs.FOLDER / f"facebook_{name}.pth")


def main():
    torch.set_num_threads(1)
    inputs.FOLDER.mkdir(exist_ok=True, parents=True)
    plain = transformers.Dinov2ForImageClassification
    registers = transformers.Dinov2WithRegistersForImageClassification
    facebook("dinov2", hugging_face("dinov2", 11, plain, mlp_ratio=2))
    model = hugging_face(
        "dinov2_registers",
        12,
        registers,
        use_swiglu_ffn=True,
        num_register_tokens=3,
        layer_norm_eps=1e-5,
    )
    facebook("dinov2_registers", model)
    of_timm("timm_dinov2", 13, "vit_small_patch14_dinov2", mlp_ratio=2.0)
    of_timm("timm_reg4_dinov2", 14, "vit_giant_patch14_reg4_dinov2", mlp_ratio=3.0)


if __name__ == "__main__":
    main()
