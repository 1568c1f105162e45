"""What the leader decides, given what supervisors and training processes say."""

import dataclasses
import json

import pytest

from exajax import MeshSpec, Recipe
from exajax.job.events import EventLog, read_events
from exajax.models.presets import lookup
from exajax.resilience.control import Control, Host, Problem, Worker
from exajax.resilience.elastic import Layouts
from exajax.resilience.leader import ABORTED, Leader, Policy
from exajax.resilience.lease import Lease
from exajax.resilience.watchdog import STUCK

KILLED = 128 + 9


class Job:
    """A leader, and hosts that say what a test wants them to."""

    def __init__(self, run_dir, hosts=3, **policy):
        self.control = Control(run_dir)
        Lease(self.control.folder, "job", 0)
        layouts = Layouts(
            Recipe.of(lookup("llama-tiny"), MeshSpec(data=hosts), precision="fp32"),
            hosts,
            policy.pop("min_hosts", hosts),
        )
        options = {"restarts": 3, "max_backoff_s": 0.0, "host_wait_s": 0.0, **policy}
        options |= {"silent_s": 10.0, "settle_s": -1.0, "refuse_s": -1.0}
        self.run_dir, self.layouts, self.options = run_dir, layouts, options
        self.hosts = {number: self.host(number) for number in range(hosts)}
        self.leader = self.another_leader()

    def another_leader(self):
        events = EventLog(self.run_dir, 0, "supervisor")
        policy = Policy(**self.options, layouts=self.layouts)
        return Leader(self.control, "job", len(self.hosts), policy, events)

    @staticmethod
    def host(number):
        return Host(number, "job", "elsewhere", 100 + number, 0, f"10.0.0.{number}", 7000, 0)

    def round(self, *, stop=False, epoch=1, **said):
        """Hosts `h0`, `h1`, ... say something new; those that are None have gone silent."""
        for number, host in list(self.hosts.items()):
            change = said.get(f"h{number}", {})
            if change is None:
                self.hosts.pop(number)
                (self.control.folder / f"host-{number}.json").unlink(missing_ok=True)
                continue
            self.hosts[number] = dataclasses.replace(host, beat=host.beat + 1, **change)
            self.control.publish(self.hosts[number])
        self.leader.decide(epoch, stop)
        return self.control.attempt()

    def started(self):
        """All members have begun the attempt that was decided."""
        now = self.control.attempt()
        return {
            f"h{n}": {"attempt": now.number, "running": True, "code": None} for n in now.members
        }

    def fault(self):
        return [event for event in read_events(self.run_dir) if event["event"] == "fault"][-1]


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


def ended(code, reason=""):
    return {"running": False, "code": code, "reason": reason}


def test_an_attempt_begins_when_all_hosts_are_there(tmp_path):
    job = Job(tmp_path, host_wait_s=60.0)
    absent = job.hosts.pop(2)
    job.round()
    assert job.control.attempt() is None
    job.hosts[2] = absent
    attempt = job.round()
    assert (attempt.number, attempt.state, attempt.members) == (1, "run", (0, 1, 2))
    assert attempt.coordinator == "10.0.0.0:7000"


def test_a_host_that_never_comes_ends_the_job_and_is_named(tmp_path):
    job = Job(tmp_path)
    job.hosts.pop(1)
    attempt = job.round()
    assert (attempt.state, attempt.code) == ("over", 1)
    assert attempt.reason == "host 1 did not come within 0 s"


def test_the_job_is_done_when_all_are(job):
    job.round()
    job.round(**job.started())
    assert job.round(h0=ended(0), h2=ended(0)).state == "run"
    attempt = job.round(h1=ended(0))
    assert (attempt.state, attempt.code) == ("over", 0)


@pytest.mark.parametrize(
    ("codes", "culprit"),
    [
        ({1: KILLED}, 1),
        ({0: ABORTED, 1: ABORTED, 2: KILLED}, 2),
        ({0: 1, 2: KILLED}, 2),  # the first one lost its connection to the second
        ({0: STUCK, 1: 1}, 1),
        ({0: ABORTED, 1: 1, 2: ABORTED}, 1),
    ],
)
def test_who_ended_first_is_told_from_those_who_followed(job, codes, culprit):
    job.round()
    job.round(**job.started())
    job.round(**{f"h{host}": ended(code) for host, code in codes.items()})
    assert job.control.attempt().state == "end"
    assert job.fault()["of"] == culprit


def test_the_stuck_host_is_the_one_that_the_others_wait_for(job):
    job.round()
    job.round(**job.started())
    for host, turns in enumerate((14, 11, 14)):
        job.control.publish_worker(host, Worker(1, 1, 5, "step", turns - 4, turns))
    job.round(h0=ended(STUCK), h1=ended(STUCK), h2=ended(STUCK))
    fault = job.fault()
    assert (fault["kind"], fault["of"], fault["phase"], fault["step"]) == ("stuck", 1, "step", 7)
    assert fault["reason"] == "host 1 is stuck at step 7"


