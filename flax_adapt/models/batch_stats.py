"""Running statistics of batch norm: moving averages of mean and variance over batches.

Stored weights are one tree, whose keys are the parts of the parameters ("encoder",
"head", ...). A model with running statistics also has the key NAME, with the same parts
under it. Training splits the tree: parameters have a gradient and an optimizer,
statistics have neither and live in `TrainState.extra`.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Params

NAME = "batch_stats"  # linen's own word for the collection

Variables = Mapping[str, Any]


def split(stored: Params) -> tuple[Params, Params]:
    """Returns (parameters, statistics) of a stored tree; statistics are {} if it has none."""
    params = {part: leaves for part, leaves in stored.items() if part != NAME}
    return params, stored.get(NAME, {})


def join(params: Params, statistics: Params) -> Params:
    """Returns the stored tree of parameters and statistics: the inverse of `split`."""
    return {**params, NAME: statistics} if statistics else params


def variables(stored: Params) -> Variables:
    """Returns a stored tree as the variables that `Module.apply` takes."""
    params, statistics = split(stored)
    return join({"params": params}, statistics)


def stored_tree(variables: Variables) -> Params:
    """Returns the stored tree of a model's variables, without other collections."""
    return join(variables["params"], split(variables)[1])


def join_variables(model: nn.Module, params: Params, frozen: Params) -> Variables:
    """Returns the variables of a model in a loss, from its parameters and `frozen`.

    frozen: arrays that are not trained, among them the statistics of a model that has
    any. Raises UserError if they are missing.
    """
    if not model.keeps_statistics:
        return {"params": params}
    if NAME not in frozen:
        raise UserError(
            f"the running statistics of the model are missing: `frozen` needs {NAME!r}; "
            "split the weights by models.batch_stats.split, give them to "
            "objectives.build_carry, and that to create_state and make_train_step"
        )
    return {"params": params, NAME: frozen[NAME]}


def apply(
    model: nn.Module,
    variables: Variables,
    *arguments: Any,
    train: bool,
    method: str = "__call__",
    **named: Any,
) -> tuple[Any, Variables]:
    """Returns (output, variables) of `model.apply`.

    In training the variables hold the statistics as this forward pass has moved them.
    """
    named["method"] = method
    if not train or NAME not in variables:
        return model.apply(variables, *arguments, **named), variables
    output, moved = model.apply(variables, *arguments, **named, mutable=[NAME])
    return output, {**variables, **moved}


def hand_over(variables: Variables, train: bool) -> dict[str, Any]:
    """Returns the statistics that a loss passes to `Carry.update`, see `types.Carry`.

    They are {} outside of training and for a model without statistics.
    """
    return {NAME: variables[NAME]} if train and NAME in variables else {}
