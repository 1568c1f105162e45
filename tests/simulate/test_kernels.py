"""Kernels: roofs, measured products, and that better hardware or less work is never slower."""

import dataclasses
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import exajax
from exajax import load_cluster
from exajax.files.reading import Malformed, read_toml
from exajax.machine.chip import CHIPS, Tiles
from exajax.machine.chip_file import read_chip
from exajax.machine.sourced_values import Curve
from exajax.models.presets import lookup
from exajax.program.costs import FusedAttention, MatrixProduct
from exajax.program.operations import Operation
from exajax.recipe import text_workload
from exajax.recipe.recipe import Recipe
from exajax.simulate.kernels import matmul_efficiency, operation_time_s, price
from exajax.spmd.mesh import MeshSpec


def chip(name):
    return read_chip(name, read_toml(CHIPS / f"{name}.toml"))


NAMES = sorted(path.stem for path in CHIPS.glob("*.toml"))
CHIPS_BY_NAME = {name: chip(name) for name in NAMES}
H100, A100 = CHIPS_BY_NAME["h100"], CHIPS_BY_NAME["a100-80"]
sides = st.integers(1, 70_000)
chips = st.sampled_from(list(CHIPS_BY_NAME.values()))


def matmul(m, n, k, batch=1, dtype="bf16"):
    width = {"bf16": 2, "f32": 4, "f8e4m3fn": 1}[dtype]
    what = MatrixProduct(batch, m, n, k)
    bytes_ = batch * width * (m * k + k * n + m * n)
    return Operation("x", "", "matmul", what.flops, bytes_, dtype, (what,))


def attention(length=4096, head=128, *, causal=True, backward=False, batch=4, heads=16):
    what = FusedAttention(batch, heads, length, length, head, causal, backward)
    return Operation("x", "", "attention", what.flops, 0, "bf16", attention=what)


@pytest.mark.parametrize(
    ("name", "m", "n", "k", "measured_ms"),
    [  # some rows of ai-dynamo/aiconfigurator, gemm_*_sxm_bf16.csv
        ("a100-80", 4096, 4096, 4096, 0.5489),
        ("a100-80", 8192, 5120, 1024, 0.3871),
        ("a100-80", 32768, 1024, 16384, 4.389),
        ("h100", 4096, 4096, 4096, 0.1785),
        ("h100", 8192, 5120, 1024, 0.1238),
        ("h100", 32768, 1024, 16384, 1.591),
        ("h200", 4096, 4096, 4096, 0.1761),
        ("h200", 16384, 12288, 4096, 2.276),
        ("b200", 4096, 4096, 4096, 0.09194),
        ("b200", 16384, 12288, 4096, 1.043),
    ],
)
def test_measured_products_are_priced_within_a_tenth(name, m, n, k, measured_ms):
    predicted_s = operation_time_s(matmul(m, n, k), CHIPS_BY_NAME[name])
    assert predicted_s * 1e3 == pytest.approx(measured_ms, rel=0.1)


@given(sides, sides, sides, st.integers(1, 64), chips)
def test_no_product_is_faster_than_either_roof_or_a_launch(m, n, k, batch, chip):
    op = matmul(m, n, k, batch)
    priced = price(op, chip)
    assert priced.seconds >= op.flops / chip.peak("bf16")
    assert priced.seconds >= op.bytes / chip.memory_bandwidth
    assert priced.seconds >= chip.matmul.launch_s


@given(sides, sides, sides, st.integers(1, 64), st.floats(1, 4), st.floats(1, 4))
def test_a_faster_chip_is_never_slower(m, n, k, batch, compute, memory):
    faster = dataclasses.replace(
        H100,
        peak_flops={key: rate * compute for key, rate in H100.peak_flops.items()},
        memory_bandwidth=H100.memory_bandwidth * memory,
    )
    op = matmul(m, n, k, batch)
    assert operation_time_s(op, faster) <= operation_time_s(op, H100) * (1 + 1e-12)


@given(sides, sides, sides, st.sampled_from(["m", "n", "k", "batch"]), chips)
def test_a_product_twice_as_large_takes_longer_but_not_much_more_than_twice(m, n, k, side, chip):
    sizes = {"m": m, "n": n, "k": k, "batch": 1}
    once = operation_time_s(matmul(**sizes), chip)
    twice = operation_time_s(matmul(**sizes | {side: 2 * sizes[side]}), chip)
    assert once * (1 - 1e-9) <= twice
    # A last round of tiles may be nearly empty the one time and full the other.
    assert twice <= 2.0 * once * (1 + chip.matmul.slowdown)


