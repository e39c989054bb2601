"""plan.py's tables, benchmarks/results/plan.md."""

from pathlib import Path

from flax_adapt.plan.topology import GIB

RESULT = Path(__file__).parent / "results" / "plan.md"


def cells(plan, titles):
    """The cells of a plan in the table."""
    memory = plan["memory"]
    yield titles[plan["row"]]
    yield plan["topology"]
    yield f"{plan['batch_per_chip']:g}"
    yield policy(plan)
    yield f"{memory['arguments'] / GIB:.2f}" if "arguments" in memory else ""
    yield f"{memory['temporaries'] / GIB:.2f}" if "temporaries" in memory else ""
    yield f"{memory['total'] / GIB:.2f}" + ("" if memory["fits"] else ", does not fit")
    if "flops" not in plan:
        yield from [""] * 4
    else:
        flops, kinds = plan["flops"], plan["collectives"].items()
        yield f"{flops['analytic_per_example'] / 1e9:.1f}"
        yield f"{flops['compiled'] / flops['analytic']:.2f}"
        yield ", ".join(f"{row['count']} {kind}" for kind, row in kinds)
        yield f"{plan['roofline']['mfu']:.0%}" if "roofline" in plan else ""
    yield f"{plan['compile_seconds']:.0f}" + (" with code" if plan["whole"] else "")


def policy(plan):
    """The fields of the section `memory`, in words."""
    memory = plan["policy"]
    return " ".join(f"{name}={value}" for name, value in memory.items()) or "none"


NOTES = """\
* Compiled until buffers are assigned, so that the size of the code is not in the total; the
  H100's program is compiled whole. Compiled whole, the two MAE programs of the second table
  take 1.43 and 1.45 times these temporaries, and 3.7 and 5.1 GiB with code in all: add a
  half to the temporaries of the other rows.
* Our programs ask for a reduce-scatter of gradients, which the compiler of the H100 makes.
  Those of v5e, v5p and v6e make an all-reduce and a slice of it, also of an explicit
  `psum_scatter`; on 256 chips, where parts are smaller than a tile, they make all-reduces of
  the all-gathers too. That is more traffic: "MFU at most" counts it."""
NO_MFU = "* Rows without MFU were compiled before a fault in its count was mended."
LOOP = """\
`--unrolled` compiles the same blocks, recomputed as well, one after the other; code: with
`--whole`. CPU seconds are those of tracing and compiling, which other work changes less (the
whole unrolled program of ViT-H was also paused for an hour)."""
LOOP_NOTES = """\
* A loop compiles in 0.54 to 0.69 of the time of unrolled blocks, not in a third: the compiler
  generates code for each different fusion once, so that 32 equal blocks in a row cost it
  little more than one.
* A loop saves code, 0.13 GiB instead of 0.8 and 1.2, and costs temporaries, 1.7 times."""
LOOP_HEAD = (
    "| program | topology | code | loop, s | unrolled, s | loop, CPU s | unrolled, CPU s "
    "| loop / unrolled | temporaries, loop, GiB | unrolled |",
    "|" + "---|" * 10,
)
COLUMNS = (
    "program",
    "topology",
    "examples a chip",
    "memory policy",
    "arguments GiB",
    "temporaries GiB",
    "total GiB of 15.75 (v5e), 79.1 (h100)",
    "GFLOP an example",
    "compiled / analytic",
    "collectives of a step",
    "MFU at most",
    "compile s",
)


def compile_times(found, titles):
    """The lines about compiling with a loop over blocks and without."""
    for (name, topology, unrolled, whole), plan in found.items():
        if unrolled and (loop := found.get((name, topology, False, whole))):
            seconds = [p["cpu_seconds"] for p in (loop, plan)]
            temporaries = [p["memory"]["temporaries"] / GIB for p in (loop, plan)]
            yield (
                f"| {titles[name]} | {topology} | {'yes' if whole else 'no'} "
                f"| {loop['compile_seconds']:.0f} | {plan['compile_seconds']:.0f} "
                f"| {seconds[0]:.0f} | {seconds[1]:.0f} | {seconds[0] / seconds[1]:.2f} "
                f"| {temporaries[0]:.2f} | {temporaries[1]:.2f} |"
            )


def growth(found):
    """The line about temporaries on the largest topology of v5e beside the smallest."""
    sizes = {}
    for plan in sorted(found, key=lambda p: p["chips"]):
        if "temporaries" in plan["memory"] and plan["topology"].startswith("v5e"):
            size = plan["chips"], plan["memory"]["temporaries"]
            sizes.setdefault(plan["row"], []).append(size)
    pairs = [(row[0], row[-1]) for row in sizes.values() if len(row) > 1]
    if pairs:
        (few, _), (many, _) = pairs[0]
        ratios = [last / first for (_, first), (_, last) in pairs]
        yield (
            f"* Temporaries a chip on {many} chips are {min(ratios):.2f} to "
            f"{max(ratios):.2f} times those on {few}."
        )


def one_block(found, titles):
    """The line about the program that no loop can be faster than."""
    if plan := found.get(("mae_l_one", "v5e:4x4", True, True)):
        title, seconds = titles["mae_l_one"], plan["cpu_seconds"]
        yield f"* {title}, not in a loop: {seconds:.0f} CPU seconds with code,"
        yield "  more than a third of the whole unrolled ViT-L."


def write(plans_made, titles):
    """Writes the tables of all plans."""
    order = {name: place for place, name in enumerate(titles)}
    # A program without code before the same one with it: sizes are compared among rows.
    keys = {key[:2]: key for key in sorted(plans_made, reverse=True) if not key[2]}
    found = [plans_made[key] for key in keys.values()]
    rows = sorted(found, key=lambda p: (order[p["row"]], p["chips"]))
    table = [COLUMNS, ["---"] * len(COLUMNS), *([*cells(p, titles)] for p in rows)]
    versions = sorted({", ".join(map(" ".join, p["versions"].items())) for p in found})
    known = {name for name, *_ in plans_made}
    missing = [name for name in titles if name not in known]
    lines = [
        "# Programs for TPUs that are not there",
        "",
        "```bash",
        "python benchmarks/plan.py",
        "```",
        "",
        f"`flax-adapt plan` of the methods at full size, compiled by {'; '.join(versions)}",
        "on CPU cores that other work shared, so compile seconds are high and uneven. bfloat16,",
        "mesh data=1 fsdp=-1. How to read it: docs/plan.md.",
        "",
        *("| " + " | ".join(row) + " |" for row in table),
        "",
        *growth(found),
        NOTES,
        *([NO_MFU] if any("roofline" not in plan for plan in found) else []),
        "",
    ]
    times = list(compile_times(plans_made, titles))
    if times:
        lines += ["## Blocks in a loop, and unrolled", "", LOOP, "", *LOOP_HEAD, *times]
        lines += ["", LOOP_NOTES, *one_block(plans_made, titles), ""]
    if missing:
        lines += [
            f"Not compiled yet: {', '.join(titles[name] for name in missing)}.",
            "",
        ]
    RESULT.write_text("\n".join(lines), "utf-8")
