"""Figures of runs: the main job, speed, injected faults, plans."""

import json
import statistics

from tables import ROOT, data, link, percent, table

from exajax import units


def main_job() -> str:
    """The first command of the README: the simulated full model, the measured small one."""
    run = json.loads((ROOT / "docs" / "main-job" / "run.json").read_text())
    small, full = run["measured"], max(run["simulated"]["curve"], key=lambda one: one["devices"])
    first = min(run["simulated"]["curve"], key=lambda one: one["devices"])
    recipe = run["job"]["recipe"]
    chip = full["compiled_for"].upper()
    tokens = recipe["global_batch"] * recipe["seq"]
    memory, compared = full["memory_bytes"], run["comparison"]
    step = (
        f"{units.show(full['step_time_s'], 's')} a step, {full['tokens_per_s']:,.0f} tokens/s, MFU "
        f"{percent(full['mfu'])}, {memory['total'] / 1e9:.0f} of {memory['capacity'] / 1e9:.0f} GB"
        " a device"
    )
    command = " ".join(run["command"])
    name, mesh = recipe["model"]["name"], recipe["mesh"]
    processor = run["machine"]["processor"].replace("(R)", "")
    times = compared["measured"]
    rows = [
        (f"{name} on {mesh} {chip}, {tokens / 1e6:.1f} M tokens a step", step, "simulated"),
        (
            f"the same on {first['devices']:,} to {full['devices']:,} {chip}, the batch growing",
            f"weak-scaling efficiency {percent(first['step_time_s'] / full['step_time_s'])}",
            "simulated",
        ),
        (
            f"a small model of its family on 4 CPU devices, {small['devices']['processes']} processes",
            f"{units.show(times['p50_s'], 's')} a step (p95 {units.show(times['p95_s'], 's')})",
            f"measured, {processor}",
        ),
        (
            "the same, predicted for this machine",
            f"{units.show(compared['simulated']['step_time_s'], 's')} a step: "
            f"{100 * compared['error']:+.0f}%",
            "simulated",
        ),
    ]
    data = "[`docs/main-job/run.json`](repo:docs/main-job/run.json)"
    return table(("what", "result", "kind"), rows, f"All from {data}, which `{command}` wrote.")


def plan_speed() -> str:
    """How fast layouts are priced."""
    rows = data("plan_speed.json")["rows"]
    most = max(rows, key=lambda row: (row["layouts"], row["whole_command_s"]))
    rates = [row["layouts_per_s"] for row in rows]
    return (
        f"{most['layouts'] / 1e6:.2f} million layouts of {most['model']} on {most['devices']:,} devices "
        f"take {most['whole_command_s']:.1f} s, start-up included; {min(rates):,.0f} to "
        f"{max(rates):,.0f} layouts a second (*measured* on two cores, {link('plan_speed.json')})"
    )


def simulate_speed() -> str:
    """How long a prediction takes, compiling included."""
    found = data("simulate_speed.json")
    texts = []
    for mesh, runs in found["runs"].items():
        cold, cached = (
            statistics.median(run["seconds"] for run in runs[key]) for key in ("cold", "cached")
        )
        texts.append(f"{found['model']} on {mesh} takes {cold:.1f} s cold and {cached:.1f} s again")
    return f"{', '.join(texts)} (*measured* on two cores, {link('simulate_speed.json')})"


def compile_70b() -> str:
    """How long ahead-of-time compilation takes."""
    found = data("compile_70b.json")
    seconds = statistics.median(one["total_s"] for one in found["rounds"])
    return (
        f"{found['model']} compiles for {found['mesh']} H100 in {seconds:.1f} s (*measured* on two "
        f"cores, {link('compile_70b.json')})"
    )


def cpu_nanogpt() -> str:
    """Tokens a second on a CPU, over those of the faster PyTorch."""
    found = data("cpu_nanogpt.json")
    texts = [
        f"{min(side['exajax_over_it'] for side in one['table']):.2f} in {one['precision']}"
        for one in found["results"]
    ]
    return (
        f"a training step of {found['model']} on {found['threads']['cpus']} CPU cores reaches "
        f"{' and '.join(texts)} of PyTorch's tokens/s, the faster of eager and compiled (*measured*, "
        f"{link('cpu_nanogpt.json')})"
    )


