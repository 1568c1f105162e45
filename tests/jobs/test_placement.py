"""What each launcher leaves in the environment, and what is read from it."""

import pytest

from exajax import InputError
from exajax.job import distributed


def test_no_launcher_is_a_single_process():
    placement = distributed.find({})
    assert (placement.launcher, placement.processes, placement.process) == ("single", 1, 0)


def test_pals_under_pbs_meets_on_the_first_node(tmp_path):
    nodes = tmp_path / "nodes"
    nodes.write_text("x3001c0s1b0n0\nx3001c0s7b0n0\n")

    def env(rank):
        return {
            "PALS_RANKID": str(rank),
            "PALS_LOCAL_RANKID": str(rank % 4),
            "PALS_APID": "b9c1-22",
            "PMI_SIZE": "8",
            "PMI_RANK": str(rank),
            "PBS_NODEFILE": str(nodes),
        }

    placements = [distributed.find(env(rank)) for rank in range(8)]
    assert {p.launcher for p in placements} == {"pals"}
    assert [p.process for p in placements] == list(range(8))
    assert [p.local_process for p in placements] == [0, 1, 2, 3] * 2
    assert {p.processes for p in placements} == {8}
    (coordinator,) = {p.coordinator for p in placements}
    host, port = coordinator.split(":")
    assert host == "x3001c0s1b0n0"
    assert 1024 < int(port) < 65536


def test_a_slurm_step_leaves_the_meeting_to_jax():
    env = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
    placement = distributed.find(env)
    assert (placement.launcher, placement.processes, placement.process) == ("slurm", 16, 5)
    assert placement.coordinator is None


def test_a_shell_inside_a_slurm_allocation_is_no_step():
    assert distributed.find({"SLURM_NTASKS": "16", "SLURM_PROCID": "0"}).launcher == "single"


def pod(number, **env):
    """What a pod of launch/kubernetes.yaml has in its environment."""
    return {
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "JOB_COMPLETION_INDEX": str(number),
        "HOSTNAME": f"train-hosts-0-{number}",
        "EXAJAX_PODS": "4",
        "EXAJAX_COORDINATOR": "train-hosts-0-0.train:8476",
        "EXAJAX_JOB": "3f0c2d1e",
    } | env


def test_pods_meet_on_the_first_one_and_know_their_own_names():
    placements = [distributed.find(pod(number)) for number in range(4)]
    assert {p.launcher for p in placements} == {"kubernetes"}
    assert [p.process for p in placements] == [0, 1, 2, 3]
    assert {(p.processes, p.local_process, p.job) for p in placements} == {
        (4, 0, "kubernetes-3f0c2d1e")
    }
    assert {p.coordinator for p in placements} == {"train-hosts-0-0.train:8476"}
    assert placements[2].address == "train-hosts-0-2.train"


@pytest.mark.parametrize("key", ["EXAJAX_PODS", "EXAJAX_COORDINATOR", "EXAJAX_JOB"])
def test_what_a_manifest_leaves_out_is_named(key):
    with pytest.raises(InputError, match=key):
        distributed.find({name: value for name, value in pod(1).items() if name != key})


def test_a_pod_that_is_alone_is_single():
    assert distributed.launcher(pod(3, EXAJAX_PODS="1")) == "single"


@pytest.mark.parametrize("value", ["", "two"])
def test_a_broken_variable_is_named(value):
    with pytest.raises(InputError, match="SLURM_LOCALID"):
        distributed.find({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": value})


@pytest.mark.parametrize(
    ("env", "speaks"),
    [
        ({}, True),
        ({"PMI_RANK": "0"}, True),
        ({"PMI_RANK": "1"}, False),
        ({"SLURM_PROCID": "3"}, False),
        ({"JOB_COMPLETION_INDEX": "0"}, True),
        ({"JOB_COMPLETION_INDEX": "2"}, False),
    ],
)
def test_one_process_speaks_for_all(env, speaks):
    assert distributed.speaks(env) is speaks


@pytest.mark.parametrize(
    ("local", "share", "env", "first"),
    [
        (3, 1, {}, 3),  # every process sees all devices of its node
        (1, 4, {}, 4),
        (3, 1, {"CUDA_VISIBLE_DEVICES": "3"}, 0),  # its own alone
        (3, 1, {"ROCR_VISIBLE_DEVICES": "6"}, 0),
        (3, 1, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 3),
        (2, 1, {"CUDA_VISIBLE_DEVICES": ""}, 2),
    ],
)
def test_a_process_takes_the_devices_of_its_number(local, share, env, first):
    assert distributed.first_device(local, share, env) == first
