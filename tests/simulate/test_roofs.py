import dataclasses

import pytest
from hypothesis import given

from exajax import load_cluster
from exajax.program.hlo_collectives import Collective
from exajax.program.operations import Operation, ProgramLoop
from exajax.simulate.roofs import grouped, least_traffic, operations
from exajax.simulate.timeline import events, lay_out
from tests.simulate.test_timeline import programs

H100 = load_cluster("dgx-h100")
CHIP = H100.chip
MLP = "jit(update)/transpose(jvp(layers))/mlp/dot_general"


def rows_of(*program):
    return operations(events(program, H100), H100)


@given(programs())
def test_rows_add_up_to_the_step_and_groups_to_rows(program):
    rows = rows_of(*program)
    total_s = lay_out(program, H100).total_s
    assert sum(row.seconds for row in rows) == pytest.approx(total_s)
    assert sum(row.seconds for row in grouped(rows)) == pytest.approx(total_s)
    assert sum(row.lost_s for row in grouped(rows)) == pytest.approx(
        sum(row.lost_s for row in rows)
    )


def test_a_product_stands_below_the_compute_roof():
    product = Operation("p", MLP, "matmul", 1e12, 10**8, "bf16")
    (row,) = rows_of(ProgramLoop("l", "", 7, (product,)))
    assert (row.part, row.direction, row.bound, row.precision) == (
        "mlp",
        "backward",
        "compute",
        "bf16",
    )
    assert (row.count, row.flops, row.bytes) == (7, 7e12, 7 * 10**8)
    assert row.roof_s == pytest.approx(7e12 / CHIP.peak("bf16"))
    assert row.lost_s == pytest.approx(row.seconds - row.roof_s)
    about = row.to_json()
    assert about["intensity"] == pytest.approx(1e4)
    assert about["attainable_flops_per_s"] == pytest.approx(CHIP.peak("bf16"))
    assert 0.3 < about["attained_flops_per_s"] / about["attainable_flops_per_s"] < 1


def test_a_thin_product_stands_below_the_memory_roof():
    (row,) = rows_of(Operation("p", MLP, "matmul", 1e9, 10**9, "bf16"))
    assert row.roof_s == pytest.approx(1e9 / CHIP.memory_bandwidth)
    assert row.to_json()["attainable_flops_per_s"] == pytest.approx(CHIP.memory_bandwidth)
    assert row.bound == "memory"


def test_what_moves_bytes_is_bound_by_memory_and_what_moves_none_by_its_launch():
    large, small = rows_of(
        Operation("a", "", "memory", 0.0, 10**10), Operation("b", "", "memory", 0.0, 8)
    )
    assert (large.bound, small.bound) == ("memory", "launch")
    assert large.roof_s == pytest.approx(1e10 / CHIP.memory_bandwidth)
    assert small.lost_s == pytest.approx(small.seconds, rel=1e-3)


def gather(kind="all-gather", group=range(8), size=1 << 30):
    return Collective(kind, size, tuple(group), "model")


def test_a_collective_that_is_waited_for_loses_what_line_rate_would_not_take():
    (row,) = rows_of(Operation("c", "", "collective", collective=gather()))
    assert (row.part, row.kind, row.bound) == ("communication", "model", "communication")
    assert row.seconds == row.busy_s
    assert row.roof_s == pytest.approx((1 << 30) * 7 / 8 / H100.link.bandwidth)
    assert row.lost_s > 0


def test_a_hidden_collective_loses_nothing():
    start = Operation("s", "", "collective-start", collective=gather())
    done = Operation("d", "", "collective-done", start="s")
    product = Operation("p", MLP, "matmul", 1e14, 0, "bf16")
    hidden = next(row for row in rows_of(start, product, done) if row.name == "s")
    assert hidden.seconds == hidden.lost_s == 0
    assert hidden.busy_s > 0


def test_least_traffic_is_that_of_a_ring_over_the_slowest_line():
    size, link = 1 << 30, H100.link.bandwidth
    lane = H100.network.bandwidth / H100.devices_per_node
    assert least_traffic(gather(), H100) == (size * 7 / 8, link)
    assert least_traffic(gather("all-reduce"), H100) == (2 * size * 7 / 8, link)
    # One device of each of 16 nodes has its own lane; all devices of two nodes share eight.
    assert least_traffic(gather(group=range(0, 128, 8)), H100) == (size * 15 / 16, lane)
    assert least_traffic(gather(group=range(16)), H100) == (size * 15 / 16, min(link, 8 * lane))
    assert least_traffic(gather("all-to-all", range(16)), H100) == (size * 15 / 16, lane)


def test_a_hop_between_nodes_has_the_lane_of_one_device():
    inside = Collective("collective-permute", 1 << 20, (0, 1, 8, 9), "pipe", ((0, 1), (8, 9)))
    across = Collective("collective-permute", 1 << 20, (0, 1, 8, 9), "pipe", ((0, 8), (1, 9)))
    assert least_traffic(inside, H100)[1] == H100.link.bandwidth
    assert least_traffic(across, H100)[1] == H100.network.bandwidth / 8


def test_what_a_software_profile_takes_for_every_step_has_a_row():
    slow = dataclasses.replace(H100, software=dataclasses.replace(H100.software, step_s=0.25))
    program = (Operation("p", MLP, "matmul", 1e12, 0, "bf16"),)
    rows = operations(events(program, slow), slow)
    assert sum(row.seconds for row in rows) == pytest.approx(lay_out(program, slow).total_s)
    assert rows[0].name == "host"
    assert rows[0].lost_s == 0.25
