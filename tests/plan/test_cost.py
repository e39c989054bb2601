"""What a compiled program costs: a small program whose every number is counted by hand."""

import math
from pathlib import Path

import pytest

from flax_adapt.plan import cost, hlo, roofline, topology

TEXT = (Path(__file__).parent / "program.hlo").read_text("utf-8")
# Left [8, 16] times [16, 32], in a loop of three.
DOTS = 3 * 2 * 8 * 16 * 32
# Along an axis of 5 a window of 3 with one place of padding meets 3 + 3 + 3 + 2 + 2 elements.
CONVOLUTION = 2 * 2 * 13 * 13 * 3 * 4
ROWS, KERNEL, PRODUCT = 8 * 16 * 2, 16 * 32 * 2, 8 * 32 * 4
IMAGES, FILTERS, BLURRED = 2 * 25 * 3 * 4, 9 * 3 * 4 * 4, 2 * 25 * 4 * 4


@pytest.fixture(scope="module")
def found():
    return cost.count_costs(hlo.parse(TEXT), devices=4)


def bytes_of(found):
    return {c.instruction.name: c.times * c.bytes for c in found if c.bytes}


def test_products_in_loops_count_as_often_as_the_loop_runs(found):
    assert cost.sum_flops(found) == DOTS + CONVOLUTION


def test_a_collective_counts_once_and_in_a_loop_as_often_as_it_runs(found):
    assert cost.sum_by_kind(found) == {
        "all-gather": {"count": 1, "bytes": 3 * 16 * 32 * 2},
        "all-reduce": {"count": 3, "bytes": 3 * PRODUCT},
        "collective-permute": {"count": 1, "bytes": 3 * PRODUCT},
    }


def test_a_chip_sends_what_a_ring_of_its_group_needs(found):
    sent = {c.collective.kind: c.collective.traffic for c in found if c.collective}
    assert sent == {
        "all-gather": 3 / 4 * 3 * 16 * 32 * 2,
        "all-reduce": 2 * 1 / 2 * PRODUCT,  # of groups of two
        "collective-permute": 3 * PRODUCT,
    }


def test_bytes_are_those_of_slices_and_of_the_main_memory_alone(found):
    assert bytes_of(found) == {
        "near": FILTERS,  # read; written to the fast memory
        "empty": 4 + 3 * PRODUCT,
        "made": 3 * (ROWS + KERNEL + PRODUCT),  # one of three kernels each time
        "kept": 3 * (PRODUCT + PRODUCT),  # one of three results is replaced in place
        "next": 3 * 3 * 4,
        "blurred": IMAGES + BLURRED,
    }


def test_the_count_of_a_loop_is_its_annotation_where_it_has_one():
    text = TEXT.replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'
    )
    found = cost.count_costs(hlo.parse(text), devices=4)
    assert cost.sum_flops(found) == 7 * DOTS / 3 + CONVOLUTION


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1,2},{3,4,5}}", 3),
        ("replica_groups=[4,2]<=[8]", 2),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", 4),
        ("replica_groups=mesh['a'=4,'b'=2] {'b'}", 2),
        ("replica_groups=mesh['a'=4,'b'=2] {'a','b'}", 8),
        ("replica_groups=mesh['a'=4,'b'=2] {'a':(1)2,'b'}", 4),
        ("replica_groups={}", 8),
        ("channel_id=1", 8),
    ],
)
def test_the_size_of_a_group_is_read_in_every_form(groups, size):
    assert cost.group_size(f", channel_id=3, {groups}, dimensions={{0}}", 8) == size


