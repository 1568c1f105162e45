"""Small commands and the example, as they are run."""

import json
import subprocess
import sys

from tests.conftest import REPOSITORY, command


def test_doctor_says_what_is_here():
    result = command("doctor", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["devices"]["platform"] == "cpu"
    assert found["ahead_of_time"] == "compiles for NVIDIA GPUs"
    assert found["mpi"].startswith("mpi4py 4")
    assert "dgx-h100" in found["clusters"]
    assert found["versions"]["jax"]


def test_the_example_trains_here_and_is_simulated_elsewhere():
    result = subprocess.run(
        [sys.executable, REPOSITORY / "examples" / "own_model.py"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    measured, simulated = result.stdout.splitlines()
    before, after = (float(word) for word in measured.split("loss ")[1].split(",")[0].split(" to "))
    assert after < before / 10
    assert simulated.startswith("simulated on 128x8 H100: ")
