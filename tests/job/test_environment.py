"""Environment variables of a command: malformed ones are named, and the job is not retried."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import exajax
from exajax import InputError
from exajax.errors import recurs
from exajax.job import environment
from tests.jobs.processes import SMALL


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EXAJAX_HOSTS", "0"),
        ("EXAJAX_HOSTS", "٣"),  # a digit of another script
        ("EXAJAX_HOST", "1_0"),
        ("EXAJAX_COORDINATOR", "nowhere"),
        ("EXAJAX_ROLE", "boss"),
        ("EXAJAX_ATTEMPT", "1"),
        ("EXAJAX_WALL_TIME_ENDS", "soon"),
        ("EXAJAX_LIFELINE", "yes"),
        ("EXAJAX_HOST_PREFIX", 'env "A=1'),
        ("EXAJAX_FAULTS", "/nowhere"),
        ("EXAJAX_JOB", ""),
    ],
)
def test_a_malformed_variable_is_named_with_the_expected_form(name, value):
    with pytest.raises(InputError, match=f"{name}: is .*; give .*, or unset it"):
        environment.check({name: value})


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"EXAJAX_HOSTS": "2"}, "EXAJAX_HOST: is not set"),
        ({"EXAJAX_HOST": "1"}, "EXAJAX_HOSTS: is not set"),
        ({"EXAJAX_HOSTS": "2", "EXAJAX_HOST": "2"}, "is 2 of 2 hosts; give 0 to 1"),
        ({"EXAJAX_ROLE": "worker"}, "no supervisor has started this"),
        ({"EXAJAX_HOST_PREFXI": "a"}, "write EXAJAX_HOST_PREFIX"),
    ],
)
def test_variables_that_contradict_each_other_are_refused(env, message):
    with pytest.raises(InputError, match=message):
        environment.check(env)


def test_variables_of_exajax_and_kubernetes_pass():
    environment.check(
        {
            "EXAJAX_HOSTS": "2",
            "EXAJAX_HOST": "1",
            "EXAJAX_ROLE": "worker",
            "EXAJAX_ATTEMPT": "1:3",
            "EXAJAX_SERVICE_PORT": "tcp://10.0.0.1:80",  # of a service called exajax
        }
    )


def test_every_variable_is_in_the_list_once():
    names = [variable.name for variable in environment.VARIABLES]
    assert len(set(names)) == len(names)
    declared = [v for v in vars(environment).values() if isinstance(v, environment.Variable)]
    assert {variable.name for variable in declared} == set(names)


def test_no_other_module_spells_out_a_variable_of_exajax():
    package = Path(exajax.__file__).parent
    modules = {path.relative_to(package): path.read_text() for path in package.rglob("*.py")}
    spelt = {str(path): set(re.findall(r'"(EXAJAX_\w+)"', text)) for path, text in modules.items()}
    listed = spelt.pop("job/environment.py") - {environment.PREFIX}
    # Interrupts are handled before `environment` is imported.
    assert spelt.pop("job/interrupts.py") < listed
    assert not {path: names for path, names in spelt.items() if names}


def test_a_relative_cache_home_is_ignored(monkeypatch):
    assert str(environment.cache_folder({"XDG_CACHE_HOME": "/x"})) == "/x/exajax"
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(environment.cache_folder({"XDG_CACHE_HOME": "x"})) == "/home/somebody/.cache/exajax"


def test_recurring_errors_are_told_from_transient_ones():
    assert recurs(TypeError("no such argument"))
    assert recurs(RuntimeError("RESOURCE_EXHAUSTED: Out of memory"))
    assert not recurs(RuntimeError("UNAVAILABLE: connection reset"))
    assert not recurs(ValueError("INTERNAL: the device is gone"))
    assert not recurs(OSError("stale file handle"))


def run(tmp_path, *argv, **env):
    return subprocess.run(
        [sys.executable, "-m", "exajax", *map(str, argv)],
        env={k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")} | env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )


def errors(result):
    return [line for line in result.stderr.splitlines() if line.startswith("exajax: ")]


@pytest.mark.jax_surface
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("JAX_PLATFORMS", "cuda", "JAX finds no such device here"),
        ("JAX_PLATFORMS", "banana", "not in the list of known backends"),
        ("XLA_FLAGS", "--xla_banana=1", "Unknown flag in XLA_FLAGS: --xla_banana=1"),
        ("XLA_FLAGS", "--xla_backend_optimization_level=x", "interpret value x for"),
        ("XLA_PYTHON_CLIENT_MEM_FRACTION", "x", "give a number such as 0.75"),
        ("JAX_NUM_CPU_DEVICES", "abc", "is 'abc', which JAX does not take"),
        ("JAX_ENABLE_X64", "maybe", "is 'maybe', which JAX does not take"),
    ],
)
def test_a_command_names_what_jax_and_xla_refuse(tmp_path, name, value, says):
    if name == "JAX_PLATFORMS" and os.path.exists("/dev/nvidia0"):
        pytest.skip("there is a GPU here")
    result = run(tmp_path, "doctor", **{name: value})
    assert result.returncode == 2, result.stderr
    (line,) = errors(result)
    assert line.startswith(f"exajax: error: {name}: ")
    assert says in line
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("XLA_FLAGS", "--xla_banana=1"),
        pytest.param("JAX_PLATFORMS", "banana", marks=pytest.mark.slow),
    ],
)
def test_a_job_with_a_bad_variable_is_not_restarted(tmp_path, name, value):
    flags = ("--model", SMALL, "--mesh=2x1", "--hosts=2", "--steps=2", "--metrics-port=0")
    result = run(tmp_path, "train", *flags, "--run-dir=run", **{name: value})
    assert result.returncode == 2, result.stderr
    (line,) = errors(result)
    assert line.startswith(f"exajax: error: {name}: ")
    assert not (tmp_path / "run").exists()


def test_a_malformed_exajax_variable_stops_every_command(tmp_path):
    for command in ("doctor", "goodput"):
        result = run(tmp_path, command, EXAJAX_HOST="x")
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1
        assert "EXAJAX_HOST: is 'x'" in result.stderr


@pytest.mark.parametrize("platforms", [None, "cpu"])
def test_without_accelerators_jax_plugins_print_nothing(platforms):
    env = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    env |= {"JAX_PLATFORMS": platforms} if platforms else {}
    argv = [sys.executable, "-m", "exajax", "doctor"]  # looks for devices
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "CPU only" not in done.stdout or not done.stderr
