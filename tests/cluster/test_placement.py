"""What each launcher leaves in the environment, and what is read from it."""

import pytest

from exajax import InputError, distributed


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
    ],
)
def test_one_process_speaks_for_all(env, speaks):
    assert distributed.speaks(env) is speaks