@pytest.mark.parametrize(
    ("left", "right", "call", "expected"),
    [
        (
            "8,16",
            "16,32",
            '"__cublas$gemm", backend_config={"gemm_backend_config":'
            '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],'
            '"rhs_contracting_dimensions":["0"]}}}',
            2 * 8 * 16 * 32,
        ),
        # Images, 5 x 5 of 3 channels, and 3 x 3 filters to 4 channels; then the gradients
        # of the images and of the filters from that of the result: as many multiply-adds.
        (
            "2,5,5,3",
            "3,3,3,4",
            '"__cudnn$convForward", window={size=3x3}, dim_labels=b01f_01io->b01f',
            2 * 2 * 3 * 3 * 9 * 3 * 4,
        ),
        (
            "2,3,3,4",
            "3,3,3,4",
            '"__cudnn$convBackwardInput", window={size=3x3}, dim_labels=b01f_01io->b01f',
            2 * 2 * 3 * 3 * 9 * 3 * 4,
        ),
        # Attention of 7 queries to 9 keys, 3 heads of 8.
        ("2,7,3,8", "2,9,3,8", '"__cudnn$fmhaSoftmax"', 2 * 2 * (2 * 3 * 7 * 9 * 8)),
        (
            "2,7,3,8",
            "2,9,3,8",
            '"__cudnn$fmhaSoftmaxBackward"',
            5 * 2 * (2 * 3 * 7 * 9 * 8),
        ),
    ],
)
def test_what_gpu_libraries_compute_counts(left, right, call, expected):
    result = {"8,16": "8,32", "2,5,5,3": "2,3,3,4"}.get(left, "2,5,5,3")
    text = (
        f"ENTRY %main (a: bf16[{left}], b: bf16[{right}]) -> bf16[{result}] {{\n"
        f"  %a = bf16[{left}] parameter(0)\n"
        f"  %b = bf16[{right}] parameter(1)\n"
        f"  ROOT %made = (bf16[{result}], s8[64]{{0}}) custom-call(%a, %b), "
        f"custom_call_target={call}\n}}\n"
    )
    found = cost.count_costs(hlo.parse(text), devices=1)
    assert cost.sum_flops(found) == expected
    # Two bytes a number of both operands and the result, none of the library's workspace.
    sizes = [math.prod(map(int, s.split(","))) for s in (left, right, result)]
    assert found[0].bytes == 2 * sum(sizes)


SIZES = "2,3,256,64"
METADATA = (
    'frontend_attributes={kernel_metadata={\n"m":"{}"\n}}, metadata={op_name="x"}'
)
KERNELS = f"""ENTRY %main (q: bf16[{SIZES}], k: bf16[{SIZES}], m: s8[1,1,1]) -> bf16[{SIZES}] {{
  %q = bf16[{SIZES}] parameter(0)
  %k = bf16[{SIZES}] parameter(1)
  %m = s8[1,1,1] parameter(2)
  %splash_mha_fwd.1 = bf16[{SIZES}] custom-call(%m, %q, %k, %k), TARGET, {METADATA}
  %begun = ((bf16[{SIZES}]), bf16[1,3,256,64]{{3,2,1,0:S(1)}}, s32[]) slice-start(%q)
  %other.1 = bf16[{SIZES}] custom-call(%q), TARGET
  ROOT %splash_mha_dkv.1 = bf16[{SIZES}] custom-call(%m, %q, %k, %k), TARGET, {METADATA}
}}
""".replace("TARGET", 'custom_call_target="tpu_custom_call"')


def test_products_of_attention_kernels_count_and_lines_of_metadata_end_nothing():
    found = cost.count_costs(hlo.parse(KERNELS), devices=1)
    pairs = 2 * 3 * 256 * 256 * 64
    flops = {c.instruction.name: c.flops for c in found if c.flops}
    assert flops == {
        "splash_mha_fwd.1": 2 * 2 * pairs,
        "splash_mha_dkv.1": 5 * 2 * pairs,
    }
    assert bytes_of(found)["begun"] == 2 * 3 * 256 * 64  # of the slice, read once


def test_a_roofline_is_the_slower_of_products_and_memory_and_of_the_network(found):
    # A product takes a second of memory or of compute for each of its bytes or FLOPs.
    chip = topology.Chip(
        "tpu",
        flops=1.0,
        **dict(float32_passes=3, highest_passes=6),
        **dict(hbm=1.0, link=1e9, gib=1, lanes=8),
    )
    local = bytes_of(found) | {
        "made": DOTS,
        "blurred": CONVOLUTION,
    }  # more FLOPs than bytes
    bound = roofline.bound_time(found, chip, "bfloat16")
    assert bound.compute == DOTS + CONVOLUTION
    assert bound.memory == sum(bytes_of(found).values())
    assert bound.seconds == sum(local.values())
    assert bound.mfu(bound.seconds / 2, chips=1, peak=1.0) == 0.5
    slow = roofline.bound_time(found, chip._replace(link=1e-9), "bfloat16")
    assert slow.seconds == slow.network > bound.seconds
    for precision, passes in (("float32", 3), ("highest", 6)):
        in_passes = roofline.bound_time(found, chip, precision)
        assert in_passes.compute == passes * bound.compute
