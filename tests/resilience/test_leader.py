"""Decisions of the leader, for given statuses of supervisors and training processes."""

import dataclasses
import json

import pytest

from exajax import MeshSpec, Recipe
from exajax.job.events import EventLog, read_events
from exajax.models.presets import lookup
from exajax.resilience.control import Control, HostStatus, Problem, WorkerStatus
from exajax.resilience.culprit import ABORTED
from exajax.resilience.elastic import ElasticLayouts
from exajax.resilience.leader import Leader
from exajax.resilience.lease import Lease
from exajax.resilience.policy import LeaderPolicy
from exajax.resilience.watchdog import STUCK

KILLED = 128 + 9


class Job:
    """A leader, and hosts whose statuses a test chooses."""

    def __init__(self, run_dir, hosts=3, **policy):
        self.control = Control(run_dir)
        Lease(self.control.folder, "job", 0)
        layouts = ElasticLayouts(
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
        policy = LeaderPolicy(**self.options, layouts=self.layouts)
        return Leader(self.control, "job", len(self.hosts), policy, events)

    @staticmethod
    def host(number):
        return HostStatus(number, "job", "elsewhere", 100 + number, 0, f"10.0.0.{number}", 7000, 0)

    def round(self, *, stop=False, epoch=1, **changes):
        """Changes the statuses of hosts `h0`, `h1`, ... (None: silent); lets the leader decide."""
        for number, host in list(self.hosts.items()):
            change = changes.get(f"h{number}", {})
            if change is None:
                self.hosts.pop(number)
                (self.control.folder / f"host-{number}.json").unlink(missing_ok=True)
                continue
            self.hosts[number] = dataclasses.replace(host, beat=host.beat + 1, **change)
            self.control.publish(self.hosts[number])
        self.leader.decide(epoch, stop)
        return self.control.attempt()

    def started(self):
        """The changes by which all members run the current attempt."""
        attempt = self.control.attempt()
        return {
            f"h{n}": {"attempt": attempt.number, "running": True, "code": None}
            for n in attempt.members
        }

    def fault(self):
        return [event for event in read_events(self.run_dir) if event["event"] == "fault"][-1]


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


def ended(code, reason=""):
    return {"running": False, "code": code, "reason": reason}


def test_an_attempt_begins_when_all_hosts_are_ready(tmp_path):
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


def test_the_job_is_done_when_all_processes_are(job):
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
def test_the_culprit_is_told_from_its_followers(job, codes, culprit):
    job.round()
    job.round(**job.started())
    job.round(**{f"h{host}": ended(code) for host, code in codes.items()})
    assert job.control.attempt().state == "end"
    assert job.fault()["of"] == culprit


def test_the_stuck_host_is_the_one_that_the_others_wait_for(job):
    job.round()
    job.round(**job.started())
    for host, phases in enumerate((14, 11, 14)):
        job.control.publish_worker(host, WorkerStatus(1, 1, 5, "step", phases - 4, phases))
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
        (False, ABORTED, False),  # compiled by this process, or run for many steps
        (True, KILLED, False),  # killed from outside
    ],
)
def test_a_cached_program_that_ends_in_its_first_steps_is_compiled_anew(
    tmp_path, caplog, unproven, code, anew
):
    job = Job(tmp_path, hosts=1)
    job.round()
    assert not job.round(**job.started()).anew
    job.control.publish_worker(0, WorkerStatus(1, 1, 5, "step", 2, 4, unproven))
    job.round(h0=ended(code))
    following = job.round()
    assert (following.number, following.state, following.anew) == (2, "run", anew)
    assert ("the next attempt compiles it anew" in caplog.text) == anew
    job.round(**job.started())
    job.round(h0=ended(KILLED))
    assert not job.round().anew  # once is enough


def test_without_restarts_the_next_job_compiles_anew(tmp_path):
    job = Job(tmp_path, hosts=1, restarts=0)
    job.round()
    job.round(**job.started())
    job.control.publish_worker(0, WorkerStatus(1, 1, 5, "step", 2, 4, unproven=True))
    job.round(h0=ended(ABORTED))
    assert job.round().state == "over"
    job.hosts[0] = dataclasses.replace(job.host(0), job="next")
    events = EventLog(tmp_path, 0, "supervisor")
    job.leader = Leader(
        job.control, "next", 1, LeaderPolicy(**job.options, layouts=job.layouts), events
    )
    following = job.round(epoch=2)
    assert (following.job, following.state, following.anew) == ("next", "run", True)


def test_a_silent_process_is_the_culprit_before_stuck_ones(job):
    job.round()
    job.round(**job.started())
    job.round(h0=ended(STUCK), h2=ended(KILLED, "silent for 30.0 s at step 4"))
    assert (job.fault()["kind"], job.fault()["of"]) == ("silent", 2)


def test_bad_input_is_not_retried(job):
    job.round()
    job.round(**job.started())
    attempt = job.round(h1=ended(2))
    assert (attempt.state, attempt.code) == ("over", 2)


