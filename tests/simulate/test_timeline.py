import pytest
from hypothesis import given
from hypothesis import strategies as st

from exajax import load_cluster
from exajax.program.hlo_collectives import Collective
from exajax.program.operations import Operation, ProgramLoop, flatten
from exajax.simulate.collectives.pricing import collective_time_s
from exajax.simulate.kernels import operation_time_s
from exajax.simulate.timeline import OVERLAP_SLOWDOWN, events, lay_out

H100 = load_cluster("dgx-h100")
GATHER = Collective("all-gather", 1 << 30, tuple(range(8)), "model")
GATHER_S = collective_time_s(GATHER, H100)
SLOWED = 1 + OVERLAP_SLOWDOWN["cuda"]


def product(flops):
    return Operation("p", "jit(f)/mlp/dot", "matmul", flops, 0, "bf16")


def start(name="s", what=GATHER):
    return Operation(name, "", "collective-start", collective=what)


def done(name="s"):
    return Operation(f"{name}.done", "", "collective-done", start=name)


def work_of(seconds):
    """Work that takes so long."""
    chip = H100.chip
    rate = chip.memory_bandwidth * chip.memory_efficiency
    return Operation("p", "jit(f)/mlp/add", "memory", 0.0, round((seconds - chip.launch_s) * rate))


def test_a_collective_behind_enough_compute_is_hidden():
    spent = lay_out((start(), work_of(2 * GATHER_S), done()), H100)
    assert spent.exposed_communication["model"] == 0
    assert spent.hidden_communication["model"] == pytest.approx(GATHER_S)
    # Beside the gather, compute does less.
    assert spent.total_s == pytest.approx((3 - 1 / SLOWED) * GATHER_S, rel=1e-3)
    assert spent.slowed == pytest.approx((1 - 1 / SLOWED) * GATHER_S, rel=1e-3)


def test_what_compute_does_not_cover_is_waited_for():
    spent = lay_out((start(), work_of(GATHER_S / 4), done()), H100)
    waited_s = (1 - SLOWED / 4) * GATHER_S
    assert spent.exposed_communication["model"] == pytest.approx(waited_s, rel=1e-3)
    assert spent.total_s == pytest.approx(GATHER_S, rel=1e-3)


def test_collectives_queue_on_one_stream():
    spent = lay_out((start("a"), start("b"), done("a"), done("b")), H100)
    assert spent.total_s == pytest.approx(2 * GATHER_S)


def test_a_loop_costs_its_body_times_its_trips():
    body = (start(), product(1e12), done(), product(1e11))
    once = lay_out(body, H100).total_s
    assert lay_out((ProgramLoop("l", "", 80, body),), H100).total_s == pytest.approx(80 * once)


def test_a_collective_that_waits_for_its_result_is_exposed():
    spent = lay_out((Operation("c", "", "collective", collective=GATHER),), H100)
    assert spent.exposed_communication["model"] == spent.total_s == GATHER_S


def test_the_optimizer_is_told_apart():
    update = Operation("u", "jit(update)/optimizer/mul", "memory", 0.0, 10**9)
    spent = lay_out((update, product(1e12)), H100)
    assert spent.optimizer == operation_time_s(update, H100.chip)
    assert spent.compute == operation_time_s(product(1e12), H100.chip)


def test_a_collective_open_across_a_loop_delays_those_inside_it():
    body = (start("b"), done("b"))
    spent = lay_out((start("a"), ProgramLoop("l", "", 10, body), done("a")), H100)
    assert spent.total_s == pytest.approx(11 * GATHER_S)


def test_a_collective_open_across_a_loop_hides_behind_its_compute():
    loop = ProgramLoop("l", "", 10, (work_of(GATHER_S),))
    spent = lay_out((start("a"), loop, done("a")), H100)
    assert spent.exposed_communication["model"] == 0
    assert spent.total_s == pytest.approx((11 - 1 / SLOWED) * GATHER_S, rel=1e-3)


