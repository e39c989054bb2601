"""Counts the matrix products of a stage's gradient from its mathematics, before any compiler.

Recomputation (remat), padding and replication are not in it: what a compiled program has
more is overhead. Model FLOP/s utilisation (MFU) is relative to this count.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax

from flax_adapt.base import keys, memory
from flax_adapt.stage.shapes import Described, shapes_of


def count_step(described: Described) -> float:
    """Returns 2 times the multiply-adds of the loss and its gradient for a global batch."""
    loss_fn, state = described.program.loss_fn, described.state
    state, batch = shapes_of((state, described.batch))

    def gradient(params: Any, frozen: Any, batch: Any) -> Any:
        key_B = keys.example_keys(jax.random.key(0), batch["position"])
        return jax.grad(lambda p: loss_fn(p, frozen, batch, key_B)[0])(params)

    with memory.ignore():
        traced = jax.make_jaxpr(gradient)(state.params, state.loss_inputs, batch)
    return count_products(traced.jaxpr)


def count_products(jaxpr: Any) -> float:
    """Returns 2 times the multiply-adds of a jaxpr; of a conditional the larger branch.

    A product of [2, 3] and [3, 4]: 48. A loop of unknown length counts once.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in _PRODUCTS:
            total += _PRODUCTS[name](equation)
        elif name == "cond":
            total += max(
                count_products(branch.jaxpr) for branch in equation.params["branches"]
            )
        else:
            times = equation.params["length"] if name == "scan" else 1
            total += times * sum(count_products(inner) for inner in _inner(equation))
    return total


def _inner(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        for one in value if isinstance(value, tuple | list) else [value]:
            jaxpr = getattr(one, "jaxpr", one)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, result = equation.invars[0].aval, equation.outvars[0].aval
    return 2.0 * result.size * math.prod(left.shape[axis] for axis in contracted)


def _convolution(equation: Any) -> float:
    """Counts the places of padding as well, but not the zeros between dilated inputs."""
    kernel, result = equation.invars[1].aval, equation.outvars[0].aval
    numbers = equation.params["dimension_numbers"]
    features = kernel.shape[numbers.rhs_spec[0]]
    spread = math.prod(equation.params["lhs_dilation"])
    return 2.0 * result.size * kernel.size / features / spread


_PRODUCTS = {"dot_general": _dot, "conv_general_dilated": _convolution}
