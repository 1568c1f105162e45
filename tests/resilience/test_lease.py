"""The leader's lease: one holder at a time, whatever happens to the one before."""

import json
import multiprocessing
import os
import signal
import time

import pytest

from exajax.errors import InputError
from exajax.resilience.lease import UNKNOWN, Lease


def test_the_first_to_take_the_lease_leads(tmp_path):
    first, second = Lease(tmp_path, "job", 0), Lease(tmp_path, "job", 1)
    assert first.hold()
    assert not second.hold()
    assert first.hold()
    assert second.holder().host == 0


def test_a_released_lease_is_free_and_its_number_stays_used(tmp_path):
    first, second = Lease(tmp_path, "job", 0), Lease(tmp_path, "other", 1)
    assert first.hold()
    first.release()
    assert first.holder() is second.holder() is None
    assert second.hold()
    assert second.epoch == 2
    first.release()  # again, and of no effect on the one that leads now
    assert second.hold()


def test_a_silent_holder_loses_its_lease_and_notices(tmp_path):
    first, second = Lease(tmp_path, "job", 0, 0.2), Lease(tmp_path, "job", 1, 0.2)
    assert first.hold()
    assert not second.hold()
    time.sleep(0.3)
    assert second.hold()
    assert not first.hold()
    assert second.holder().host == 1
    assert [path.name for path in tmp_path.glob("lease-*")] == ["lease-000002"]


def _hold_for_ever(folder, ready):
    lease = Lease(folder, "job", 0)
    lease.hold()
    ready.set()
    signal.pause()


def test_the_lease_of_a_process_that_was_killed_is_free_at_once(tmp_path):
    ready = multiprocessing.Event()
    process = multiprocessing.Process(target=_hold_for_ever, args=(tmp_path, ready))
    process.start()
    assert ready.wait(10)
    lease = Lease(tmp_path, "job", 1)
    assert not lease.hold()
    process.kill()
    process.join()
    assert lease.hold()
    assert lease.epoch == 2


def _race(folder, host, start, won):
    lease = Lease(folder, "job", host)
    start.wait()
    if lease.hold():
        won.put(host)
        time.sleep(1)


def test_exactly_one_of_many_contenders_gets_the_lease(tmp_path):
    start, won = multiprocessing.Event(), multiprocessing.Queue()
    racers = [
        multiprocessing.Process(target=_race, args=(tmp_path, host, start, won))
        for host in range(6)
    ]
    for racer in racers:
        racer.start()
    time.sleep(0.3)
    start.set()
    for racer in racers:
        racer.join()
    assert won.qsize() == 1


OF_ANOTHER = (
    '{"epoch": -7, "job": "", "host": 0, "machine": "", "pid": 1, "started": "", "beat": 1}'
)


@pytest.mark.parametrize("content", ["", "{", '{"epoch": 1}', "[]", OF_ANOTHER])
def test_a_lease_that_cannot_be_read_is_taken_once_it_is_old(tmp_path, content):
    (tmp_path / "lease-000004").write_text(content)
    lease = Lease(tmp_path, "job", 0, 0.1)
    assert not lease.hold()
    assert lease.holder().job == UNKNOWN
    time.sleep(0.2)
    assert lease.hold()
    assert json.loads((tmp_path / "lease-000005").read_text())["pid"] == os.getpid()


def test_a_suspended_process_starts_the_silence_of_others_anew(tmp_path):
    first, second = Lease(tmp_path, "job", 0, 0.3), Lease(tmp_path, "job", 1, 0.3)
    assert first.hold()
    assert not second.hold()
    time.sleep(0.4)
    second.reset_silence()
    assert not second.hold()


def test_after_the_last_lease_number_the_folder_to_remove_is_named(tmp_path):
    lease = Lease(tmp_path, "job", 0)
    assert lease.hold()
    lease.release()
    (tmp_path / "lease-000001").rename(tmp_path / "lease-999999")
    with pytest.raises(InputError, match="lease 999999, the last that there can be; remove"):
        Lease(tmp_path, "job", 0, 0).hold()


def test_a_lease_is_newer_than_the_last_decision_though_its_file_is_gone(tmp_path):
    lease = Lease(tmp_path, "job", 0, after=41)
    assert lease.hold()
    assert lease.epoch == 42