def test_on_average_more_of_any_side_is_more_time():
    random = np.random.default_rng(0)
    for _ in range(50):
        m, n, k = (int(side) for side in 2 ** random.uniform(5, 16, 3))
        times = [operation_time_s(matmul(m + 256 * i, n, k), H100) for i in range(12)]
        assert np.polyfit(range(12), times, 1)[0] > 0


def test_what_bounds_a_product_is_named():
    assert price(matmul(8192, 8192, 8192), H100).bound == "compute"
    assert price(matmul(8, 16384, 16384), H100).bound == "memory"
    assert price(matmul(8, 8, 8), H100).bound == "launch"


@pytest.mark.parametrize("name", NAMES)
def test_large_products_reach_what_the_chip_reaches(name):
    op, chip = matmul(8192, 8192, 8192), CHIPS_BY_NAME[name]
    assert 0.55 < op.flops / chip.peak("bf16") / operation_time_s(op, chip) < 0.9


def test_a_narrow_product_reaches_less_of_the_peak_than_a_square_one_of_its_flops():
    square, narrow = matmul(4096, 4096, 4096), matmul(4096 * 64, 64, 4096)
    assert square.flops == narrow.flops
    assert operation_time_s(narrow, H100) > 2 * operation_time_s(square, H100)


def test_large_products_in_fp8_take_half_as_long_and_in_tf32_twice_as_long():
    in_bf16 = operation_time_s(matmul(8192, 8192, 8192), H100)
    fp8, tf32 = (matmul(8192, 8192, 8192, dtype=dtype) for dtype in ("f8e4m3fn", "f32"))
    assert operation_time_s(fp8, H100) == pytest.approx(in_bf16 / 2, rel=0.02)
    assert operation_time_s(tf32, H100) == pytest.approx(in_bf16 * 2, rel=0.02)


def test_two_products_of_one_operation_are_launched_once():
    one = matmul(4096, 4096, 4096)
    both = dataclasses.replace(
        one, flops=2 * one.flops, bytes=2 * one.bytes, products=one.products * 2
    )
    expected = 2 * operation_time_s(one, H100) - H100.matmul.launch_s
    assert operation_time_s(both, H100) == pytest.approx(expected)


def test_a_program_of_hundreds_of_products_is_priced_in_a_blink():
    ops = [matmul(4096 + i, 4096, 1024) for i in range(200)]
    started_s = time.perf_counter()
    for op in ops:
        operation_time_s(op, H100)
    assert (time.perf_counter() - started_s) / len(ops) < 2e-3


def test_a_copy_takes_a_launch_and_its_bytes_over_what_is_reached():
    expected = H100.launch_s + 10**9 / (H100.memory_bandwidth * H100.memory_efficiency)
    copy = Operation("x", "", "memory", 0.0, 10**9)
    assert price(copy, H100) == dataclasses.replace(
        price(copy, H100), seconds=expected, bound="memory"
    )
    nothing = price(Operation("x", "", "memory", 0.0, 4), H100)
    assert nothing.bound == "launch"
    assert nothing.seconds == pytest.approx(H100.launch_s, rel=1e-3)


@pytest.mark.parametrize(
    ("length", "head", "causal", "backward", "tflops"),
    [  # arXiv:2407.08608, figures 5 and 6: 16 k tokens, heads of 2,048 together
        (16384, 128, False, False, 595),
        (2048, 128, True, False, 484),
        (8192, 64, False, False, 412),
        (4096, 256, True, False, 483),
        (8192, 128, False, True, 518),
    ],
)
def test_attention_takes_what_cudnn_was_published_to(length, head, causal, backward, tflops):
    op = attention(
        length, head, causal=causal, backward=backward, batch=16384 // length, heads=2048 // head
    )
    assert op.flops / operation_time_s(op, H100) == pytest.approx(tflops * 1e12, rel=0.02)


@given(
    st.integers(1, 2**18), st.sampled_from([32, 64, 96, 128, 192, 256]), st.booleans(),
    st.booleans(), chips,
)  # fmt: skip
def test_attention_is_never_faster_than_the_peak(length, head, causal, backward, chip):
    op = attention(length, head, causal=causal, backward=backward)
    assert operation_time_s(op, chip) >= op.flops / chip.peak("bf16") / 0.75
    assert operation_time_s(op, chip) >= chip.launch_s


def test_attention_of_few_heads_leaves_cores_without_work():
    one, many = attention(1024, batch=1, heads=1), attention(1024, batch=8, heads=16)
    assert operation_time_s(one, H100) > 3 * operation_time_s(many, H100) / 128


