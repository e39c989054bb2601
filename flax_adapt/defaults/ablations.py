"""S1's ablations: what takes the place of the rounds of self-distillation (METHODS S1)."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax_adapt.base.errors import UserError, choose
from flax_adapt.defaults import baselines


class Rounds(NamedTuple):
    """The stages, and whether they need the further pre-trained model as a teacher."""

    stages: list[dict[str, Any]]
    taught: bool


def _distilled(**changes: Any) -> Callable[[Any, int], Rounds]:
    """The rounds, with this changed in their objective."""

    def make(data: Any, rounds: int) -> Rounds:
        stages = data.distill_stages("further", rounds)
        return Rounds(
            [{**s, "objective": {**s["objective"], **changes}} for s in stages],
            taught=True,
        )

    return make


def _no_rounds(ablation: str, rounds: int) -> None:
    if rounds != 1:
        raise UserError(f"rounds={rounds}: ablation={ablation} has none; leave it at 1")


def _weight_distance(data: Any, rounds: int) -> Rounds:
    """Further pre-training that stays near the start."""
    _no_rounds("weight_distance", rounds)
    stage = data.pretrain_stage("weight_distance")
    near = {**stage, "penalties": (baselines.weight_distance(),)}
    return Rounds([near], taught=False)


def _twice(data: Any, rounds: int) -> Rounds:
    """As many steps as teacher and student have together."""
    _no_rounds("twice", rounds)
    stage = data.pretrain_stage("twice")
    optim = {**stage["optim"], "warmup_steps": 2 * stage["optim"]["warmup_steps"]}
    longer = {**stage, "num_steps": 2 * stage["num_steps"], "optim": optim}
    return Rounds([longer], taught=False)


ABLATIONS: dict[str, Callable[[Any, int], Rounds]] = {
    "none": _distilled(),
    "no_masked": _distilled(masked_weight=0.0),
    "predictions": _distilled(match="predictions"),
    "weight_distance": _weight_distance,
    "twice": _twice,
}


def self_distill_stages(data: Any, args: Any, *, start: bool) -> list[dict[str, Any]]:
    """S1 in full, or an ablation of it; with `args.compare` also what it is compared with.

    data: `S1Data` or `TextData`. args: rounds, compare, ablation. start: whether there
    are weights whose fine-tuning is the first row.
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