@pytest.mark.parametrize(
    ("unproven", "code", "anew"),
    [
        (True, ABORTED, True),
        (True, STUCK, True),
        (True, 128 + 11, True),
        (False, ABORTED, False),  # compiled here, or it had run well for a while
        (True, KILLED, False),  # somebody else's doing
    ],
)
def test_a_cached_program_that_ends_in_its_first_steps_is_compiled_anew(
    tmp_path, capfd, unproven, code, anew
):
    job = Job(tmp_path, hosts=1)
    job.round()
    assert not job.round(**job.started()).anew
    job.control.publish_worker(0, Worker(1, 1, 5, "step", 2, 4, unproven))
    job.round(h0=ended(code))
    following = job.round()
    assert (following.number, following.state, following.anew) == (2, "run", anew)
    assert ("the next attempt compiles it anew" in capfd.readouterr().err) == anew
    job.round(**job.started())
    job.round(h0=ended(KILLED))
    assert not job.round().anew  # once is enough


def test_without_restarts_the_next_job_compiles_anew(tmp_path):
    job = Job(tmp_path, hosts=1, restarts=0)
    job.round()
    job.round(**job.started())
    job.control.publish_worker(0, Worker(1, 1, 5, "step", 2, 4, unproven=True))
    job.round(h0=ended(ABORTED))
    assert job.round().state == "over"
    job.hosts[0] = dataclasses.replace(job.host(0), job="next")
    events = EventLog(tmp_path, 0, "supervisor")
    job.leader = Leader(job.control, "next", 1, Policy(**job.options, layouts=job.layouts), events)
    following = job.round(epoch=2)
    assert (following.job, following.state, following.anew) == ("next", "run", True)


def test_a_silent_process_is_named_before_those_that_waited_for_it(job):
    job.round()
    job.round(**job.started())
    job.round(h0=ended(STUCK), h2=ended(KILLED, "silent for 30.0 s at step 4"))
    assert (job.fault()["kind"], job.fault()["of"]) == ("silent", 2)


def test_bad_input_is_not_tried_again(job):
    job.round()
    job.round(**job.started())
    attempt = job.round(h1=ended(2))
    assert (attempt.state, attempt.code) == ("over", 2)


def fail(job):
    job.round(**job.started())
    job.round(h0=ended(KILLED))
    return job.round(h1=ended(KILLED), h2=ended(KILLED))


def test_a_job_that_does_not_get_on_is_given_up(job):
    job.round()
    assert [fail(job).state for _ in range(4)] == ["run", "run", "run", "over"]
    assert job.control.attempt().code == 1


def test_a_newer_checkpoint_renews_the_patience(job, tmp_path):
    job.round()
    for step in range(10):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
        assert fail(job).state == "run"
    assert job.control.attempt().number == 11


def test_without_restarts_the_first_fault_ends_the_job(tmp_path):
    job = Job(tmp_path, restarts=0)
    job.round()
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    assert fail(job).code == 1


def test_no_attempt_begins_before_the_last_one_has_ended_everywhere(job):
    job.round()
    job.round(**job.started())
    job.round(h0=ended(KILLED))
    assert job.round(h1=ended(KILLED)).state == "end"  # host 2 still runs
    assert job.round(h2=ended(KILLED)).number == 2


def test_a_lost_host_is_done_without_and_taken_back(tmp_path):
    job = Job(tmp_path, hosts=2, min_hosts=1)
    job.round()
    job.round(**job.started())
    lost = job.hosts[1]
    job.round(h1=None)
    attempt = job.round(h0=ended(KILLED))
    assert (attempt.members, attempt.mesh, attempt.state) == ((0,), "1x1", "run")
    assert attempt.micro_batch * 2 == job.layouts.recipe.global_batch
    job.round(**job.started())
    job.hosts[1] = dataclasses.replace(lost, pid=999, running=False, attempt=0, code=None)
    assert job.round().state == "save"  # first, what was learned without it
    attempt = job.round(h0=ended(130))
    assert (attempt.members, attempt.mesh) == ((0, 1), "2x1")


def test_asked_to_stop_it_saves_and_is_over(job):
    job.round()
    job.round(**job.started())
    assert job.round(stop=True).state == "save"
    attempt = job.round(stop=True, h0=ended(130), h1=ended(130), h2=ended(130))
    assert (attempt.state, attempt.code) == ("over", 130)


def test_another_leader_goes_on_with_what_was_decided(job):
    job.round()
    job.round(**job.started())
    job.leader = job.another_leader()
    assert job.round(epoch=2) == dataclasses.replace(job.control.attempt(), epoch=2)
    job.round(epoch=2, h0=ended(KILLED))
    attempt = job.round(epoch=2, h1=ended(KILLED), h2=ended(KILLED))
    assert (attempt.number, attempt.fruitless, attempt.epoch) == (2, 1, 2)


