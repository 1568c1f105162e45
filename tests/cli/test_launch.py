"""Job templates: what they start is what exajax accepts, and they come back when they should."""

import argparse
import re
import subprocess

import pytest
import yaml

from exajax.cli import flags, train
from exajax.job import launchers
from exajax.machine.cluster import load_cluster
from tests.conftest import REPOSITORY

LAUNCH = REPOSITORY / "launch"
SCRIPTS = {"polaris.pbs": 4, "aurora.pbs": 12, "frontier.sbatch": 8, "perlmutter.sbatch": 4}
"""Devices of a node, by template."""

MANIFEST = yaml.safe_load((LAUNCH / "kubernetes.yaml").read_text())


def parsed(argv):
    parser = argparse.ArgumentParser()
    train.add_flags(parser)
    return parser.parse_args(argv)


class Machine:
    """A batch system of shell scripts that write down how they were called."""

    def __init__(self, folder, script, code):
        self.folder, self.script = folder, script
        self.run_dir = folder / "run"
        self.run_dir.mkdir()
        self.nodes = int(re.search(r"(?:select=|SBATCH -N )(\d+)", self.text)[1])
        (folder / "nodes").write_text("".join(f"node{n}\n" for n in range(self.nodes)) * 2)
        (folder / "bin").mkdir()
        (folder / "bin" / "activate").touch()
        for name in ("mpiexec", "srun"):
            self.command(name, f"printf '%s\\n' \"$@\" > '{folder}/started'; exit {code}")
        for name in ("qsub", "scontrol"):
            self.command(name, f"echo \"{name} $*\" >> '{folder}/submitted'")
        self.command("module", "")

    @property
    def text(self):
        return (LAUNCH / self.script).read_text()

    def command(self, name, body):
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def run(self, **env):
        here = {
            "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
            "VENV": str(self.folder),
            "RUN_DIR": str(self.run_dir),
            "PBS_O_WORKDIR": str(REPOSITORY),
            "PBS_NODEFILE": str(self.folder / "nodes"),
            "SLURM_NNODES": str(self.nodes),
            "SLURM_JOB_ID": "4711",
        }
        script = ["/bin/bash", "--noprofile", LAUNCH / self.script]
        return subprocess.run(script, env=here | env, capture_output=True, text=True)

    @property
    def started(self):
        """Returns what the launcher was given, and what it was to start."""
        words = (self.folder / "started").read_text().splitlines()
        at = words.index("exajax")
        return words[:at], words[at + 1 :]

    @property
    def submitted(self):
        path = self.folder / "submitted"
        return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_template_starts_a_process_for_every_device_of_its_mesh(tmp_path, script):
    machine = Machine(tmp_path, script, 0)
    ended = machine.run()
    assert (ended.returncode, ended.stderr) == (0, "")
    assert machine.submitted == ""  # it is done
    launcher, (command, *argv) = machine.started
    args = parsed(argv)
    assert command == "train"
    assert str(args.run_dir) == str(machine.run_dir)
    recipe = flags.recipe_of(args)
    devices = recipe.mesh.devices
    assert devices == machine.nodes * SCRIPTS[script]
    said = " ".join(launcher)
    if script.endswith(".pbs"):
        assert f"-n {devices} --ppn {SCRIPTS[script]} " in said
    else:
        assert f"-N {machine.nodes} --ntasks-per-node={SCRIPTS[script]} " in said
        assert "--kill-on-bad-exit=0" in said
    cluster = load_cluster(args.cluster)
    assert cluster.name == script.partition(".")[0]
    cluster.check(devices, recipe.precision)
    assert cluster.devices_per_node == SCRIPTS[script]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(("code", "again"), [(130, True), (1, True), (137, True), (2, False)])
def test_it_comes_back_unless_the_input_is_bad(tmp_path, script, code, again):
    machine = Machine(tmp_path, script, code)
    ended = machine.run()
    assert bool(machine.submitted) == again
    if not again:
        assert ended.returncode == code
    elif script.endswith(".pbs"):
        assert machine.submitted.endswith(f"{LAUNCH / script}\n")
        assert f"TRIES={int(code != 130)}," in machine.submitted
    else:
        assert machine.submitted == "scontrol requeue 4711\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_gives_up_after_three_failures_and_never_for_the_end_of_time(tmp_path, script):
    (tmp_path / "fails").mkdir()
    failing = Machine(tmp_path / "fails", script, 1)
    assert failing.run(TRIES="3", SLURM_RESTART_COUNT="3").returncode == 1
    assert failing.submitted == ""
    (tmp_path / "saves").mkdir()
    saving = Machine(tmp_path / "saves", script, 130)
    saving.run(TRIES="3", SLURM_RESTART_COUNT="3")
    assert saving.submitted


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_file_in_the_run_folder_ends_the_chain(tmp_path, script):
    machine = Machine(tmp_path, script, 130)
    (machine.run_dir / "STOP").touch()
    assert machine.run().returncode == 130
    assert machine.submitted == ""


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_batch_systems_own_restart_is_asked_for(script):
    text = (LAUNCH / script).read_text()
    asked = ["-r y"] if script.endswith(".pbs") else ["--requeue", "--signal=TERM@180"]
    prefix = "#PBS" if script.endswith(".pbs") else "#SBATCH"
    lines = text.splitlines()
    for flag in asked:
        assert f"{prefix} {flag}" in lines
    # Directives end where commands begin: one below would be a comment and nothing else.
    first = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith(prefix) for line in lines[first:])


def test_pods_find_each_other_by_what_the_manifest_sets():
    job = MANIFEST["spec"]["replicatedJobs"][0]
    spec = job["template"]["spec"]
    container = spec["template"]["spec"]["containers"][0]
    values = {entry["name"]: entry.get("value", "a-uid") for entry in container["env"]}
    name = f"{MANIFEST['metadata']['name']}-{job['name']}-0"
    environment = values | {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    places = [
        launchers.detect(
            environment | {"JOB_COMPLETION_INDEX": str(pod), "HOSTNAME": f"{name}-{pod}"}
        )
        for pod in range(spec["completions"])
    ]
    assert spec["completionMode"] == "Indexed"
    assert {place.processes for place in places} == {spec["completions"]} == {spec["parallelism"]}
    assert {place.coordinator.rpartition(":")[0] for place in places} == {places[0].address}
    assert len({place.address for place in places}) == len(places)
    args = parsed(container["args"])
    devices = flags.recipe_of(args).mesh.devices
    assert devices == spec["completions"] * container["resources"]["limits"]["nvidia.com/gpu"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}


def test_bad_input_ends_a_jobset_and_a_drained_node_does_not():
    spec = MANIFEST["spec"]["replicatedJobs"][0]["template"]["spec"]
    ends, ignored = spec["podFailurePolicy"]["rules"]
    assert ends["onExitCodes"] == {"containerName": "exajax", "operator": "In", "values": [2]}
    assert ends["action"] == "FailJob"
    assert ignored["action"] == "Ignore"
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # else the policy is refused
    (rule,) = MANIFEST["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