def fail(job):
    job.round(**job.started())
    job.round(h0=ended(KILLED))
    return job.round(h1=ended(KILLED), h2=ended(KILLED))


def test_a_job_without_a_newer_checkpoint_is_given_up(job):
    job.round()
    assert [fail(job).state for _ in range(4)] == ["run", "run", "run", "over"]
    assert job.control.attempt().code == 1


def test_a_newer_checkpoint_resets_the_count_of_restarts(job, tmp_path):
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


def test_the_job_goes_on_without_a_lost_host_and_takes_it_back(tmp_path):
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
    assert job.round().state == "save"  # the progress made without it comes first
    attempt = job.round(h0=ended(130))
    assert (attempt.members, attempt.mesh) == ((0, 1), "2x1")


def test_a_job_that_is_asked_to_stop_saves_and_is_over(job):
    job.round()
    job.round(**job.started())
    assert job.round(stop=True).state == "save"
    attempt = job.round(stop=True, h0=ended(130), h1=ended(130), h2=ended(130))
    assert (attempt.state, attempt.code) == ("over", 130)


def test_another_leader_continues_from_the_last_decision(job):
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


def test_a_suspended_leader_does_not_overrule_a_later_one(job):
    job.round()
    job.round(**job.started())
    attempt = job.control.attempt()
    job.control.publish(dataclasses.replace(attempt, number=5, epoch=3))
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


def test_hosts_that_leave_or_are_lost_do_not_stay(job):
    job.round()
    assert job.leader.others_stay()
    job.round(h1={"leaving": True})
    assert job.leader.others_stay()
    job.round(h2=None)
    assert not job.leader.others_stay()


def test_a_stop_between_two_attempts_leaves_a_resumable_run(job):
    job.round()
    job.round(**job.started())
    job.round(h0=ended(KILLED))
    attempt = job.round(stop=True, h1=ended(KILLED), h2=ended(KILLED))
    assert (attempt.state, attempt.code) == ("over", 130)


def test_a_stop_before_the_first_step_leaves_a_resumable_run(job):
    job.round()
    job.round(**job.started())
    job.round(stop=True)
    attempt = job.round(stop=True, **{f"h{n}": ended(128 + 15) for n in range(3)})
    assert (attempt.state, attempt.code) == ("over", 130)


def test_bad_input_of_a_single_host_names_the_host(job, caplog):
    job.round()
    job.control.publish_problem(1, Problem(1, "--data: x does not exist; give a file", False))
    attempt = job.round(**{**job.started(), "h1": {**job.started()["h1"], **ended(2)}})
    assert (attempt.state, attempt.code) == ("over", 2)
    (line,) = caplog.messages
    assert line == "error: host 1 (elsewhere): --data: x does not exist; give a file"


def test_bad_input_of_all_hosts_is_logged_once_without_their_names(job, caplog):
    job.round()
    for host in range(3):
        job.control.publish_problem(host, Problem(1, "--data: x; give a file", False))
    refused = {name: {**change, **ended(2)} for name, change in job.started().items()}
    assert job.round(**refused).code == 2
    assert caplog.messages == ["error: --data: x; give a file"]


def failed(job, text, recurs, step):
    """Lets host 0 end with an exception at a step; returns the decision."""
    number = job.control.attempt().number
    job.control.publish_worker(0, WorkerStatus(1, number, 1, "step", step, 9))
    job.control.publish_problem(0, Problem(number, text, recurs))
    dead = {name: {**change, **ended(1)} for name, change in job.started().items()}
    return job.round(**dead)


def test_a_recurring_error_at_the_same_step_is_not_retried_twice(job, caplog):
    job.round()
    oom = "JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory"
    assert failed(job, oom, True, 1).state == "end"
    assert job.round().number == 2
    attempt = failed(job, oom, True, 1)
    assert (attempt.state, attempt.code) == ("over", 1)
    assert f"gives up: {oom}, in two attempts at the same step" in caplog.text


@pytest.mark.parametrize(("recurs", "steps"), [(False, (1, 1)), (True, (1, 2))])
def test_a_transient_error_is_retried(job, recurs, steps):
    job.round()
    for number, step in enumerate(steps, 1):
        assert failed(job, "XlaRuntimeError: UNAVAILABLE", recurs, step).state == "end"
        assert job.round().number == number + 1


def test_drain_files_are_named_where_too_few_hosts_are_left(tmp_path):
    job = Job(tmp_path, hosts=2, host_wait_s=60.0)
    job.round()
    job.round(**job.started())
    (job.control.folder / "drain-1").touch()
    job.round(h1={"leaving": True})
    attempt = job.round(h0=ended(130), h1=ended(130))
    assert (attempt.state, attempt.code) == ("over", 1)
    file = job.control.folder / "drain-1"
    assert attempt.reason == f"host 1 is drained, and the rest is no mesh: remove {file}"