def checkpoint_speed() -> str:
    """How fast checkpoints are saved and restored."""
    rows = [
        (
            case["hosts"],
            *(
                percent(case["summary"][key], 0)
                for key in ("save_of_dd", "restore_of_dd", "stall_of_step")
            ),
            f"{case['summary']['sync_stall_of_step']:.1f} steps",
        )
        for case in data("checkpoint_speed.json")["cases"]
    ]
    return table(
        (
            "processes",
            "saves with, of dd",
            "restores with, of dd",
            "the loop waits, of a step",
            "it would wait without asynchronous saving",
        ),
        rows,
        f"1 GiB against `dd conv=fsync` in the same folder, *measured*: {link('checkpoint_speed.json')}.",
    )


def chaos() -> str:
    """What became of all injected faults."""
    found = data("chaos.json")["summary"]
    apart = found["survived"] - found["identity_promised"]
    return (
        f"{found['faults']} faults in {found['runs']} seeded runs, {found['kills']} of them kills "
        f"({found['kills_while_committing']} with a checkpoint half written). {found['survived']} runs "
        f"survived; {found['identical']} of the {found['identity_promised']} whose end state was to be "
        f"that of an undisturbed run have it bit for bit (in the other {apart}, updates were skipped "
        f"for NaN). Samples missing: {found['samples_missing']}, repeated: "
        f"{found['samples_repeated']}; processes left over: {found['orphans']}, locks: "
        f"{found['stale_locks']}, half checkpoints: {found['half_checkpoints']} (*measured*, two to "
        f"four processes on two shared cores, {link('chaos.json')})."
    )


def chaos_kinds() -> str:
    """How soon each kind of fault was noticed, and its job back."""
    rows = [
        (
            f"`{kind}`",
            one["faults"],
            one["in_time"],
            *(
                f"{one[key][of]:.1f} s"
                for key in ("detected_s", "recovered_s")
                for of in ("median", "most")
            ),
        )
        for kind, one in data("chaos.json")["summary"]["by_kind"].items()
    ]
    return table(
        (
            "fault",
            "injected",
            "noticed in time",
            "noticed after",
            "at most",
            "training again after",
            "at most",
        ),
        rows,
        f"*Measured* (medians), two to four processes on two shared cores: {link('chaos.json')}.",
    )


def live_devices() -> str:
    """How soon processes go on that shrink their job themselves."""
    kills = data("live_devices.json")["kills"]
    after = ", ".join(f"{one['first_step_after_s']:.0f} s" for one in kills)
    missed = ", ".join(f"{one['heartbeat_s']} s" for one in kills)
    return (
        f"after {after} where {missed} of missed heartbeats count as death (*measured*, "
        f"{link('live_devices.json')})"
    )


def reference_jobs() -> str:
    """Best plans of the three reference jobs on five machines."""
    found = data("reference_jobs.json")["rows"]
    clusters = list(dict.fromkeys(row["cluster"] for row in found))
    rows = []
    for model in dict.fromkeys(row["model"] for row in found):
        of = {row["cluster"]: row for row in found if row["model"] == model}
        devices = min(row["devices"] for row in of.values())
        plans = [of[cluster]["plan"] for cluster in clusters]
        cells = [f"{p['tokens_per_s']:,.0f} ({percent(p['mfu'], 0)})" for p in plans]
        rows.append((f"{model}, {devices:,} devices", *cells))
    stated = [f"{row['said']:,.0f}" for row in found if row["cluster"] == clusters[0]]
    peaks = [row["of_peak_if_samples"] for row in found]
    gaps = [row["compiled"]["step_time_s"] / row["plan"]["step_time_s"] - 1 for row in found]
    return table(
        ("tokens/s (MFU)", *(f"`{cluster}`" for cluster in clusters)),
        rows,
        f"*Simulated* by the analytic engine; compiled, these steps differ by {100 * min(gaps):+.0f}% to "
        f"{100 * max(gaps):+.0f}%. The plans and their commands: {link('reference_jobs.json')}. What these jobs were said to reach, "
        f"{', '.join(stated)} a second, can only be tokens: as samples it would be {min(peaks):,.0f} to "
        f"{max(peaks):,.0f} times the devices' peak.",
    )
