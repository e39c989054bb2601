"""Computes the goldens with transformers and torch, in float64, and stores float32.

    pip install torch transformers && python tests/parity/make_goldens.py

Written with torch 2.13.0 and transformers 5.23.0. Inputs and parameters come from
`inputs.py`; only outputs are stored, under the names of the transformers that ran.
"""

import json
from pathlib import Path

import inputs
import numpy as np
import torch
import transformers

FOLDER = Path(__file__).parent / "goldens"


def make(kind, name, seed, **fields):
    """A transformers model with parameters from `inputs`, float64, no dropout."""
    config = kind.config_class(**inputs.hugging_face_config(name), **fields)
    model = kind(config).double().eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            value.copy_(torch.from_numpy(inputs.tensor(key, value.shape, seed)))
    return model


def mae(name, seed, norm_pix_loss):
    return make(
        transformers.ViTMAEForPreTraining,
        name,
        seed,
        mask_ratio=inputs.MASK_RATIO[name],
        norm_pix_loss=norm_pix_loss,
    )


def classifier(name):
    kind = transformers.ViTForImageClassification
    labels = {i: str(i) for i in range(inputs.NUM_CLASSES)}
    return make(kind, name, inputs.CLASSIFIER, id2label=labels)


def pixels(name, step=0):
    """[B, C, Y, X] as torch wants it."""
    image = inputs.images(name, step).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(image)).double()


def noise(name, step=0):
    return torch.from_numpy(inputs.noise(name, step)).double()


def labels(step=0):
    return torch.from_numpy(inputs.labels(step)).long()


def shapes(model):
    """{"shapes": JSON of the state dict's shapes}."""
    return {
        "shapes": json.dumps({k: list(v.shape) for k, v in model.state_dict().items()})
    }


def grads(model, prefix="grad"):
    """Gradients of every parameter that trains."""
    return {
        f"{prefix}/{key}": value.grad
        for key, value in model.named_parameters()
        if value.requires_grad
    }


def state(model, prefix):
    return {f"{prefix}/{key}": value for key, value in model.state_dict().items()}


def store(file, arrays):
    FOLDER.mkdir(exist_ok=True)
    as_numpy = {
        key: np.asarray(value)
        if isinstance(value, str | list)
        else value.detach().numpy().astype(np.float32)
        for key, value in arrays.items()
    }
    np.savez_compressed(FOLDER / f"{file}.npz", **as_numpy)


def full_cls(model, name, step=0):
    """CLS after the final LayerNorm, of the full image: nothing is hidden."""
    ratio, model.config.mask_ratio = model.config.mask_ratio, 0.0
    order = torch.arange(noise(name).shape[1]).expand(inputs.BATCH, -1).double()
    state_BLD = model.vit(pixels(name, step), noise=order).last_hidden_state
    model.config.mask_ratio = ratio
    return state_BLD[:, 0]


def self_distillation(student, teacher, name, step=0):
    """Returns (masked loss, distance): their sum is the loss of S1."""
    masked = student(pixels(name, step), noise=noise(name, step)).loss
    with torch.no_grad():
        target = full_cls(teacher, name, step)
    distance = (full_cls(student, name, step) - target).square().sum(-1).mean()
    return masked, distance


def golden_mae(name, norm_pix_loss):
    model = mae(name, inputs.STUDENT, norm_pix_loss)
    out = model(pixels(name), noise=noise(name))
    out.loss.backward()
    arrays = dict(logits=out.logits, mask=out.mask, loss=out.loss)
    suffix = "norm_pix" if norm_pix_loss else "raw"
    store(f"mae_{name}_{suffix}", arrays | shapes(model) | grads(model))


