"""From pixels to a loss: views, augmentation, mixtures that are new instances, replay."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from support import tiny
from support.tiny_contrast import keys_of

from flax_adapt import defaults, objectives
from flax_adapt.base import keys
from flax_adapt.data.images import image
from flax_adapt.experiment import recipe
from flax_adapt.objectives import mixing

SIZE = 8
PLAIN = defaults.NO_AUGMENT
CROP = {**PLAIN, "flip": True, "min_crop_area": 0.5}
SOLARIZED = {**CROP, "solarize_probability": 0.5}
WEIGHT_B = np.float32([1, 1, 0, 1, 1, 1, 1, 1])
DOMAIN_B = np.int32([0, 1, 0, 0, 1, 0, 1, 1])


def batch_of(**changes):
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, 8, 8, 1))
    fields = {"image": pixels.astype(np.uint8), "weight": WEIGHT_B, "domain": DOMAIN_B}
    return {**tiny.batch_of(SIZE), **fields, **changes}


def seen(objective, batch=None, *, train=True, **changes):
    """(batch, keys) as they reach the loss, of data with these changes."""
    config, data = ConfigDict(objective), ConfigDict(tiny.digits(**changes))
    loss_fn = objectives.on_pixels(
        lambda params, frozen, batch, key_B: (batch, key_B), config, data, train=train
    )
    return jax.jit(loss_fn)({}, {}, batch or batch_of(), keys_of())


def view(pixels_BYXC, section, number=0):
    """The view `number` of pixels by `image`; section None: nothing is augmented."""
    data, augment = ConfigDict(tiny.digits()), section and ConfigDict(section)
    key_B = keys.fold(keys_of(), objectives._AUGMENT + number)
    return jax.jit(lambda *given: image.preprocess(*given, data, augment))(
        pixels_BYXC, key_B
    )


def close(ours, expected):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6)


def mixes(operator="mixup", reading="instance", pairing="any"):
    return dict(operator=operator, alpha=1.0, pairing=pairing, reading=reading)


def mae(**changes):
    return defaults.reconstruct() | dict(mixing=mixes(**changes))


def distill(**changes):
    return defaults.distill(mae(**changes))


def contrast(**changes):
    return defaults.contrast(mixing=mixes(**changes))


def mixture(batch, **changes):
    """float32 pixels, every one mixed with its partner, by `mixing`."""
    section = ConfigDict(mixes(**changes))
    key_B = keys.fold(keys_of(), objectives._MIX)
    partner_B = mixing.partner_rows(
        batch["domain"], batch["weight"], key_B, section.pairing
    )
    pixels_BYXC = batch["image"].astype(np.float32)
    mixed_BYXC, lam_B = mixing.mix_images(pixels_BYXC, partner_B, key_B, section)
    assert np.sum(lam_B < 0.95) >= 4
    return mixed_BYXC


@pytest.mark.parametrize("train", [True, False])
def test_each_view_has_its_own_augmentation_and_its_own_key(train):
    """In evaluation, too."""
    batch, _ = seen(defaults.contrast(), train=train, views=(CROP, SOLARIZED))
    for number, section in enumerate((CROP, SOLARIZED)):
        close(batch["views"][number], view(batch_of()["image"], section, number))
    assert len(batch["views"]) == 2


def test_two_views_of_the_same_augmentation_differ_in_every_row():
    one, other = seen(defaults.contrast(), views=(CROP, CROP))[0]["views"]
    assert np.all(np.abs(one - other).max(axis=(1, 2, 3)) > 0.1)


def test_a_plain_augmentation_is_for_training_alone():
    pixels = batch_of()["image"]
    train, evaluation = (
        seen(defaults.reconstruct(), train=train, augment=CROP)[0]["image"]
        for train in (True, False)
    )
    close(train, view(pixels, CROP))
    close(evaluation, (pixels / 255 - 0.5) / 0.5)
    assert np.abs(train - evaluation).max() > 0.1


@pytest.mark.parametrize("views", [(), (CROP, SOLARIZED)])
def test_the_rest_of_a_batch_and_the_keys_come_through(views):
    given = batch_of()
    batch, key_B = seen(defaults.contrast(), given, views=views)
    assert {*batch} == {*given, "views"}
    for name in {*given} - {"image"}:
        np.testing.assert_array_equal(batch[name], given[name])
    assert np.array_equal(
        jax.random.key_data(key_B), jax.random.key_data(keys_of())
    )  # a loss folds its own purposes into them


def test_text_stays_as_it_is():
    data = ConfigDict(defaults.text_data("jsonl:texts", "train", "tokenizer"))
    batch = tiny.text_batch_of(SIZE)

    def loss_fn(params, frozen, batch, key_B):
        return batch

    for train in (True, False):
        ours = objectives.on_pixels(loss_fn, ConfigDict(contrast()), data, train=train)
        assert ours({}, {}, batch, keys_of()) is batch


@pytest.mark.parametrize("operator", ["mixup", "cutmix"])
@pytest.mark.parametrize("objective", [mae, contrast, distill])
def test_a_mixture_that_is_an_instance_is_made_of_pixels_before_augmentation(
    objective, operator
):
    """Of `distill` by the section of its masked part."""
    batch, _ = seen(objective(operator=operator), augment=CROP)
    close(batch["image"], view(mixture(batch_of(), operator=operator), CROP))


def test_all_views_are_of_the_same_mixture():
    batch, _ = seen(contrast(), views=(CROP, SOLARIZED))
    mixed_BYXC = mixture(batch_of())
    for number, section in enumerate((CROP, SOLARIZED)):
        close(batch["views"][number], view(mixed_BYXC, section, number))


@pytest.mark.parametrize(
    ("objective", "train"),
    [
        (mae(), False),
        (contrast(), False),
        (distill(), False),
        (contrast(reading="imix"), True),
        (contrast(reading="unmix"), True),
        (mae(operator="none"), True),
        (contrast(operator="none"), True),
        (distill(operator="none"), True),
    ],
)
def test_pixels_are_not_mixed_otherwise(objective, train):
    batch, _ = seen(objective, train=train)
    close(batch["image"], view(batch_of()["image"], None))


def test_pixels_are_mixed_with_those_of_the_other_domain_alone():
    """Every row has a grey of its own: what is in a cut image tells whom it met."""
    greys = 20 * np.arange(1, SIZE + 1)
    pixels = np.broadcast_to(greys[:, None, None, None], (SIZE, 8, 8, 1))
    given = batch_of(image=pixels.astype(np.uint8))
    objective, met = mae(operator="cutmix", pairing="target_source"), []
    found = np.asarray(seen(objective, given)[0]["image"])
    for row, cut_YXC in enumerate(np.rint((found * 0.5 + 0.5) * 255).astype(int)):
        (others,) = np.nonzero(np.isin(greys, cut_YXC) & (np.arange(SIZE) != row))
        assert set(cut_YXC.ravel()) <= {*greys[others], greys[row]}
        assert len(others) <= 1
        met += [(row, other) for other in others]
    assert len(met) >= 4
    for row, other in met:
        assert DOMAIN_B[row] != DOMAIN_B[other]
        assert WEIGHT_B[row] == WEIGHT_B[other] == 1


def test_without_domains_all_is_the_target():
    given = batch_of()
    del given["domain"]
    alone, _ = seen(mae(pairing="target_source"), given)
    close(alone["image"], view(given["image"], None))
    together, _ = seen(mae(pairing="target_target"), given)
    targets = {**given, "domain": np.zeros(SIZE, np.int32)}
    close(together["image"], view(mixture(targets, pairing="target_target"), None))


def test_a_mixed_image_is_what_masked_auto_encoding_sees_and_predicts():
    model, data = tiny.build("mae"), ConfigDict(tiny.digits())
    given, params = batch_of(), tiny.params_of(model)
    mixed = {**given, "image": mixture(given, operator="cutmix")}

    @jax.jit
    def losses(params, given, mixed):
        def loss(section, batch):
            config = ConfigDict(section)
            loss_fn = objectives.build(config, model, train=True)
            on_pixels = objectives.on_pixels(loss_fn, config, data, train=True)
            return on_pixels(params, {}, batch, keys_of())[0]

        pairs = (
            (mae(operator="cutmix"), given),
            (defaults.reconstruct(), mixed),
            (defaults.reconstruct(), given),
        )
        return [loss(*pair) for pair in pairs]

    ours, expected, plain = losses(params, given, mixed)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    assert abs(ours / plain - 1) > 1e-3


@pytest.mark.usefixtures("compile_fast")
def test_self_distillation_runs_with_replay(tmp_path):
    few = tiny.digits(subset={**defaults.ALL, "per_class": 4})
    replay = defaults.replay(tiny.digits(), 0.5)
    stages = (tiny.pretrain(num_steps=1), tiny.distill(num_steps=2, replay=replay))
    stages = [{**stage, "data": few} for stage in stages]
    recipe.run(tiny.experiment(*stages), tmp_path, force=False)
    noted = json.loads((tmp_path / "stages/distill/replay.json").read_text())
    assert len({*noted["names"]}) == 20  # half as many as the target's 40
    result = json.loads((tmp_path / "stages/distill/result.json").read_text())
    assert result["train"]["distill"] > 0
    assert not (tmp_path / "stages/pretrain/replay.json").exists()
