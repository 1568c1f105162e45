"""Measures this machine's CPU devices and writes them as a cluster description."""

import argparse
from pathlib import Path

from exajax.cli import flag_types
from exajax.errors import InputError
from exajax.job import distributed, launchers, local_hosts, runtime
from exajax.machine.cluster import LOCAL, load_cluster
from exajax.spmd.mesh import MeshSpec


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add = parser.add_argument
    add(
        "--hosts",
        type=flag_types.whole(1, flag_types.MOST_DEVICES),
        default=2,
        metavar="H",
        help="host processes",
    )
    add(
        "--devices-per-host",
        type=flag_types.whole(1, flag_types.MOST_DEVICES),
        default=2,
        metavar="D",
        help="devices of each",
    )
    add(
        "--out",
        type=flag_types.name,
        default=str(LOCAL),
        metavar="FILE",
        help="where to write the cluster",
    )
    add("--json", action="store_true", help="print one JSON object on stdout, nothing else")


def run(args: argparse.Namespace) -> int:
    """Measures, as one process of a job or as the parent of a local one."""
    path = Path(args.out)
    if not path.absolute().parent.is_dir():
        raise InputError("out", f"there is no folder {path.parent}", "make it, or give another")
    if launchers.launcher() == "single":
        processes = local_hosts.host_processes(args.argv, args.hosts, env=local_hosts.CPU)
        return local_hosts.exit_code(code for code, _ in local_hosts.run_together(processes))
    out = runtime.claim_stdout()
    launch = launchers.detect()
    mesh = MeshSpec(data=args.hosts, model=args.devices_per_host)
    distributed.initialize(launch, mesh)

    from exajax.calibrate import measure, probes

    text = measure.measure(args.hosts, args.devices_per_host)
    if probes.HEADS % args.devices_per_host:  # the heads cannot be divided, but the batch can
        mesh = MeshSpec(data=args.hosts * args.devices_per_host)
    timed = probes.measure(mesh)
    if launch.process == 0:
        new = path.with_name(f"{path.stem}.new.toml")
        new.write_text(text)
        text += measure.software_toml(
            probes.fit(timed, load_cluster(str(new))), (probes.LEAST, probes.MOST)
        )
        new.write_text(text)
        new.replace(path)
        result = {"kind": "measured", "cluster": str(path)}
        print(runtime.json_text(result) if args.json else f"wrote {path}\n\n{text}", file=out)
    return 0
