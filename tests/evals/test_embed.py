"""Features by models on disk: models of one kind share a compiled program."""

import jax
import numpy as np
from support import tiny

from flax_adapt import data, weights
from flax_adapt.base import config as configs
from flax_adapt.evals import embed
from flax_adapt.train import sharding

COMPILED = "/jax/core/compile/backend_compile_duration"


def test_models_of_one_kind_compile_once_and_have_their_own_features(tmp_path):
    model, mesh = (
        tiny.build("encoder"),
        sharding.make_mesh(dict(data=-1, fsdp=1, tensor=1)),
    )
    section = configs.build(tiny.digits(subset=tiny.FEW))
    examples, compiled, found = data.open_examples(section, ""), [], []

    def count(event, seconds, **more):
        del seconds
        if event == COMPILED and more["fun_name"] == "jit(encode)":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    for seed in range(2):
        folder = tmp_path / str(seed)
        params = tiny.params_of(model, seed)
        weights.save_pretrained(folder, model, params, mean=(0.5,), std=(0.5,))
        how = dict(fit={}, pooling="cls", batch_size=40, precision="float32", mesh=mesh)
        found.append(embed.Embedder(folder, **how).features(examples).embeddings)
    jax.monitoring.unregister_event_duration_listener(count)
    assert len(compiled) == 1
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_features_on_eight_devices_are_those_of_one(tmp_path):
    model = tiny.build("encoder")
    section = configs.build(tiny.digits(subset=tiny.FEW))
    examples, found = data.open_examples(section, ""), []
    weights.save_pretrained(
        tmp_path, model, tiny.params_of(model), mean=(0.5,), std=(0.5,)
    )
    for mesh in (sharding.one_device(), sharding.all_devices()):
        # 12 of 8 devices are 16: the last batch is filled up on both.
        how = dict(fit={}, pooling="cls", batch_size=12, precision="float32", mesh=mesh)
        embedder = embed.Embedder(tmp_path, **how)
        found.append(embedder.features(examples))
    assert (len(examples) % 12, len(examples) % 16) != (0, 0)
    assert sharding.all_devices().size == 8
    np.testing.assert_array_equal(found[1].indices, found[0].indices)
    np.testing.assert_array_equal(found[1].labels, found[0].labels)
    np.testing.assert_allclose(found[1].embeddings, found[0].embeddings, atol=1e-6)
