"""A disk that fills up ends a run in one line, and the run goes on once there is room."""

import json
import os
import subprocess
import sys

import pytest

from exajax.chaos import namespaces
from tests.conftest import REPOSITORY

UNAVAILABLE = namespaces.why_unavailable()
pytestmark = pytest.mark.skipif(UNAVAILABLE is not None, reason=f"no namespaces: {UNAVAILABLE}")

SCRIPT = """
import json, subprocess, sys
from pathlib import Path
from exajax.chaos import disk, namespaces
namespaces.enter()
folder = Path(sys.argv[1])
disk.mount_tmpfs(folder, int(sys.argv[2]))
argv = [sys.executable, "-m", "exajax", "train", "--mesh=1x1", "--model=gpt-tiny", "--seq=64"]
argv += ["--global-batch=2", "--steps=6", "--save-every=2", f"--run-dir={folder / 'run'}", "--json"]
argv += ["--metrics-port=0"]

def train():
    done = subprocess.run(argv, capture_output=True, text=True)
    steps = sorted(p.name for p in (folder / "run" / "checkpoints").glob("*"))
    return {"code": done.returncode, "out": done.stdout, "err": done.stderr, "kept": steps}

runs = [train()]
subprocess.run(["mount", "-o", "remount,size=200m", folder], check=True)
runs.append(train())
print(json.dumps(runs))
"""


@pytest.mark.parametrize(("size", "kept"), [("45m", ["2", "4"]), ("300k", [])])
@pytest.mark.slow
def test_a_full_disk_ends_a_run_in_one_line_and_it_goes_on_with_more(tmp_path, size, kept):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script, tmp_path / "disk", str(parsed(size))],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    full, resumed = json.loads(done.stdout.splitlines()[-1])
    assert full["code"] == 1
    assert full["kept"] == kept
    failed = [line for line in full["err"].splitlines() if line.startswith("exajax: failed: ")]
    (line,) = failed  # one attempt, one line: what no restart mends is not restarted
    newest = f"the newest good one is of step {kept[-1]}" if kept else "there is no other"
    assert f"could not be saved: No space left on device; {newest}; make room" in line
    assert "Traceback" not in full["err"]
    assert resumed["code"] == 0
    result = json.loads(resumed["out"])
    assert result["resumed_from"] == (int(kept[-1]) if kept else None)
    assert (result["step"], len(result["losses"])) == (6, 6)


def parsed(size):
    return int(size[:-1]) * {"k": 1024, "m": 1024**2}[size[-1]]