def golden_vit(name):
    """States after every block (before the final LayerNorm), after it, pooler."""
    model = make(transformers.ViTModel, name, inputs.STUDENT)
    # Whether `hidden_states` ends before or after the final LayerNorm differs between
    # versions of transformers: hooks do not.
    blocks = []
    for layer in model.layers:
        layer.register_forward_hook(
            lambda module, args, value: blocks.append(
                value[0] if isinstance(value, tuple) else value
            )
        )
    out = model(pixels(name))
    arrays = {f"block_{i:02d}": value for i, value in enumerate(blocks)}
    arrays |= dict(last=out.last_hidden_state, pooled=out.pooler_output)
    store(f"vit_{name}", arrays | shapes(model))


def golden_classify(name):
    model = classifier(name)
    out = model(pixels(name), labels=labels())
    out.loss.backward()
    arrays = dict(logits=out.logits, loss=out.loss)
    store(f"classify_{name}", arrays | shapes(model) | grads(model))


def golden_distill(name):
    student = mae(name, inputs.STUDENT, True)
    teacher = mae(name, inputs.TEACHER, True)
    masked, distance = self_distillation(student, teacher, name)
    (masked + distance).backward()
    arrays = dict(masked=masked, distance=distance)
    store(f"distill_{name}", arrays | shapes(student) | grads(student))


def adamw(model, settings, decays):
    """AdamW with two groups: `decays(name, parameter)` says which are decayed."""
    groups = {True: [], False: []}
    for key, value in model.named_parameters():
        if value.requires_grad:
            groups[decays(key, value)].append(value)
    return torch.optim.AdamW(
        [
            dict(params=groups[True], weight_decay=settings["weight_decay"]),
            dict(params=groups[False], weight_decay=0.0),
        ],
        lr=settings["lr"],
        betas=(settings["b1"], settings["b2"]),
        eps=settings["eps"],
    )


def pretrain(model, loss_of):
    """Runs the steps of PRETRAIN; returns the losses, each before its update."""
    num_steps = inputs.PRETRAIN["num_steps"]
    optimizer = adamw(model, inputs.PRETRAIN, lambda _, value: value.ndim > 1)
    linear = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / num_steps)
    losses = []
    for step in range(num_steps):
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        linear.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def golden_training(name):
    """20 steps of a teacher, then 20 of a student from the same start."""
    teacher = mae(name, inputs.STUDENT, True)
    student = mae(name, inputs.STUDENT, True)
    arrays = {}
    arrays["teacher_loss"] = pretrain(
        teacher, lambda step: teacher(pixels(name, step), noise=noise(name, step)).loss
    )
    arrays["student_loss"] = pretrain(
        student, lambda step: sum(self_distillation(student, teacher, name, step))
    )
    arrays |= state(teacher, "teacher") | state(student, "student")
    store(f"training_{name}", arrays | shapes(student))


def golden_finetune(name):
    """Clip, warm-up, decay of all but biases, position and CLS."""
    model, settings = classifier(name), inputs.FINETUNE
    num_steps, warmup = settings["num_steps"], settings["warmup_steps"]
    undecayed = ("bias", "cls_token", "position_embeddings")
    optimizer = adamw(model, settings, lambda key, _: not key.endswith(undecayed))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: i / warmup if i < warmup else (num_steps - i) / (num_steps - warmup),
    )
    losses, norms = [], []
    for step in range(num_steps):
        loss = model(pixels(name, step), labels=labels(step)).loss
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip_norm"])
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        norms.append(norm)
    arrays = dict(loss=torch.stack(losses), grad_norm=torch.stack(norms))
    store(f"finetune_{name}", arrays | shapes(model) | state(model, "final"))


def main():
    torch.set_num_threads(1)
    for name in inputs.SHAPES:
        golden_mae(name, True)
        golden_mae(name, False)
        golden_vit(name)
        golden_classify(name)
        golden_distill(name)
    golden_training("A")
    golden_finetune("A")
    total = sum(file.stat().st_size for file in FOLDER.glob("*.npz"))
    print(f"{FOLDER}: {total} bytes")


if __name__ == "__main__":
    main()
