"""Ranks and coordinators, read from the environment of each launcher."""

import pytest

from exajax import InputError
from exajax.job import distributed, launchers


def test_no_launcher_is_a_single_process():
    launch = launchers.detect({})
    assert (launch.launcher, launch.processes, launch.process) == ("single", 1, 0)


def test_pals_under_pbs_takes_the_first_node_as_coordinator(tmp_path):
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

    launches = [launchers.detect(env(rank)) for rank in range(8)]
    assert {p.launcher for p in launches} == {"pals"}
    assert [p.process for p in launches] == list(range(8))
    assert [p.local_process for p in launches] == [0, 1, 2, 3] * 2
    assert {p.processes for p in launches} == {8}
    (coordinator,) = {p.coordinator for p in launches}
    host, port = coordinator.split(":")
    assert host == "x3001c0s1b0n0"
    assert 1024 < int(port) < 65536


def test_a_slurm_step_leaves_the_coordinator_to_jax():
    env = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
    launch = launchers.detect(env)
    assert (launch.launcher, launch.processes, launch.process) == ("slurm", 16, 5)
    assert launch.coordinator is None


def test_a_shell_inside_a_slurm_allocation_is_no_step():
    assert launchers.detect({"SLURM_NTASKS": "16", "SLURM_PROCID": "0"}).launcher == "single"


def pod(number, **env):
    """The environment of a pod of launch/kubernetes.yaml."""
    return {
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "JOB_COMPLETION_INDEX": str(number),
        "HOSTNAME": f"train-hosts-0-{number}",
        "EXAJAX_PODS": "4",
        "EXAJAX_COORDINATOR": "train-hosts-0-0.train:8476",
        "EXAJAX_JOB": "3f0c2d1e",
    } | env


def test_pods_take_the_first_one_as_coordinator_and_know_their_addresses():
    launches = [launchers.detect(pod(number)) for number in range(4)]
    assert {p.launcher for p in launches} == {"kubernetes"}
    assert [p.process for p in launches] == [0, 1, 2, 3]
    assert {(p.processes, p.local_process, p.job) for p in launches} == {
        (4, 0, "kubernetes-3f0c2d1e")
    }
    assert {p.coordinator for p in launches} == {"train-hosts-0-0.train:8476"}
    assert launches[2].address == "train-hosts-0-2.train"


@pytest.mark.parametrize("key", ["EXAJAX_PODS", "EXAJAX_COORDINATOR", "EXAJAX_JOB"])
def test_a_variable_missing_from_the_manifest_is_named(key):
    with pytest.raises(InputError, match=key):
        launchers.detect({name: value for name, value in pod(1).items() if name != key})


def test_a_single_pod_is_a_single_process():
    assert launchers.launcher(pod(3, EXAJAX_PODS="1")) == "single"


@pytest.mark.parametrize("value", ["", "two"])
def test_a_broken_variable_is_named(value):
    with pytest.raises(InputError, match="SLURM_LOCALID"):
        launchers.detect({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": value})


@pytest.mark.parametrize(
    ("env", "first"),
    [
        ({}, True),
        ({"PMI_RANK": "0"}, True),
        ({"PMI_RANK": "1"}, False),
        ({"SLURM_PROCID": "3"}, False),
        ({"JOB_COMPLETION_INDEX": "0"}, True),
        ({"JOB_COMPLETION_INDEX": "2"}, False),
        ({"SLURM_PROCID": "x"}, True),
        ({"OMPI_COMM_WORLD_RANK": "-1"}, True),
        ({"PMI_RANK": "3", "PMI_SIZE": "2"}, True),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, False),
        ({"JOB_COMPLETION_INDEX": "2", "EXAJAX_PODS": "2"}, True),
    ],
)
def test_rank_0_is_the_first_process(env, first):
    assert launchers.is_first_process(env) is first


def test_a_rank_that_its_job_does_not_have_is_refused():
    env = {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}
    with pytest.raises(InputError, match="this is process 2 of 2"):
        launchers.detect(env)


@pytest.mark.parametrize(
    ("local", "share", "env", "first"),
    [
        (3, 1, {}, 3),  # every process sees all devices of its node
        (1, 4, {}, 4),
        (3, 1, {"CUDA_VISIBLE_DEVICES": "3"}, 0),  # only its own
        (3, 1, {"ROCR_VISIBLE_DEVICES": "6"}, 0),
        (3, 1, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 3),
        (2, 1, {"CUDA_VISIBLE_DEVICES": ""}, 2),
    ],
)
def test_a_process_takes_the_devices_of_its_local_rank(local, share, env, first):
    assert distributed.first_device(local, share, env) == first