def own_chip(**changes):
    """A chip of which someone knows a few numbers."""
    source = "measured"
    return read_chip("mine", {
        "title": "mine",
        "peak": {"bf16": ["100 TFLOP/s", source], "fp32": ["50 TFLOP/s", source]},
        "memory": {
            "capacity": ["64 GB", source], "bandwidth": ["1 TB/s", source],
            "efficiency": [0.9, source],
        },
        "matmul": {"efficiency": [[[1e9, 0.4], [1e12, 0.8]], source]},
        "kernel": {"launch": ["5 us", source]},
    } | changes)  # fmt: skip


def test_a_chip_of_few_numbers_is_priced_by_its_curve():
    mine, op = own_chip(), matmul(4096, 4096, 4096)
    assert isinstance(mine.matmul, Curve)
    assert mine.calibration == "measured"
    efficiency = matmul_efficiency(op.flops, mine.matmul)
    assert 0.4 < efficiency < 0.8
    assert operation_time_s(op, mine) == pytest.approx(op.flops / (100e12 * efficiency))
    assert operation_time_s(matmul(8, 8, 8), mine) == mine.launch_s
    copy = Operation("x", "", "memory", 0.0, 10**9)
    assert operation_time_s(copy, mine) == pytest.approx(10**9 / 0.9e12)


def test_one_fraction_for_attention_is_enough():
    mine = own_chip(attention={"efficiency": [0.5, "measured"]})
    op = attention()
    assert operation_time_s(op, mine) == pytest.approx(op.flops / 50e12)


@pytest.mark.parametrize("name", NAMES)
def test_every_chip_says_where_its_kernels_come_from(name):
    chip = CHIPS_BY_NAME[name]
    assert isinstance(chip.matmul, Tiles)
    assert (
        "aiconfigurator" in chip.sources["matmul.tiles.source"]
        or "derived from" in (chip.sources["matmul.tiles.source"])
    )
    assert all(isinstance(source, str) and source for source in chip.sources.values())
    assert chip.attention is not None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"compiled_as": ["h1000", "near"]}, "compiled_as is 'h1000'"),
        ({"compiled_as": "h100"}, "compiled_as 'h100' has no source"),
        ({"attention": {"like": ["h1000", "near"]}}, "attention.like is 'h1000'"),
        ({"attention": {"lengths": [2, 1]}}, "lengths"),
        (
            {"attention": {"lengths": [1, 2], "forward": {"128": [[0.5], "x"]}, "backward": {}}},
            "forward has the row '128' of 1 numbers",
        ),
        (
            {"matmul": {"tiles": {"source": "x", "cores": [8, "x"]}}},
            "matmul.tiles.fractions is missing",
        ),
        (
            {"matmul": {"tiles": {"source": "x", "cores": [8, "x"], "fractions": [1.5]}}},
            "fractions is 1.5",
        ),
        (
            {"matmul": {"tiles": {"source": "x", "cores": [8, "x"], "fractions": [0.5]}}},
            "each size of tile",
        ),
    ],
)
def test_a_chip_that_cannot_be_is_refused_and_the_field_named(change, says):
    with pytest.raises(Malformed) as caught:
        own_chip(**change)
    assert says in f"{caught.value}; {caught.value.fix}"


def test_a_chip_that_is_compiled_as_another_keeps_its_own_roofs():
    gcd = CHIPS_BY_NAME["mi250x-gcd"]
    assert gcd.proxy == "a100-80"
    assert gcd.xla_target == A100.xla_target
    assert gcd.peak("bf16") == 191.5e12
    assert A100.proxy is None


def machine_of(name, folder):
    text = (CHIPS.parent / "dgx-h100.toml").read_text()
    path = folder / f"{name}.toml"
    path.write_text(text.replace('chip = "h100"', f'chip = "{name}"'))
    return load_cluster(str(path))


@pytest.mark.parametrize(
    "name",
    [
        "b200",
        "mi250x-gcd",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("h200", "gh200", "pvc-tile", "tpu-v5p")
        ),
    ],
)
def test_a_step_is_compiled_for_the_chip_and_priced(name, tmp_path):
    model = dataclasses.replace(lookup("gpt-tiny"), layers=1)
    recipe = Recipe.of(model, MeshSpec(), global_batch=1)
    workload = text_workload.workload(recipe, "cuda")
    result = exajax.predict(
        workload, recipe.mesh, machine_of(name, tmp_path), **recipe.step_options
    )
    assert result.hardware_flops == pytest.approx(recipe.flops, rel=0.1)
    assert result.step_time_s >= result.hardware_flops / result.peak_flops
    assert result.capacity_bytes <= CHIPS_BY_NAME[name].memory_bytes