def test_attempts_are_counted_over_all_jobs(job):
    job.round()
    old = json.loads((job.control.folder / "attempt.json").read_text())
    (job.control.folder / "attempt.json").write_text(
        json.dumps(old | {"job": "before", "number": 7})
    )
    assert job.round().number == 8


def test_a_leader_that_was_held_up_decides_nothing_over_a_later_one(job):
    job.round()
    job.round(**job.started())
    now = job.control.attempt()
    job.control.publish(dataclasses.replace(now, number=5, epoch=3))
    assert job.round(epoch=2, h0=ended(KILLED)).number == 5
    assert not [event for event in read_events(job.run_dir) if event["event"] == "fault"]


def test_a_stop_in_which_a_process_could_not_save_is_a_failure(job):
    job.round()
    job.round(**job.started())
    job.round(stop=True)
    attempt = job.round(stop=True, h0=ended(130), h1=ended(KILLED), h2=ended(130))
    assert (attempt.state, attempt.code) == ("over", 1)


def test_a_drained_host_is_not_waited_for(tmp_path):
    job = Job(tmp_path, hosts=2, min_hosts=1, host_wait_s=60.0)
    job.round()
    job.round(**job.started())
    (job.control.folder / "drain-1").touch()
    assert job.round(h1={"leaving": True}).state == "save"
    attempt = job.round(h0=ended(130), h1=ended(130))
    assert (attempt.members, attempt.state) == ((0,), "run")


def test_who_stays_is_told_from_who_leaves_and_who_is_gone(job):
    job.round()
    assert job.leader.others_stay()
    job.round(h1={"leaving": True})
    assert job.leader.others_stay()
    job.round(h2=None)
    assert not job.leader.others_stay()


def test_a_stop_between_two_attempts_leaves_a_run_that_goes_on(job):
    job.round()
    job.round(**job.started())
    job.round(h0=ended(KILLED))
    attempt = job.round(stop=True, h1=ended(KILLED), h2=ended(KILLED))
    assert (attempt.state, attempt.code) == ("over", 130)


def test_a_stop_before_anything_is_trained_leaves_a_run_that_goes_on(job):
    job.round()
    job.round(**job.started())
    job.round(stop=True)
    attempt = job.round(stop=True, **{f"h{n}": ended(128 + 15) for n in range(3)})
    assert (attempt.state, attempt.code) == ("over", 130)


def test_bad_input_of_one_host_ends_the_job_with_its_name(job, capsys):
    job.round()
    job.control.publish_problem(1, Problem(1, "--data: x does not exist; give a file", False))
    attempt = job.round(**{**job.started(), "h1": {**job.started()["h1"], **ended(2)}})
    assert (attempt.state, attempt.code) == ("over", 2)
    said = capsys.readouterr().err
    assert said == "exajax: error: host 1 (elsewhere): --data: x does not exist; give a file\n"


def test_what_all_hosts_refuse_is_said_once_and_of_no_host(job, capsys):
    job.round()
    for host in range(3):
        job.control.publish_problem(host, Problem(1, "--data: x; give a file", False))
    refused = {name: {**said, **ended(2)} for name, said in job.started().items()}
    assert job.round(**refused).code == 2
    assert capsys.readouterr().err == "exajax: error: --data: x; give a file\n"


def failed(job, text, recurs, step):
    """Host 0 ends with an exception at a step; returns what is decided."""
    number = job.control.attempt().number
    job.control.publish_worker(0, Worker(1, number, 1, "step", step, 9))
    job.control.publish_problem(0, Problem(number, text, recurs))
    dead = {name: {**said, **ended(1)} for name, said in job.started().items()}
    return job.round(**dead)


def test_an_error_that_comes_back_at_the_same_step_is_not_tried_a_third_time(job, capsys):
    job.round()
    oom = "JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory"
    assert failed(job, oom, True, 1).state == "end"
    assert job.round().number == 2
    attempt = failed(job, oom, True, 1)
    assert (attempt.state, attempt.code) == ("over", 1)
    assert f"gives up: {oom}, in two attempts at the same step" in capsys.readouterr().err


@pytest.mark.parametrize(("recurs", "steps"), [(False, (1, 1)), (True, (1, 2))])
def test_an_error_that_may_not_come_back_is_tried_again(job, recurs, steps):
    job.round()
    for number, step in enumerate(steps, 1):
        assert failed(job, "XlaRuntimeError: UNAVAILABLE", recurs, step).state == "end"
        assert job.round().number == number + 1


def test_where_none_is_left_because_hosts_are_drained_their_files_are_named(tmp_path):
    job = Job(tmp_path, hosts=2, host_wait_s=60.0)
    job.round()
    job.round(**job.started())
    (job.control.folder / "drain-1").touch()
    job.round(h1={"leaving": True})
    attempt = job.round(h0=ended(130), h1=ended(130))
    assert (attempt.state, attempt.code) == ("over", 1)
    file = job.control.folder / "drain-1"
    assert attempt.reason == f"host 1 is drained, and the rest is no mesh: remove {file}"
