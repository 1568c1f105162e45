"""Flipped bits and wrong arithmetic, real ones, and who is named for them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import exajax
from exajax import MeshSpec, TrainStep
from exajax.chaos.flip import flip_bit
from exajax.errors import RunFailed
from exajax.job.events import EventLog, read_events
from exajax.train.health.audit import Audit
from exajax.train.health.bad_steps import Policy
from exajax.train.health.device_copies import odd_ones
from exajax.train.health.replay import GROUP
from tests.spmd.test_step import step_on
from tests.train.checkpoint.regression import loss, whole
from tests.train.recorded import Recorded

AUDIT = Policy(audit_every=2)


class Narrow(nnx.Module):
    """Parameters that `model` divides and others that it does not."""

    def __init__(self, rngs):
        self.first = nnx.Linear(
            4, 32, rngs=rngs, kernel_metadata={"out_sharding": ("embed", "mlp")}
        )
        self.second = nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.tanh(self.first(x)))


def build(mesh, **layout):
    workload = exajax.Workload(
        build=Narrow,
        loss=loss,
        batch={
            "x": jax.ShapeDtypeStruct((16, 4), jnp.float32),
            "y": jax.ShapeDtypeStruct((16, 1), jnp.float32),
        },
        optimizer=optax.adam(1e-2),
    )
    spec = MeshSpec.parse(mesh)
    return TrainStep.of(workload, spec.build(jax.devices()[: spec.devices]), **layout)


def place(step, batch):
    return {k: jax.device_put(batch[k], leaf.sharding) for k, leaf in step.batch.items()}


def after_a_step(step, batch):
    state, _ = step.update(step.init(np.uint32(0)), place(step, batch))
    return jax.block_until_ready(state), place(step, batch)


@pytest.fixture(scope="module")
def running():
    step = build("data=4,model=2", zero=0, precision="fp32")
    state, batch = after_a_step(step, whole(0))
    return Audit(step, host=3), state, batch


@settings(max_examples=150)
@given(st.data())
def test_any_flipped_bit_in_any_copy_is_found_and_its_device_named(running, data):
    audit, state, batch = running
    array = data.draw(st.sampled_from(jax.tree.leaves(state)))
    device = data.draw(st.sampled_from(jax.devices()))
    size = array.addressable_shards[0].data.size
    where = device, data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 31))
    assert audit.look(state, batch).finding is None
    flip_bit(array, *where)
    try:
        found = audit.look(state, batch).finding
    finally:
        flip_bit(array, *where)
    assert found is not None
    assert (found.devices, found.hosts, found.certain) == ((device.id,), (3,), True)
    assert found.what.startswith("state (")


def test_two_copies_cannot_tell_which_is_right():
    step = build("2x2", zero=0, precision="fp32")
    state, batch = after_a_step(step, whole(0))
    audit = Audit(step, 0)
    device = jax.devices()[2]  # data 1, model 0; its copy is with device 0
    flip_bit(state.params["first"]["kernel"], device, 5, 3)
    found = audit.look(state, batch).finding
    assert (found.devices, found.certain) == ((0, 2), False)
    assert "cannot tell" in str(found)


def test_copies_in_equal_parts_are_all_in_doubt_and_a_lone_one_is_not():
    table = np.array([7, 7, 9, 9, 7, 7, 7, 9]).reshape(1, 4, 1, 1, 1, 2)
    odd, doubtful = odd_ones(table, ("model",))
    assert not doubtful[..., 0].any()
    assert odd[..., 0].ravel().tolist() == [False, True, False, False]
    assert not odd[..., 1].any()
    assert doubtful[..., 1].all()


def test_wrong_arithmetic_is_named_where_the_state_has_no_copies(monkeypatch):
    """The fault is in the parameters that a device has gathered: it computes with others."""
    step = build("data=4,model=2", zero=3, precision="fp32")
    state, batch = after_a_step(step, whole(0))
    audit = Audit(step, 0)
    assert audit.uncopied > 0.6  # the model is too small to divide all of it
    assert audit.look(state, batch).finding is None
    share = audit._replay.share

    def faulty(params, batch):
        shared = jax.block_until_ready(share(params, batch))
        flip_bit(shared[0]["second"]["kernel"], jax.devices()[5], 20, 22)  # in its half
        return shared

    monkeypatch.setattr(audit._replay, "share", faulty)
    found = audit.look(state, batch).finding
    assert found.what.startswith("gradient (")
    assert found.certain
    assert 5 in found.devices
    assert set(found.devices) <= {4, 5}  # those that work with it on one replica's samples


def test_replicas_exchange_nothing(running):
    audit, state, batch = running
    device = jax.devices()[6]
    flip_bit(state.params["first"]["kernel"], device, 0, 30)
    try:
        shared = audit._replay.share(state.params, batch)
        table = np.asarray(audit._replay.gradient(*shared))[..., 0]
    finally:
        flip_bit(state.params["first"]["kernel"], device, 0, 30)
    odd = np.any([odd_ones(table[..., n], GROUP)[0] for n in range(table.shape[-1])], axis=0)
    assert {device.id for device in audit._devices[odd]} == {6, 7}
    alone = Audit(build("8x1", zero=1, precision="fp32"), 0)._replay.gradient.as_text()
    assert not any(f"{kind}(" in alone for kind in ("all-reduce", "all-gather", "all-to-all"))


@pytest.mark.parametrize(
    ("mesh", "zero"),
    [("8x1", 0), ("8x1", 1), ("8x1", 2), ("8x1", 3), ("2x2", 1), ("fsdp=4", 3),
     ("data=2,fsdp=2,model=2", 0), ("1x2", 3)],
)  # fmt: skip
def test_a_run_without_faults_raises_no_alarm(tmp_path, mesh, zero):
    log = EventLog(tmp_path, 0, "worker")
    step = build(mesh, zero=zero)
    plain = exajax.fit(step, whole, steps=8)
    audited = exajax.fit(step, whole, steps=8, policy=Policy(audit_every=1), hooks=[Recorded(log)])
    assert audited.losses == plain.losses
    assert not [event for event in read_events(tmp_path) if event["event"] == "corruption"]


@pytest.mark.parametrize(
    ("mesh", "family", "options"),
    [
        (MeshSpec(data=2, fsdp=2, model=2), "llama", {"zero": 1}),
        pytest.param(
            MeshSpec(pipe=2, data=2, model=2), "llama",
            {"zero": 3, "micro_batch": 1, "schedule": "interleaved", "interleave": 2, "layers": 4},
            marks=pytest.mark.slow,
        ),
        pytest.param(MeshSpec(pipe=2, data=2, fsdp=2), "llama", {"zero": 1, "micro_batch": 1},
                     marks=pytest.mark.slow),
        pytest.param(MeshSpec(data=2, context=2, model=2), "llama", {"zero": 0},
                     marks=pytest.mark.slow),
        pytest.param(MeshSpec(data=2, expert=2), "mixtral", {"zero": 1}, marks=pytest.mark.slow),
    ],
    ids=str,
)  # fmt: skip
def test_real_models_replay_alike_on_all_replicas(mesh, family, options):
    step = step_on(mesh, family, **options)
    tokens = np.random.default_rng(0).integers(0, 256, (8, 33)).astype(np.int32)
    state, batch = after_a_step(step, {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]})
    audit = Audit(step, 0)
    report = audit.look(state, batch, (1.0, 2.0))
    assert report.finding is None
    assert report.times_s[0, :2].tolist() == [1.0, 2.0]
    assert report.times_s[0, 2] > 0


def flips(at, bit, *, often):
    """Flips a bit on device 1 behind a step, once or whenever it comes by."""
    left = [99 if often else 1]

    def do(number, state):
        if number == at and left[0]:
            left[0] -= 1
            flip_bit(state.params["second"]["kernel"], jax.devices()[1], 3, bit)

    return exajax.Every(1, do)


@pytest.mark.parametrize(("bit", "found"), [(20, 10), (30, 9)])
def test_a_run_goes_back_to_where_nothing_differed_and_ends_as_if_nothing_had(tmp_path, bit, found):
    """A low bit is found by the audit before the checkpoint, a high one since the loss is bad."""
    step = build("4x1", zero=0, precision="fp32")
    undisturbed = exajax.fit(step, whole, steps=14)
    log = EventLog(tmp_path, 0, "worker")
    done = exajax.fit(
        step, whole, steps=14, policy=Policy(audit_every=100),
        checkpoints=exajax.Checkpointing(tmp_path / "checkpoints", every=5),
        hooks=[Recorded(log), flips(8, bit, often=False)],
    )  # fmt: skip
    assert done.losses == undisturbed.losses
    for ours, theirs in zip(
        jax.tree.leaves(done.state), jax.tree.leaves(undisturbed.state), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    (event,) = [event for event in read_events(tmp_path) if event["event"] == "corruption"]
    assert (event["step"], event["devices"], event["hosts"], event["action"]) == (
        found, [1], [0], "roll-back"
    )  # fmt: skip
    assert event["what"].startswith("state (params.")


def test_a_host_that_is_corrupt_again_and_again_ends_the_run_and_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("EXAJAX_ATTEMPT", "7:1")  # as a supervisor sets it
    step = build("4x1", zero=0, precision="fp32")
    with pytest.raises(RunFailed, match=r"step 8: host 7 is corrupt, found 3 times.*of step 5"):
        exajax.fit(
            step, whole, steps=14, policy=AUDIT, hooks=[flips(8, 20, often=True)],
            checkpoints=exajax.Checkpointing(tmp_path, every=5),
        )  # fmt: skip


def test_a_replay_without_room_is_refused(monkeypatch):
    monkeypatch.setattr("exajax.train.device_memory.capacity_bytes", lambda device: 1_000)
    with pytest.raises(exajax.InputError, match="audit_every: a device needs"):
        Audit(build("4x1", zero=3), 0)


def test_memory_that_is_not_a_devices_own_is_not_flipped():
    x = jnp.arange(4.0)
    with pytest.raises(ValueError, match="holds no part"):
        flip_bit(x, jax.devices()[3], 0, 0)
    with pytest.raises(ValueError, match="no bit 32"):
        flip_bit(x, jax.devices()[0], 0, 32)
