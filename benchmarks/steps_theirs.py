"""The reference's side of steps.py: transformers and torch, with our weights and batch."""

import copy
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from steps_ours import CHECKED
from torch import nn

import flax_adapt as fa

TEMPERATURE, MOMENTUM = 0.2, 0.99


def load(kind, arch, stored, task, **changes):
    """A transformers model with our weights; changes: of its config."""
    names = dict(pooling="cls", preprocessor=None, tokenizer=None, class_names=None)
    if arch["kind"] == "resnet":
        names["pooling"] = "mean"
    if task == "mae":
        names["reconstruction"] = dict(normalize_patches=True, hidden_ratio=0.75)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        fa.weights.save(path, arch, stored, task, **names)
        return getattr(transformers, kind).from_pretrained(path, **changes)


def encode(vit, pixels):
    """Final states of the full image by the encoder of a masked autoencoder."""
    embeddings = vit.embeddings
    position = embeddings.position_embeddings
    x = embeddings.patch_embeddings(pixels) + position[:, 1:]
    cls = (embeddings.cls_token + position[:, :1]).expand(len(x), -1, -1)
    x = torch.cat([cls, x], dim=1)
    # transformers before 5.18 has an encoder, whose layers may return tuples
    for layer in vit.layers if hasattr(vit, "layers") else vit.encoder.layer:
        x = layer(x)
        x = x[0] if isinstance(x, tuple) else x
    return vit.layernorm(x)


class MAE(nn.Module):
    """Masked autoencoding."""

    def __init__(self, ours):
        super().__init__()
        self.mae = load("ViTMAEForPreTraining", ours.arch, ours.stored, "mae")

    def forward(self, pixels, noise):
        return self.mae(pixel_values=pixels, noise=noise).loss


class Distill(MAE):
    """Masked autoencoding and the distance to the states of a teacher (S1)."""

    def __init__(self, ours):
        super().__init__(ours)
        arch = {**ours.arch, "decoder": None}
        self.teacher = load("ViTModel", arch, ours.teacher, "encoder").eval()
        self.teacher.requires_grad_(False)

    def forward(self, pixels, noise):
        loss = super().forward(pixels, noise)
        student = encode(self.mae.vit, pixels)[:, 0].float()
        with torch.no_grad():
            teacher = self.teacher(pixels).last_hidden_state[:, 0].float()
        return loss + (student - teacher).square().sum(-1).mean()


class MLM(nn.Module):
    """Masked language modelling."""

    def __init__(self, ours):
        super().__init__()
        none = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        self.bert = load("BertForMaskedLM", ours.arch, ours.stored, "mlm", **none)

    def forward(self, tokens, labels):
        return self.bert(input_ids=tokens, labels=labels).loss


class Finetune(nn.Module):
    """Classification."""

    def __init__(self, ours):
        super().__init__()
        of_resnet = ours.arch["kind"] == "resnet"
        kind = "ResNetForImageClassification"
        kind = kind if of_resnet else "ViTForImageClassification"
        self.model = load(kind, ours.arch, ours.stored, "classify")

    def forward(self, pixels, labels):
        return F.cross_entropy(self.model(pixel_values=pixels).logits.float(), labels)


class Features(nn.Module):
    """CLS states."""

    def __init__(self, ours):
        super().__init__()
        self.vit = load("ViTModel", ours.arch, ours.stored, "encoder")

    def forward(self, pixels, labels):
        del labels
        return self.vit(pixels).last_hidden_state[:, 0]


def head(tree):
    """MoCo-v3's MLP with our weights."""
    layers, depth = [], sum(name.startswith("layer_") for name in tree)
    for number in range(depth):
        kernel = torch.from_numpy(np.array(tree[f"layer_{number}"]["kernel"]))
        linear = nn.Linear(*kernel.shape, bias=False)
        norm = nn.BatchNorm1d(kernel.shape[1], affine=number < depth - 1)
        linear.weight.data = kernel.T.contiguous()
        layers += [linear, norm] + ([nn.ReLU()] if number < depth - 1 else [])
    return nn.Sequential(*layers)


