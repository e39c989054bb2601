"""Writes tiny random DeiT, CLIP and DINOv3, their states, logits and gradients.

    pip install torch timm transformers && python tests/parity/make_visual_goldens.py

Written with torch 2.13.0, timm 1.0.31 and transformers 5.24.0, as `make_backbone_goldens`,
which has the rest. Facebook's DINOv3 is no package: its file has the tensors of
transformers' model under the names of `dinov3/models/vision_transformer.py`. CLIP's states
are those after its last norm, which its class applies to CLS alone.
"""

import re

import backbone_inputs as inputs
import make_backbone_goldens as goldens
import numpy as np
import timm
import torch
import transformers
import weights_inputs
from safetensors.torch import load_file

# Pattern in transformers' names -> Facebook's.
RENAMED = {
    r"^embeddings\.": "",
    r"^layer\.": "blocks.",
    "register_tokens": "storage_tokens",
    "patch_embeddings": "patch_embed.proj",
    r"attention\.o_proj": "attn.proj",
    r"layer_scale(\d)\.lambda1": r"ls\1.gamma",
    r"mlp\.gate_proj": "mlp.w1",
    r"mlp\.up_proj": "mlp.w2",
    r"mlp\.down_proj": "mlp.w3",
}
ROPE = dict(num_register_tokens=2, pos_embed_rescale=2.0)


def add_logits(name, model):
    """Adds the logits of a classifier to its outputs."""
    path = inputs.FOLDER / f"{name}.outputs.npz"
    with np.load(path) as found:
        arrays = dict(found)
    found = model.eval()(goldens.pixels(inputs.IMAGE_SIZE))
    logits = getattr(found, "logits", found)
    np.savez_compressed(path, **arrays, logits=logits.detach().numpy())


def deit():
    name, options = "deit_distilled", dict(intermediate_size=32)
    model_class = transformers.DeiTForImageClassificationWithTeacher
    config = model_class.config_class(**goldens.SIZES, **options)
    model = weights_inputs.fill(model_class(config), 21)
    model.save_pretrained(inputs.FOLDER / name)

    def run(model, image):
        encoder = model.base_model
        return encoder(image, interpolate_pos_encoding=True).last_hidden_state

    rename = goldens.saved_names(model, inputs.FOLDER / name)
    goldens.store(name, run, model, rename)
    add_logits(name, model)


def clip():
    name, model_class = "clip", transformers.CLIPVisionModel
    sizes = {k: v for k, v in goldens.SIZES.items() if k != "num_labels"}
    config = model_class.config_class(**sizes, intermediate_size=32)
    model = weights_inputs.fill(model_class(config), 22)
    model.save_pretrained(inputs.FOLDER / name)

    def run(model, image):
        found = model(image, interpolate_pos_encoding=True).last_hidden_state
        return model.post_layernorm(found)

    rename = goldens.saved_names(model, inputs.FOLDER / name)
    goldens.store(name, run, model, rename)
    found = model(goldens.pixels(inputs.IMAGE_SIZE)).pooler_output
    normed = run(model, goldens.pixels(inputs.IMAGE_SIZE))[:, 0]
    torch.testing.assert_close(found, normed)


def dinov3(name, seed, **changes):
    model_class = transformers.DINOv3ViTModel
    sizes = {k: v for k, v in goldens.SIZES.items() if k != "num_labels"}
    options = dict(intermediate_size=32) | ROPE | changes
    config = model_class.config_class(**sizes, **options)
    model = weights_inputs.fill(model_class(config), seed).eval()
    model.save_pretrained(inputs.FOLDER / name)
    rename = goldens.saved_names(model, inputs.FOLDER / name)
    goldens.store(name, lambda m, image: m(image).last_hidden_state, model, rename)
    facebook(name)


def facebook(name):
    """The encoder of transformers' model, with Facebook's names and its masked key bias."""
    found = {}
    for key, tensor in load_file(inputs.FOLDER / name / "model.safetensors").items():
        for old, new in RENAMED.items():
            key = re.sub(old, new, key)
        found[key] = tensor
    if "blocks.0.mlp.w1.weight" not in found:
        plain = {"mlp.w2": "mlp.fc1", "mlp.w3": "mlp.fc2"}
        for key in list(found):
            for old, new in plain.items():
                if old in key:
                    found[key.replace(old, new)] = found.pop(key)
    found["mask_token"] = found["mask_token"].reshape(1, -1)
    width, ones = inputs.WIDTH, torch.ones(inputs.WIDTH)
    for block in range(inputs.DEPTH):
        old, new = f"blocks.{block}.attention", f"blocks.{block}.attn.qkv"
        parts = [found.pop(f"{old}.{part}_proj.weight") for part in "qkv"]
        found[f"{new}.weight"] = torch.cat(parts)
        biases = (
            found.pop(f"{old}.q_proj.bias"),
            torch.zeros(width),
            found.pop(f"{old}.v_proj.bias"),
        )
        found[f"{new}.bias"] = torch.cat(biases)
        found[f"{new}.bias_mask"] = torch.cat([ones, 0 * ones, ones])
    head_dim = width // inputs.HEADS
    steps = torch.arange(head_dim // 4) * 2 / (head_dim // 2)
    found["rope_embed.periods"] = 100.0**steps
    torch.save(found, inputs.FOLDER / f"facebook_{name}.pth")


def main():
    torch.set_num_threads(1)
    deit()
    clip()
    dinov3("dinov3", 23)
    dinov3("dinov3_gated", 24, use_gated_mlp=True, hidden_act="silu")
    of_timm = goldens.of_timm
    of_timm("timm_deit_distilled", 25, "deit_tiny_distilled_patch16_224", mlp_ratio=2.0)
    of_timm("timm_deit3", 26, "deit3_small_patch16_224", mlp_ratio=2.0)
    of_timm("timm_dinov3", 27, "vit_small_patch16_dinov3", mlp_ratio=2.0)
    plus = "vit_small_plus_patch16_dinov3_qkvb"
    of_timm("timm_dinov3_plus", 28, plus, mlp_ratio=3.0, num_reg_tokens=2)
    for name, architecture in {
        "timm_deit_distilled": "deit_tiny_distilled_patch16_224",
        "timm_dinov3": "vit_small_patch16_dinov3",
    }.items():
        options = goldens.TIMM | dict(mlp_ratio=2.0, dynamic_img_size=True)
        model = timm.create_model(architecture, **options).eval()
        file = inputs.FOLDER / name / "model.safetensors"
        model.load_state_dict(load_file(file))
        add_logits(name, model)


if __name__ == "__main__":
    main()
