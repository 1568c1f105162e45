"""Namespaces are of a process: every test runs a script in one of its own."""

import json
import os
import subprocess
import sys

import pytest

from exajax.chaos import namespaces
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.skipif(
    namespaces.why_not() is not None, reason=f"no namespaces: {namespaces.why_not()}"
)

BEGIN = """
import json, shlex, subprocess, sys
from pathlib import Path
from exajax.job.environment import HOST_PREFIX
from exajax.chaos import disk as disks
from exajax.chaos import namespaces
namespaces.enter()
folder = Path(sys.argv[1])
"""


def inside(script, folder, **environment):
    path = folder / "script.py"
    path.write_text(BEGIN + script)
    done = subprocess.run(
        [sys.executable, path, folder],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


REACH = """
def reaches(here, there):
    prefix = network.environment[HOST_PREFIX.name].replace("{host}", str(here))
    ping = f"import socket; socket.create_connection(('{namespaces.address_of(there)}', 7000), 1)"
    return subprocess.run([*shlex.split(prefix), sys.executable, "-c", ping],
                          capture_output=True).returncode == 0

with namespaces.Network(3, folder / "net") as network:
    prefix = network.environment[HOST_PREFIX.name].replace("{host}", "1")
    listen = "import os, socket; s = socket.create_server((socket.gethostname(), 7000));"
    listen += "assert s.getsockname()[0] == os.environ['EXAJAX_ADDRESS'];"
    listen += "print(flush=True); s.accept(); input()"
    server = subprocess.Popen([*shlex.split(prefix), sys.executable, "-c", listen],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    server.stdout.readline()
    found = [reaches(0, 1), reaches(2, 1)]
    network.cut(0)
    found += [reaches(0, 1), reaches(2, 1)]
    network.mend(0)
    found += [reaches(0, 1)]
    server.kill()
links = json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True).stdout)
print(json.dumps({"found": found, "links": [link["ifname"] for link in links]}))
"""


def test_a_host_is_cut_off_and_joined_again_while_the_others_reach_each_other(tmp_path):
    result = inside(REACH, tmp_path)
    assert result["found"] == [True, True, False, True, True]
    assert result["links"] == ["lo"]


SMALL = """
disk = folder / "checkpoints"
disks.mount_small(disk, 2**20)
(disk / "kept").write_text("whole")
filler = disks.fill(disk)
try:
    (disk / "more").write_text("x")
    (disk / "more").write_text("x" * 8192)
    full = False
except OSError as error:
    full = error.errno == 28
filler.unlink()
(disk / "more").write_text("x" * 8192)
disks.unmount_kept(disk)
print(json.dumps({"full": full, "mounted": disk.is_mount()}))
"""


def test_a_small_disk_is_filled_and_emptied_and_what_it_held_stays(tmp_path):
    result = inside(SMALL, tmp_path)
    assert result == {"full": True, "mounted": False}
    kept = tmp_path / "checkpoints"
    assert sorted(path.name for path in kept.iterdir()) == ["kept", "more"]
    assert (kept / "kept").read_text() == "whole"


def test_what_is_mounted_inside_is_not_seen_outside(tmp_path):
    script = "disks.mount_small(folder / 'disk', 2**20)\n"
    script += "(folder / 'disk' / 'file').write_text('x')\nprint('{}')"
    inside(script, tmp_path)
    assert not list((tmp_path / "disk").iterdir())
