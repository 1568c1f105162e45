"""What a disk or a crash can do to checkpoints, done to real ones: told, survived, never used.

One small module on two fake devices; the steps of a run are numbered, and its checkpoints lie in
two layers of files as Orbax writes them.
"""

import json
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import exajax
from exajax import InputError
from exajax.job.events import EventLog, read_events
from exajax.train.checkpoint import checksums
from exajax.train.checkpoint.checkpoints import Checkpoints, NotSavedError
from exajax.train.checkpoint.checksums import Damage
from exajax.train.checkpoint.folder import verify
from tests.train.recorded import Recorded


def loss(model, batch):
    return jnp.mean(model(batch["x"]) ** 2)


@pytest.fixture(scope="module")
def step():
    workload = exajax.Workload(
        build=lambda rngs: nnx.Linear(64, 64, rngs=rngs),
        loss=loss,
        batch={"x": jax.ShapeDtypeStruct((4, 64), jnp.float32)},
        optimizer=optax.adam(1e-2),
    )
    return exajax.train_step(workload, "fsdp=2,model=4", precision="fp32")


def batches(number):
    return {"x": np.random.default_rng(number).normal(size=(4, 64)).astype(np.float32)}


def train(step, run, steps, hooks=(), before_commit=lambda step: None, **options):
    events = EventLog(run, 0, "worker")
    try:
        return exajax.fit(
            step,
            batches,
            steps=steps,
            checkpoints=exajax.Checkpointing(run / "checkpoints", **options),
            hooks=[Recorded(events, before_commit=before_commit), *hooks],
        )
    finally:
        events.close()


def told(run, name):
    return [event for event in read_events(run) if event["event"] == name]


def facts(event):
    return {name: event[name] for name in ("step", "file", "how") if name in event}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory, step):
    folder = tmp_path_factory.mktemp("healthy")
    for steps in (2, 4):
        train(step, folder, steps)
    found = [(found.step, found.state) for found in verify(folder / "checkpoints")]
    assert found == [(4, "proven"), (2, "proven")]
    return folder


@pytest.fixture
def run(tmp_path, healthy):
    """A run with the checkpoints of steps 2 and 4."""
    return shutil.copytree(healthy, tmp_path / "run")


def a_data_file(checkpoint):
    """Returns the largest file of the arrays."""
    return max(checkpoint.glob("state/**/d/*"), key=lambda path: path.stat().st_size)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def grow(path):
    path.write_bytes(path.read_bytes() + b"\0")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def loop(path):
    path.unlink()
    path.symlink_to(path.name)


