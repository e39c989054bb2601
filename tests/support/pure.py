"""Run by a process of its own: the pure parts, where only JAX, Flax and few others are."""

import importlib
import importlib.abc
import sys

LIGHT = (
    "jax",
    "flax",
    "flax.linen",
    "optax",
    "ml_collections",
    "numpy",
    "absl.logging",
)


def tops():
    return {name.partition(".")[0] for name in sys.modules}


class Hidden(importlib.abc.MetaPathFinder):
    """Refuses every package that those of LIGHT have not loaded, as if not installed."""

    def __init__(self, names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.names:
            raise ModuleNotFoundError(f"{name} is hidden", name=name)


def hide_the_rest():
    for name in LIGHT:
        importlib.import_module(name)
    own = {"flax_adapt", "support", "scipy"}  # JAX needs scipy, and loads it late
    sys.meta_path.insert(0, Hidden(tops() | own | sys.stdlib_module_names))


def objectives_on(tiny, tiny_contrast, tiny_glad, defaults):
    """name -> (section, model, batch) of every objective."""
    reconstruct = defaults.reconstruct() | dict(hidden_ratio=0.5)
    mlm = defaults.mlm(tiny.MASK) | dict(mask_rate=0.5, max_masked_fraction=0.5)
    image, text = {**tiny.MODEL, "depth": 1}, {**tiny.TEXT_MODEL, "depth": 1}
    on_images = {
        "reconstruct": (reconstruct, "mae"),
        "distill": (defaults.distill() | dict(masked=reconstruct), "mae"),
        "classify": (defaults.classify(), "classify"),
    }
    table = {
        name: (section, tiny.build(task, image), tiny.batch_of())
        for name, (section, task) in on_images.items()
    }
    adapted = tiny.build("classify", image | {"adaptor": tiny_glad.KINDS["vector"]})
    table["glad"] = (defaults.glad(), adapted, tiny.batch_of())
    regressor = tiny.build("classify", text, num_classes=1)
    texts = tiny.text_batch_of(packed=False)
    table["mlm"] = (mlm, tiny.build("mlm", text), texts)
    table["regress"] = (defaults.regress(), regressor, texts)
    contrast = tiny_contrast.section(), tiny_contrast.model_of()
    table["contrast"] = (*contrast, tiny_contrast.batch_of())
    return table


def main():
    hide_the_rest()
    import jax
    import numpy as np
    import optax
    from ml_collections import ConfigDict
    from support import tiny, tiny_contrast, tiny_glad, tiny_resized

    import flax_adapt as fa

    jax.config.update("jax_disable_most_optimizations", True)
    mesh = fa.make_mesh(dict(data=-1, fsdp=1, tensor=1))
    table = objectives_on(tiny, tiny_contrast, tiny_glad, fa.defaults)
    assert table.keys() == fa.objectives.OBJECTIVES.keys()
    encoder = tiny.params_of(tiny.build("encoder", {**tiny.MODEL, "depth": 1}))
    for name, (section, model, batch) in table.items():
        config = ConfigDict(section)
        loss_fn = fa.objectives.build(config, model)
        carry, tx = fa.objectives.build_carry(config, 10), optax.sgd(0.1)
        frozen = {"distill": {"teacher": encoder}, "glad": {"start": encoder}}
        params, key = tiny.params_of(model), jax.random.key(0)
        inputs = {**frozen.get(name, {}), **carry.init(params, key)}
        key_B = jax.random.split(key, len(batch["label"]))
        whole = jax.value_and_grad(loss_fn, has_aux=True)
        # Traced, which imports all that a step needs; compiling seven takes a minute.
        (loss, _), _ = jax.eval_shape(whole, params, inputs, batch, key_B)
        assert loss.shape == ()
        if name == "classify":
            state = fa.create_state(params, tx, mesh, seed=0, carry=carry)
            step = fa.make_train_step(loss_fn, tx, mesh, carry=carry)
            state, metrics = step(state, batch)
            assert np.isfinite(metrics["loss"].value())
    new = tiny_resized.resized("mae", width=24)[3]
    assert new["encoder"]
    hidden = {"sklearn", "grain", "orbax", "PIL", "tokenizers", "dm_pix", "tqdm"}
    assert not hidden & tops()
    print(f"{len(table)} objectives")


if __name__ == "__main__":
    main()
