"""Hosts that do not start from the same are refused before the first step, and named."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from exajax.train.same_start import Host, difference
from tests.jobs.processes import SMALL, left_over

FACTS = {
    "versions": {"jax": "0.10.2", "python": "3.11"},
    "recipe": {"seed": 0, "model": {"layers": 2}},
    "options": {"save-every": 50},
    "data": {"text": {"parts": [{"sha256": "ab" * 32}]}},
}


def changed(topic, **values):
    return {**FACTS, topic: {**FACTS[topic], **values}}


def test_hosts_that_start_from_the_same_are_let_pass():
    assert difference([Host(0, "a"), Host(1, "b")], [FACTS, dict(FACTS)]) is None


@pytest.mark.parametrize(
    ("other", "field", "told"),
    [
        (changed("versions", jax="0.10.1"), "versions.jax", "0.10.1 on host 1 (b) and 0.10.2"),
        (changed("versions", mpi="4"), "versions.mpi", "4 on host 1 (b) and nothing on host 0 (a)"),
        (changed("recipe", model={"layers": 3}), "recipe.model.layers", "3 on host 1 (b) and 2"),
        (changed("options", **{"save-every": 9}), "options.save-every", "9 on host 1 (b) and 50"),
        (
            changed("data", text={"parts": [{"sha256": "cd" * 32}]}),
            "data.text.parts.0.sha256",
            f"{'cd' * 8} on host 1 (b) and {'ab' * 8} on host 0 (a)",
        ),
    ],
)
def test_what_differs_is_named_with_both_values(other, field, told):
    found = difference([Host(0, "a"), Host(1, "b")], [FACTS, other])
    assert found[0] == field
    assert told in found[1]


def test_of_many_hosts_the_odd_one_is_named_first():
    hosts = [Host(n, f"node{n}") for n in range(6)]
    facts = [FACTS] * 6
    facts[4] = changed("versions", jax="9")
    _, told, _ = difference(hosts, facts)
    assert "9 on host 4 (node4) and 0.10.2 on host 0 (node0), host 1 (node1)" in told
    assert "and 2 others" in told


def refused(tmp_path, prefix, *flags):
    """Runs a job of two hosts, the second one in another world; returns its one line."""
    at = tmp_path / "at"
    at.write_text(f'#!/bin/bash\nhost=$1; shift\n{prefix}\nexec "$@"\n')
    at.chmod(0o755)
    run_dir = tmp_path / "run"
    job = ["--model", SMALL, "--mesh=2x1", "--hosts=2", "--steps=4", f"--run-dir={run_dir}"]
    result = subprocess.run(
        [sys.executable, "-m", "exajax", "train", *map(str, job), "--metrics-port=0", *flags],
        env=os.environ | {"EXAJAX_HOST_PREFIX": f"{at} {{host}}"},
        cwd=tmp_path / "h0",
        capture_output=True,
        text=True,
        timeout=240,  # nobody waits the 300 s that a host may be missing
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("exajax: error:") == 1
    assert "Traceback" not in result.stderr
    assert not run_dir.exists()
    assert not left_over(run_dir)
    return next(line for line in result.stderr.splitlines() if line.startswith("exajax: error:"))


@pytest.fixture
def folders(tmp_path):
    """A folder of its own for each host, with a text that is the same in both."""
    for host in range(2):
        (tmp_path / f"h{host}").mkdir()
        (tmp_path / f"h{host}" / "data.txt").write_text("both hosts read this. " * 3000)
    return tmp_path


def test_two_hosts_that_read_different_texts_are_refused_with_both_hashes(folders):
    (folders / "h1" / "data.txt").write_text("the other host reads that! " * 3000)
    line = refused(folders, f"cd {folders}/h$host", "--data=data.txt")
    assert "sha256: the hosts do not start from the same: it is" in line
    assert "on host 1 (" in line
    assert "on host 0 (" in line
    assert line.endswith("give every host the same files under the same path")


def test_a_file_that_one_host_lacks_is_refused_on_all(folders):
    (folders / "h1" / "data.txt").unlink()
    line = refused(folders, f"cd {folders}/h$host", "--data=data.txt")
    assert line.startswith("exajax: error: --data: on host 1 (")
    assert "data.txt does not exist" in line


@pytest.mark.slow
def test_another_model_under_the_same_path_is_refused(folders):
    """Of a launcher every process reads its own flags; a local job's get theirs in one file."""
    run_dir = folders / "run"
    command = [sys.executable, "-m", "exajax", "train", "--model=m.toml", "--seq=32"]
    command += ["--mesh=2x1", "--steps=4", f"--run-dir={run_dir}", "--data=data.txt"]
    ranks: list[str] = []
    for host, seq in enumerate((32, 64)):
        text = SMALL.read_text().replace("seq = 32", f"seq = {seq}")
        (folders / f"h{host}" / "m.toml").write_text(text)
        ranks += [":"] if ranks else []
        ranks += ["-n", "1", "-wdir", str(folders / f"h{host}"), *command]
    mpiexec = Path(sys.executable).with_name("mpiexec")
    done = subprocess.run([mpiexec, *ranks], capture_output=True, text=True, timeout=200)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("exajax: error:") == 1
    assert "recipe.model.seq: the hosts do not start from the same" in done.stderr
    assert not left_over(run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("package", ["jax", "exajax"])
def test_another_version_on_one_host_is_refused(folders, package):
    """The packages' metadata comes first on host 1's path, as of another installation."""
    metadata = folders / "other" / f"{package}-9.9.9.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 9.9.9\n")
    prefix = f"cd {folders}/h$host; [ $host = 1 ] && export PYTHONPATH={folders}/other"
    line = refused(folders, prefix, "--data=data.txt")
    assert f"versions.{package}: the hosts do not start from the same: it is 9.9.9 on" in line
