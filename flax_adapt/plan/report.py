"""Plans as text."""

from collections.abc import Iterator
from typing import Any

from flax_adapt.plan.topology import GIB


def describe(plan: dict[str, Any]) -> str:
    """Returns the lines of a plan."""
    return "\n".join(_lines(plan))


def _lines(plan: dict[str, Any]) -> Iterator[str]:
    mesh = " ".join(f"{axis}={size}" for axis, size in plan["mesh"].items())
    others = ", ".join(plan["stages"][1:])
    yield f"{plan['stage']} ({plan['objective']})" + (
        f" and {others}" if others else ""
    )
    yield _row("hardware", f"{plan['topology']}, {mesh}, {plan['precision']}")
    yield _row("parameters", f"{plan['parameters'] / 1e6:.1f} M")
    yield _row(
        "batch",
        f"{plan['batch']} examples, {plan['batch_per_chip']:g} a chip, "
        f"in {plan['accum_steps']} part" + "s" * (plan["accum_steps"] > 1),
    )
    policy = " ".join(f"{name}={value}" for name, value in plan["policy"].items())
    yield _row("memory policy", policy)
    yield _row("memory a chip", _memory(plan["memory"]))
    if "flops" in plan:
        yield from _speed(plan)
    yield _row("compiled in", f"{plan['compile_seconds']:.1f} s")
    for name in ("assumed", "warnings"):
        for text in plan[name]:
            yield _row({"assumed": "assumed", "warnings": "warning"}[name], text)


def _row(name: str, text: str) -> str:
    return f"  {name:18}{text}"


def _memory(memory: dict[str, Any]) -> str:
    verdict, limit = (
        "fits" if memory["fits"] else "DOES NOT FIT",
        format_size(memory["limit"]),
    )
    if not memory["total"]:
        return f"more than {limit}: {verdict}"
    names = ("arguments", "temporaries", "outputs", "code")
    parts = [f"{name} {format_size(memory[name])}" for name in names if name in memory]
    detail = f" ({', '.join(parts)})" if parts else ""
    return f"{format_size(memory['total'])} of {limit}: {verdict}{detail}"


def format_size(size: float) -> str:
    """Returns bytes as GiB, of less than a tenth as MiB."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.2f} MiB"


def _speed(plan: dict[str, Any]) -> Iterator[str]:
    flops, bound = plan["flops"], plan["roofline"]
    over = flops["compiled"] / flops["analytic"] if flops["analytic"] else 0.0
    yield _row(
        "GFLOP a step",
        f"{flops['analytic'] / 1e9:,.4g} by the mathematics, "
        f"{flops['compiled'] / 1e9:,.4g} compiled ({over:.2f} times)",
    )
    yield _row("GFLOP an example", f"{flops['analytic_per_example'] / 1e9:.4g}")
    for kind, row in plan["collectives"].items():
        text = f"{row['count']} {kind} of {format_size(row['bytes'])} a chip"
        yield _row("collectives", text)
    yield _row(
        "at least",
        f"{_seconds(bound['seconds'])} a step (products {_seconds(bound['compute'])}, "
        f"memory {_seconds(bound['memory'])}, network {_seconds(bound['network'])})",
    )
    yield _row(
        "at most",
        f"{bound['examples_per_second']:,.4g} examples a second, MFU {bound['mfu']:.1%}",
    )
    price = "" if plan["dollars"] is None else f", {plan['dollars']:,.4g} dollars"
    steps = f"{plan['num_steps']} steps of all stages and seeds of this kind"
    yield _row("at least", f"{plan['hours']:.3g} hours{price} for {steps}")


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"