DAMAGES = {
    "a loop": (loop, "cannot be read: Too many levels of symbolic links"),
    "missing": (lambda path: path.unlink(), "is missing"),
    "cut": (cut, "was cut from {0} to {1} bytes"),
    "grown": (grow, "has grown from {0} to {1} bytes"),
    "flipped": (flip, "has other bytes than were written ({0} bytes)"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_the_newest_intact_state_goes_on(run, step, damage, capsys):
    harm, says = DAMAGES[damage]
    file = a_data_file(run / "checkpoints" / "4")
    before = file.stat().st_size
    harm(file)
    says = says.format(before, file.stat().st_size if file.is_file() else 0)
    name = str(file.relative_to(run / "checkpoints" / "4"))
    newest, older = verify(run / "checkpoints")
    assert (newest.state, newest.damage, older.state) == (
        "damaged",
        (Damage(name, says),),
        "proven",
    )
    again = train(step, run, 5)
    assert again.resumed_from == 2
    assert f"checkpoint 4 is damaged: {name} {says}" in capsys.readouterr().err
    (event,) = told(run, "checkpoint-damaged")
    assert facts(event) == {"step": 4, "file": name, "how": says}
    (event,) = told(run, "restored")[-1:]
    assert (event["step"], event["tier"]) == (2, "shared")
    assert (run / "checkpoints" / "damaged" / "4").is_dir()
    assert train(step, run, 6).resumed_from == 5
    assert len(told(run, "checkpoint-damaged")) == 1


@pytest.mark.parametrize("name", ["checksums.json", "manifest.json", "about.json"])
@pytest.mark.parametrize("harm", [lambda path: path.unlink(), flip, cut])
def test_so_is_what_a_checkpoint_says_of_itself(run, step, name, harm):
    harm(run / "checkpoints" / "4" / name)
    store = Checkpoints(exajax.Checkpointing(run / "checkpoints"), step)
    assert store.restore().step == 2


def test_bits_that_flipped_before_they_were_summed_are_found_by_the_digests(run, step):
    checkpoint = run / "checkpoints" / "4"
    flip(a_data_file(checkpoint))
    checksums.write(checkpoint, checksums.sums_of(checkpoint, checksums.files_in(checkpoint)))
    assert [found.state for found in verify(run / "checkpoints")] == ["proven", "proven"]
    assert train(step, run, 4).resumed_from == 2
    events = told(run, "checkpoint-damaged")
    assert events
    assert all(event["step"] == 4 for event in events)
    assert any("other bits" in event["how"] or "cannot be" in event["how"] for event in events)


def nested(checkpoint):
    (checkpoint / "state" / "_METADATA").write_text("[" * 100_000)


def without_arrays(checkpoint):
    for file in checkpoint.glob("state/**/d/*"):
        file.unlink()


@pytest.mark.parametrize("harm", [nested, without_arrays])
def test_so_is_what_the_library_cannot_read_though_its_sums_are_right(run, step, harm):
    checkpoint = run / "checkpoints" / "4"
    harm(checkpoint)
    checksums.write(checkpoint, checksums.sums_of(checkpoint, checksums.files_in(checkpoint)))
    assert train(step, run, 4).resumed_from == 2
    (event, *_) = told(run, "checkpoint-damaged")
    assert "cannot be restored" in event["how"]


def test_a_state_of_another_step_is_refused(run, step):
    (run / "checkpoints" / "4").rename(run / "checkpoints" / "7")
    assert train(step, run, 4).resumed_from == 2
    assert [event["file"] for event in told(run, "checkpoint-damaged")] == ["manifest.json"]


def test_a_run_does_not_begin_again_where_all_are_damaged(run, step):
    for number in ("2", "4"):
        flip(a_data_file(run / "checkpoints" / number))
    for _ in range(2):  # nothing was moved or removed
        with pytest.raises(InputError, match=r"no checkpoint .* 4: state.*; 2: state.*other bytes"):
            train(step, run, 6)
    assert not (run / "checkpoints" / "damaged").exists()


def test_what_an_aborted_save_left_is_removed_and_an_unproven_one_is_told(run, step):
    folder = run / "checkpoints"
    for left in ("6.1f2e.saving", "8.03ab.saving", "2.replaced"):
        (folder / left / "state").mkdir(parents=True)
    (folder / "9").mkdir()
    states = {found.step: found.state for found in verify(folder)}
    assert states == {9: "damaged", 8: "unfinished", 6: "unfinished", 4: "proven", 2: "proven"}
    assert train(step, run, 4).resumed_from == 4
    assert sorted(path.name for path in folder.iterdir()) == ["2", "4", "damaged"]
    (event,) = told(run, "checkpoint-damaged")
    assert (event["step"], event["file"]) == (9, "checksums.json")
    assert "not proven" in event["how"]


def test_a_checkpoint_says_where_in_data_and_seed_it_is(run):
    manifest = json.loads((run / "checkpoints" / "4" / "manifest.json").read_text())
    assert (manifest["step"], manifest["samples"], manifest["seed"]) == (4, 16, 0)


def test_older_ones_go_when_a_newer_one_is_proven_and_damaged_ones_but_for_the_newest(run, step):
    folder = run / "checkpoints"
    flip(a_data_file(folder / "4"))
    train(step, run, 5)
    assert sorted(path.name for path in folder.iterdir()) == ["2", "5", "damaged"]
    flip(a_data_file(folder / "5"))
    train(step, run, 7, every=1)
    assert all(found.state == "proven" for found in verify(folder))
    assert len(verify(folder)) == 2
    assert [path.name for path in (folder / "damaged").iterdir()] == ["5"]


def test_a_slow_disk_costs_checkpoints_and_no_time(tmp_path, step):
    slow = threading.Event()
    seen = []

    def hold(number):
        seen.append(number)
        if number == 1:
            slow.wait(60)

    def logger(number, values):
        if number == 4:  # recorded once step 5 has begun: three saves have come due meanwhile
            slow.set()

    class Log:
        log = staticmethod(logger)
        close = staticmethod(lambda: None)

    result = train(
        step, tmp_path, 6, every=1, before_commit=hold, hooks=[Recorded(loggers=[Log()])]
    )
    assert result.step == 6
    skipped = [event["step"] for event in told(tmp_path, "checkpoint-skipped")]
    assert skipped[:2] == [2, 3]
    saved = {event["step"]: event for event in told(tmp_path, "checkpoint-saved")}
    assert {1, 6} <= set(saved)
    assert saved[1]["stall_s"] < saved[1]["seconds"]
    assert saved[6]["bytes"] > 3 * 64 * 64 * 4
    assert seen[0] == 1
    assert train(step, tmp_path, 6).resumed_from == 6


def test_an_error_of_the_disk_fails_a_save_and_not_the_training(tmp_path, step, capsys):
    def fail(number):
        if number == 2:
            raise OSError(28, "No space left on device")

    result = train(step, tmp_path, 4, every=2, before_commit=fail)
    assert result.step == 4
    (event,) = told(tmp_path, "checkpoint-failed")
    assert event["step"] == 2
    assert "No space left on device" in event["reason"]
    assert "checkpoint 2 was not saved" in capsys.readouterr().err
    assert [found.step for found in verify(tmp_path / "checkpoints")] == [4]


def test_the_failure_of_the_last_save_is_an_error_that_names_the_newest_good_one(run, step):
    def fail(number):
        raise OSError(5, "Input/output error")

    with pytest.raises(NotSavedError, match=r"checkpoint 6, the last .*Input/output.*of step 4"):
        train(step, run, 6, before_commit=fail)
    assert [found.state for found in verify(run / "checkpoints")] == ["proven", "proven"]


def test_a_run_that_came_back_behind_a_checkpoint_replaces_it(run, step):
    folder = run / "checkpoints"
    state = Checkpoints(exajax.Checkpointing(folder), step).restore().state
    other = jax.jit(lambda state: jax.tree.map(lambda x: x * 2, state))(state)
    Checkpoints(exajax.Checkpointing(folder), step).save(
        4, other._replace(step=state.step), {}, wait=True
    )
    again = Checkpoints(exajax.Checkpointing(folder), step).restore()
    kernel = again.state.params["kernel"]
    np.testing.assert_array_equal(kernel, other.params["kernel"])
    assert sorted(path.name for path in folder.iterdir()) == ["2", "4"]
