"""Ablations of self-distillation (S1, Lee et al. 2023): stages that replace its rounds."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax_adapt.base.errors import UserError, choose
from flax_adapt.defaults import baselines


class Rounds(NamedTuple):
    """Stages that train the student of S1 or replace it.

    taught: whether the further pre-trained model is their teacher.
    """

    stages: list[dict[str, Any]]
    taught: bool


def _distill(**changes: Any) -> Callable[[Any, int], Rounds]:
    """Returns a function that makes the rounds, with `changes` of their objective."""

    def make(data: Any, rounds: int) -> Rounds:
        stages = data.distill_stages("further", rounds)
        return Rounds(
            [{**s, "objective": {**s["objective"], **changes}} for s in stages],
            taught=True,
        )

    return make


def _check_no_rounds(ablation: str, rounds: int) -> None:
    """Raises UserError for a number of rounds with an ablation that has no rounds."""
    if rounds != 1:
        raise UserError(f"rounds={rounds}: ablation={ablation} has none; leave it at 1")


def _weight_distance(data: Any, rounds: int) -> Rounds:
    """Returns further pre-training with a penalty on the distance to the initial weights."""
    _check_no_rounds("weight_distance", rounds)
    stage = data.pretrain_stage("weight_distance")
    near = {**stage, "penalties": (baselines.weight_distance(),)}
    return Rounds([near], taught=False)


def _double_steps(data: Any, rounds: int) -> Rounds:
    """Returns further pre-training for as many steps as teacher and student take together."""
    _check_no_rounds("twice", rounds)
    stage = data.pretrain_stage("twice")
    optim = {**stage["optim"], "warmup_steps": 2 * stage["optim"]["warmup_steps"]}
    longer = {**stage, "num_steps": 2 * stage["num_steps"], "optim": optim}
    return Rounds([longer], taught=False)


ABLATIONS: dict[str, Callable[[Any, int], Rounds]] = {
    "none": _distill(),
    "no_masked": _distill(masked_weight=0.0),
    "predictions": _distill(match="predictions"),
    # Feature distillation (Wei et al. 2022): all tokens, no masked loss.
    "features": _distill(
        match="features", state="tokens", reduce="mean", masked_weight=0.0
    ),
    "weight_distance": _weight_distance,
    "twice": _double_steps,
}


def self_distill_stages(data: Any, args: Any, *, start: bool) -> list[dict[str, Any]]:
    """Returns the stages of self-distillation, or of an ablation of it.

    With `args.compare` the initial weights and the further pre-trained model are fine-tuned,
    too. data: `S1Data` or `TextData`. args: has rounds, compare, ablation. start: whether
    there are initial weights; their fine-tuning is then the first row of the table. Raises
    UserError for an unknown ablation or a wrong number of rounds.
    """
    rounds = choose("ablation", args.ablation, ABLATIONS)(data, args.rounds)
    stages = []
    if args.compare and start:
        stages += [data.finetune_stage("finetune_start", "pretrained")]
    stages += data.warmup_stages()
    if args.compare or rounds.taught:
        stages += [data.pretrain_stage("further")]
    if args.compare:
        stages += [data.finetune_stage("finetune_further", "stage:further")]
    name = "distilled" if args.ablation == "none" else args.ablation
    last = f"stage:{rounds.stages[-1]['name']}"
    return [*stages, *rounds.stages, data.finetune_stage(f"finetune_{name}", last)]