def test_copies_to_the_host_run_beside_both_and_are_waited_for():
    copy_s = 10**9 / H100.chip.host_bandwidth
    begin = Operation("h", "", "host-copy-start", bytes=10**9)
    end = Operation("h.done", "", "host-copy-done", start="h")
    spent = lay_out((begin, start(), work_of(copy_s / 4), done(), end), H100)
    assert spent.exposed_communication["host"] == pytest.approx(
        copy_s - spent.memory_bound - spent.exposed_communication["model"]
    )
    assert spent.total_s == pytest.approx(copy_s)
    at_once = Operation("h", "", "host-copy", bytes=10**9)
    assert lay_out((at_once,), H100).exposed_communication == {"host": pytest.approx(copy_s)}


def test_turns_that_a_stage_throws_away_are_its_bubble():
    turn = Operation("p", "jit(update)/pipeline/while/body/mlp/dot", "matmul", 1e12, 0, "bf16")
    gather = Operation("c", "", "collective", collective=GATHER)
    program = (ProgramLoop("l", "jit(update)/pipeline/while", 8, (turn, gather)), product(1e12))
    whole, divided = lay_out(program, H100), lay_out(program, H100, bubble=0.25)
    turn_s = operation_time_s(turn, H100.chip)
    assert divided.total_s == pytest.approx(whole.total_s)
    assert divided.pipeline_bubble == pytest.approx(8 * 0.25 * (turn_s + GATHER_S))
    assert divided.compute == pytest.approx(7 * turn_s)
    assert divided.exposed_communication["model"] == pytest.approx(6 * GATHER_S)


def test_a_collective_that_nothing_waits_for_is_an_error_and_not_free():
    with pytest.raises(ValueError, match="nothing waits for: s"):
        lay_out((start(),), H100)


def drawn_collective(draw):
    return Collective(
        "all-gather", draw(st.integers(0, 2**34)), (0, 1), draw(st.sampled_from(["data", "model"]))
    )


@st.composite
def programs(draw, depth=2):
    nodes, open_ = [], []
    for index in range(draw(st.integers(1, 8))):
        what = draw(st.sampled_from(["product", "copy", "start", "done", "loop"]))
        if what == "product":
            nodes.append(product(draw(st.floats(1e6, 1e14))))
        elif what == "copy":
            nodes.append(Operation("m", "", "memory", 0.0, draw(st.integers(0, 10**11))))
        elif what == "start":
            nodes.append(start(str(index), drawn_collective(draw)))
            open_.append(str(index))
        elif what == "done" and open_:
            nodes.append(done(open_.pop(0)))
        elif what == "loop" and depth:
            nodes.append(ProgramLoop("l", "", draw(st.integers(1, 9)), draw(programs(depth - 1))))
    return (*nodes, *(done(name) for name in open_))


@given(programs())
def test_the_breakdown_adds_up_and_no_stream_is_faster_than_itself(program):
    spent = lay_out(program, H100)
    compute = communication = 0.0
    for op, times in flatten(program):
        if op.collective:
            communication += times * collective_time_s(op.collective, H100)
        elif op.kind != "collective-done":
            compute += times * operation_time_s(op, H100.chip)
    waited = sum(spent.exposed_communication.values())
    assert spent.total_s == pytest.approx(compute + spent.slowed + waited)
    assert max(compute, communication) <= spent.total_s * (1 + 1e-9)
    assert 0 <= spent.slowed <= (SLOWED - 1) * compute * (1 + 1e-9)
    assert spent.total_s <= (compute * SLOWED + communication) * (1 + 1e-9)


@given(programs())
def test_every_second_of_the_compute_stream_is_an_event(program):
    happened = events(program, H100)
    clock_s = 0.0
    for event in happened:
        if event.stream != "communication":
            assert event.start_s == pytest.approx(clock_s)
            clock_s = event.start_s + event.lasts_s
    assert clock_s == pytest.approx(lay_out(program, H100).total_s)
