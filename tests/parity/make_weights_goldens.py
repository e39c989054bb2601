"""Writes tiny random checkpoints with the original libraries, and their outputs.

    pip install torch timm && python tests/parity/make_weights_goldens.py torch
    pip install flax && python tests/parity/make_weights_goldens.py flax

Written with torch 2.14.1 (timm_pooled: 2.13.0), timm 1.0.31 and flax 0.12.8.
Facebook's MAE and vision_transformer are no packages: `published.py` restates their
modules. A file NAME.outputs.npz holds what the model in NAME gives for
`weights_inputs`.
"""

import argparse
import sys

import numpy as np
import published
import weights_inputs as inputs

FOLDER = inputs.FOLDER


def store(name, **arrays):
    arrays = {key: np.asarray(value, np.float32) for key, value in arrays.items()}
    np.savez_compressed(FOLDER / f"{name}.outputs.npz", **arrays)


def pixels():
    """[B, C, Y, X] as torch wants it."""
    import torch

    return torch.from_numpy(inputs.images().transpose(0, 3, 1, 2).copy())


def save_timm_folder(name, seed, **arguments):
    import timm

    model = timm.create_model(
        "vit_base_patch16_224", **inputs.TIMM_ARGUMENTS, **arguments
    )
    model = inputs.fill(model, seed)
    timm.models.save_for_hf(model, FOLDER / name, safe_serialization=True)
    store(name, states=model.forward_features(pixels()), logits=model(pixels()))


def save_deit():
    """As the released files of DeiT: {"model": parameters}."""
    import timm
    import torch

    model = timm.create_model("deit_tiny_patch16_224", **inputs.TIMM_ARGUMENTS)
    model = inputs.fill(model, 3)
    torch.save({"model": model.state_dict()}, FOLDER / "deit.pth")
    store("deit", states=model.forward_features(pixels()), logits=model(pixels()))


def save_facebook():
    """`*_full` with what the training script keeps beside, and the encoder alone."""
    import torch

    model = published.masked_autoencoder(inputs.SIZES, inputs.DECODER)
    model, noise = inputs.fill(model, 4), torch.from_numpy(inputs.noise())
    tensors, arguments = model.state_dict(), argparse.Namespace(blr=1.5e-4, batch=64)
    full = {"model": tensors, "epoch": 799, "scaler": {"scale": 1.0}, "args": arguments}
    torch.save(full, FOLDER / "facebook_full.pth")
    encoder = {
        k: v for k, v in tensors.items() if not k.startswith(("decoder", "mask"))
    }
    torch.save(
        {"model": encoder},
        FOLDER / "facebook_encoder.pth",
        _use_new_zipfile_serialization=False,
    )
    prediction, mask = model(pixels(), noise, inputs.HIDDEN_RATIO)
    order = torch.arange(noise.shape[1]).expand(inputs.BATCH, -1)
    states, _, _ = model.encode(pixels(), order, 0.0)
    store("facebook_full", prediction=prediction, mask=mask, states=states)
    store("facebook_encoder", states=states)


def save_facebook_finetuned():
    """models_vit.py is timm's ViT; with global_pool it normalises after pooling."""
    import timm
    import torch

    for name, pool in (("facebook_cls", "token"), ("facebook_pooled", "avg")):
        model = timm.create_model(
            "vit_base_patch16_224", global_pool=pool, **inputs.TIMM_ARGUMENTS
        )
        model = inputs.fill(model, 5)
        assert hasattr(model.fc_norm, "weight") == (pool == "avg")
        torch.save({"model": model.state_dict(), "epoch": 99}, FOLDER / f"{name}.pth")
        store(name, states=model.forward_features(pixels()), logits=model(pixels()))


def save_big_vision():
    """A .npz as AugReg's: the names joined by slashes."""
    import flax.traverse_util
    import jax

    model = published.vision_transformer(inputs.SIZES, inputs.NUM_CLASSES)
    image = inputs.images()
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image))["params"]
    rng = inputs.random("big_vision")
    params = jax.tree.map(
        lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes
    )
    np.savez(
        FOLDER / "big_vision.npz", **flax.traverse_util.flatten_dict(params, sep="/")
    )
    with jax.default_matmul_precision("highest"):
        states, logits = model.apply({"params": params}, image)
    store("big_vision", states=states, logits=logits)


def main():
    FOLDER.mkdir(exist_ok=True, parents=True)
    if sys.argv[1:] == ["flax"]:
        save_big_vision()
        return
    import torch

    torch.set_num_threads(1)
    with torch.no_grad():
        save_timm_folder("timm_token", 1)
        save_timm_folder("timm_avg", 2, global_pool="avg", fc_norm=False)
        save_timm_folder("timm_pooled", 6, global_pool="avg")
        save_deit()
        save_facebook()
        save_facebook_finetuned()


if __name__ == "__main__":
    main()
