"""A stage and an evaluation refuse classes that cannot be learnt, by every way in."""

import pytest
from support import tiny_files

RUN = (
    "run --workdir={w} --config=vit_finetune:dataset=folder:{d},init={m} "
    "--config.stages.0.num_steps=1 --config.stages.0.batch_size=8 "
    "--config.stages.0.optim.warmup_steps=0 --config.stages.0.seeds=0,"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_files.mae_folder(tmp_path_factory.mktemp("model") / "mae")


@pytest.mark.parametrize(
    ("train", "test", "told"),
    [
        (("Cat", "Dog"), ("cat", "dog"), "'cat' (3 examples, is it 'Cat'?)"),
        (("cat", "dog"), ("images",), "'images' (3 examples)"),
        (("cat",), ("cat",), "all 4 labelled examples are of the class 'cat', and a"),
    ],
)
def test_what_cannot_be_learnt_is_one_line(main, tmp_path, model, train, test, told):
    tiny_files.image_folder(tmp_path / "d", train=4, test=0, classes=train)
    tiny_files.image_folder(tmp_path / "d", train=0, test=3, classes=test)
    names = dict(w=tmp_path / "run", d=tmp_path / "d", m=model)
    code, out, error = main(*RUN.format(**names).split())
    last = error.strip().splitlines()[-1]
    assert (code, out, "Traceback" in error) == (2, "", False)
    assert last.startswith("flax-adapt: stage finetune")
    assert told in last
    assert not list(tmp_path.rglob("checkpoints/*"))
