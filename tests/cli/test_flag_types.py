"""What the values of flags may be, in every command: one line that names the flag, exit code 2."""

import os
import shutil
import subprocess
import sys
from argparse import ArgumentTypeError

import pytest

from exajax import InputError, MeshSpec
from exajax.cli import dispatch, flag_types

RECIPE = ("--model=gpt-tiny", "--mesh=1x1")
TRAIN = ("train", *RECIPE)
PLAN = ("plan", "--devices=8", "--global-batch=8")


def refused(capsys, argv):
    """Runs a command that its parser refuses, in this process; returns its one line."""
    with pytest.raises(SystemExit) as ended:
        dispatch.parser().parse_args([str(word) for word in argv])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert len(said.err) < 1200
    return said.err


@pytest.mark.parametrize(
    "argv",
    [
        (*TRAIN, "--seed=4294967296"),
        (*TRAIN, "--seed=-1"),
        (*TRAIN, "--global-batch=1000000000000"),
        (*TRAIN, "--global-batch=1e12"),
        (*TRAIN, "--micro-batch=99999999999"),
        (*TRAIN, "--steps=12345678901234567890"),
        (*TRAIN, "--steps=1_0"),
        (*TRAIN, "--steps=٣"),
        (*TRAIN, "--steps=" + "9" * 5000),
        (*TRAIN, "--seq=0"),
        (*TRAIN, "--metrics-port=70000"),
        (*TRAIN, "--metrics-port=-1"),
        (*TRAIN, "--learning-rate=nan"),
        (*TRAIN, "--learning-rate=1e400"),
        (*TRAIN, "--z-loss=inf"),
        (*TRAIN, "--label-smoothing=-0.1"),
        (*TRAIN, "--capacity-factor=0"),
        (*TRAIN, "--hosts=0"),
        (*TRAIN, "--devices-per-host=" + "1" * 30),
        (*TRAIN, "--restarts=-1"),
        (*TRAIN, "--host-wait=nan"),
        (*TRAIN, "--save-every=0"),
        (*TRAIN, "--zero=" + "3" * 5000),
        (*TRAIN, "--run-dir="),
        (*TRAIN, "--run-dir=" + "a" * 300),
        (*TRAIN, "--run-dir=" + "a/" * 3000),
        (*TRAIN, "--init="),
        (*TRAIN, "--local-checkpoints=a\0b"),
        (*TRAIN, "--tokenizer=\ud800"),
        (*TRAIN, "--cluster=" + "c" * 300),
        ("simulate", "--mesh=2x2", "--model="),
        ("simulate", "--mesh=2x2", "--out=" + "o" * 300),
        (*PLAN, "--top=0"),
        (*PLAN, "--verify=-1"),
        (*PLAN, "--tokens=1e999"),
        ("chaos", *RECIPE, "--kills=0"),
        ("chaos", *RECIPE, "--mean-gap=0"),
        ("chaos", *RECIPE, "--fault-seed=99999999999"),
        ("sample", "--run-dir=x", "--prompt=a", "--temperature=nan"),
        ("sample", "--run-dir=x", "--prompt=a", "--top-k=0"),
        ("sample", "--prompt=a", "--run-dir="),
        ("sample", "--run-dir=x", "--prompt=a\udc80"),
        ("export", "--run-dir=x", "--out="),
        ("tokenise", "--data=x", "--out=y", "--seq=0"),
        ("validate", "--table="),
        ("goodput", "--run-dir="),
        ("calibrate", "--hosts=0"),
    ],
    ids=lambda argv: f"{argv[0]} {argv[-1][:24]}".encode("ascii", "replace").decode(),
)
def test_a_value_out_of_bounds_is_refused_by_its_flag(capsys, argv):
    flag = next(word for word in reversed(argv) if word != "--prompt=a").partition("=")[0]
    assert f"argument {flag}: " in refused(capsys, argv)


def test_numbers_are_read_as_they_are_written_by_hand():
    assert flag_types.whole(0, 10)("007") == 7
    assert flag_types.number(0, 1)("1e-3") == 1e-3
    assert flag_types.number(0, 1)(".5") == 0.5
    for text in ("", " 1", "1 ", "0x1", "--1", "1e", "infinity", "½"):
        with pytest.raises(ArgumentTypeError):
            flag_types.whole(0, 10)(text)
        with pytest.raises(ArgumentTypeError):
            flag_types.number(0, 10)(text)


@pytest.mark.parametrize(
    "text", ["1" * 100_000, "9" * 30 + "x1", "999999999x999999999", "data=" + "1," * 9999]
)
def test_a_mesh_beyond_all_bounds_is_refused_at_once_and_briefly(text):
    with pytest.raises(InputError) as error:
        MeshSpec.parse(text)
    assert len(str(error.value)) < 600


@pytest.mark.skipif(
    os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may look into every folder"
)
@pytest.mark.parametrize(
    "argv",
    [(*TRAIN, "--run-dir"), (*TRAIN, "--init"), ("goodput", "--run-dir"), ("validate", "--table")],
    ids=lambda argv: f"{argv[0]} {argv[-1]}",
)
def test_a_folder_that_one_may_not_enter_is_refused(tmp_path, argv):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    drop = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all"]
    result = subprocess.run(
        [*(drop if os.geteuid() == 0 else []), sys.executable, "-m", "exajax", *argv, locked / "x"],
        capture_output=True,
        text=True,
    )
    locked.chmod(0o700)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert f"{argv[-1]}: one may not look into" in result.stderr
