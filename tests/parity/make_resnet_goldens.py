"""Writes a tiny ResNet of timm's and what it gives, in evaluation and in training.

    pip install torch timm && python tests/parity/make_resnet_goldens.py

Written with torch 2.14.1 and timm 1.0.31; computed in float64. timm_resnet.outputs.npz:
logits and features in evaluation; of one training pass the logits, the cross-entropy,
its gradients under grad/ and the running statistics after it under after/.
"""

import numpy as np
import resnet_inputs as inputs
import timm
import torch


def main():
    torch.set_num_threads(1)
    model = inputs.fill(timm.create_model("resnet50", **inputs.ARGUMENTS))
    folder = inputs.FOLDER / inputs.NAME
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    pixels = torch.from_numpy(inputs.images().transpose(0, 3, 1, 2).copy()).double()
    model = model.double().eval()
    with torch.no_grad():
        features = model.forward_head(model.forward_features(pixels), pre_logits=True)
        arrays = {"logits": model(pixels), "features": features}
    logits = model.train()(pixels)
    labels = torch.from_numpy(inputs.labels()).long()
    loss = torch.nn.functional.cross_entropy(logits, labels)
    loss.backward()
    arrays |= {"train_logits": logits.detach(), "loss": loss.detach()}
    arrays |= {f"grad/{k}": value.grad for k, value in model.named_parameters()}
    running = {k: v for k, v in model.state_dict().items() if "running" in k}
    arrays |= {f"after/{name}": value for name, value in running.items()}
    arrays = {name: np.asarray(value, np.float32) for name, value in arrays.items()}
    np.savez_compressed(inputs.FOLDER / f"{inputs.NAME}.outputs.npz", **arrays)


if __name__ == "__main__":
    main()