class Contrast(nn.Module):
    """MoCo-v3 (Chen et al. 2021, official code) on one device."""

    def __init__(self, ours):
        super().__init__()
        vit = load(
            "ViTModel", ours.arch, {"encoder": ours.stored["encoder"]}, "encoder"
        )
        self.query = nn.ModuleList([vit, head(ours.stored["projector"])])
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.predictor = head(ours.stored["predictor"])

    def project(self, pair, pixels):
        vit, projector = pair
        return projector(vit(pixels).last_hidden_state[:, 0].float())

    def error(self, query, key):
        logits = F.normalize(query) @ F.normalize(key).T / TEMPERATURE
        rows = torch.arange(len(logits), device=logits.device)
        return F.cross_entropy(logits, rows) * 2 * TEMPERATURE

    def forward(self, one, other):
        queries = [self.predictor(self.project(self.query, x)) for x in (one, other)]
        with torch.no_grad():
            keys = [self.project(self.key, x) for x in (one, other)]
        return self.error(queries[0], keys[1]) + self.error(queries[1], keys[0])

    @torch.no_grad()
    def after_step(self):
        """Moves the key encoder."""
        pairs = self.key.parameters(), self.query.parameters()
        torch._foreach_lerp_(*map(list, pairs), 1 - MOMENTUM)


def _pixels(image_BYXC, device):
    pixels = np.ascontiguousarray(image_BYXC.transpose(0, 3, 1, 2))
    return torch.from_numpy(pixels).to(device)


def _image(batch, other, device):
    return _pixels(batch["image"], device), torch.from_numpy(batch[other]).to(device)


def _rows(batch, device):
    hidden, tokens = batch["hidden"], batch["text"].tokens_BL
    labels = np.where(hidden.hidden_BL, tokens, -100)
    pair = torch.from_numpy(hidden.tokens_BL), torch.from_numpy(labels)
    return tuple(ids.long().to(device) for ids in pair)


def _views(batch, device):
    return tuple(_pixels(view, device) for view in batch["views"])


def _labelled(batch, device):
    pixels, labels = _image(batch, "label", device)
    return pixels, labels.long()


def _masked(batch, device):
    return _image(batch, "noise", device)


# Name -> (module, inputs from our batch, place of the input that training draws anew).
MODULES = {
    "mae": (MAE, _masked, 1),
    "distill": (Distill, _masked, 1),
    "distill_stage": (Distill, _masked, 1),
    "mlm": (MLM, _rows, None),
    "finetune": (Finetune, _labelled, None),
    "contrast": (Contrast, _views, None),
    "features": (Features, _labelled, None),
}


class Theirs:
    """The reference's program: `loss()` in float32, `step()`, and `wait()` for the device.

    compiles: by torch.compile. dtype "bfloat16" is autocast. channels_last: the layout of
    images and of convolutions.
    """

    def __init__(self, name, ours, dtype, *, compiles, channels_last):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        module, inputs, drawn = MODULES[name]
        self.module = module(ours).train(name != "features").to(self.device)
        if channels_last:
            self.module.to(memory_format=torch.channels_last)
        self.inputs, self.trains = inputs(ours.batch, self.device), name != "features"
        if channels_last:
            self.inputs = tuple(map(_channels_last, self.inputs))
        self.drawn = tuple(
            None if place == drawn else it for place, it in enumerate(self.inputs)
        )
        self.call = torch.compile(self.module) if compiles else self.module
        self.half = torch.autocast(
            self.device, torch.bfloat16, enabled=dtype == "bfloat16"
        )
        if self.trains:
            trained = [it for it in self.module.parameters() if it.requires_grad]
            self.optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)

    def loss(self):
        """The loss of the first CHECKED examples with the initial weights."""
        with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
            value = self.module(*(rows[:CHECKED] for rows in self.inputs)).float()
        return float(value if self.trains else value.abs().mean())

    def begin(self):
        """Returns at once: nothing comes before the first step."""

    def step(self):
        """One step of training, or one pass for features."""
        self._train() if self.trains else self._read()

    def wait(self):
        """Returns when all steps have ended."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _read(self):
        with torch.inference_mode(), self.half:
            self.call(*self.drawn)

    def _train(self):
        self.optimizer.zero_grad(set_to_none=True)
        with self.half:
            loss = self.call(*self.drawn)
        loss.backward()
        self.optimizer.step()
        if hasattr(self.module, "after_step"):
            self.module.after_step()


def _channels_last(rows):
    return rows.to(memory_format=torch.channels_last) if rows.ndim == 4 else rows
