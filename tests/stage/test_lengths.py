"""Every constant counted in steps against a stage that is too short for it."""

import pytest
from ml_collections import ConfigDict
from support import tiny

from flax_adapt import defaults
from flax_adapt.stage import lengths


def finetune(num_steps, **optim):
    fields = dict(optim=defaults.finetune_optim(**optim), num_steps=num_steps)
    return tiny.finetune(**fields)


def contrast(num_steps, **objective):
    section = defaults.contrast(**objective)
    return tiny.pretrain(objective=section, num_steps=num_steps, batch_size=16)


def averaged(num_steps, **changes):
    stage = finetune(num_steps, warmup_steps=0)
    return {**stage, "ema": defaults.ema(**changes)}


def probe(num_steps):
    model = defaults.stage_model(fresh=("head",), head_norm=True)
    return {**finetune(num_steps, warmup_steps=0), "model": model}


def recalled(num_steps, **changes):
    return finetune(num_steps, recadam=defaults.recadam(**changes), warmup_steps=0)


# (stage, what is said of it at a length that is too short, a length that is not).
CASES = {
    "warmup_steps=500 would fill num_steps=100: cut to 10": (finetune, 100, 10_000, {}),
    "warmup_steps=60 is most of": (finetune, 100, 1_000, dict(warmup_steps=60)),
    "k=5 and t0=25 in num_steps=100": (recalled, 100, 1_000, {}),
    "t0=250 is not reached": (recalled, 100, 1_000, dict(t0=250.0, k=0.5)),
    "ema: 61% of the average": (averaged, 100, 1_000, dict(warmup=False)),
    "momentum=0.99: 61% of the key encoder": (contrast, 100, 1_000, {}),
    "queue_size=128 holds random keys in the first 8 of": (
        *(contrast, 10, 100),
        dict(form="moco_v2", queue_size=128, momentum=0.5),
    ),
    "35% of its running statistics": (probe, 10, 100, {}),
}


@pytest.mark.parametrize("text", CASES)
def test_what_does_not_fit_a_short_stage_is_said_in_one_line(text):
    make, short, long, changes = CASES[text]
    (note,) = lengths.list_notes(ConfigDict(make(short, **changes)))
    assert text in note
    assert "\n" not in note
    assert lengths.list_notes(ConfigDict(make(long, **changes))) == []


def test_an_average_with_a_warm_up_fits_a_stage_of_any_length():
    assert lengths.list_notes(ConfigDict(averaged(100))) == []


def test_every_rule_has_a_case():
    assert len(lengths.RULES) <= len(CASES)
