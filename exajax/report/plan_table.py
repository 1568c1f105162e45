"""Plans in words: ranked, with where the time of the best goes and what more memory would bring."""

from collections.abc import Mapping
from typing import Any

from exajax import units
from exajax.machine.cluster import Cluster
from exajax.machine.software_of_rows import unvalidated
from exajax.simulate.formulas.prediction import MARGIN

Plan = Mapping[str, Any]


def described(result: Plan, cluster: Cluster) -> str:
    """Returns what `exajax plan` found.

    Args:
        result: as its `--json` is.
        cluster: where.
    """
    rate = result["evaluated"] / result["seconds"]
    lines = [
        f"simulated (analytic engine): {result['evaluated']:,} layouts over {result['devices']:,} "
        f"x {cluster.chip.title} of {cluster.title} in {result['seconds']:.1f} s ({rate:,.0f} a "
        f"second), {result['fitting']:,} fit with {MARGIN:.0%} to spare, as "
        "formulas may be short of that"
    ]
    plans = result["plans"]
    good = [one for one in plans if one.get("verified", {"fits": True})["fits"]]
    lines += _table(plans) if plans else []
    if good:
        lines += ["", f"best: {good[0]['mesh']}", *_where(good[0]), *_cost(good[0], cluster)]
        lines += ["", "train it:", f"  {good[0]['command']}"]
    elif plans:
        lines.append("none of these fits as compiled; give a larger `verify`")
    for one in result["faster_with_more_memory"]:
        lines.append(
            f"with {units.show(one['memory_bytes'], 'B')} a device instead of "
            f"{units.show(one['capacity'], 'B')}: {units.show(one['step_time_s'], 's')}, "
            f"{one['faster_by']:.0%} faster: {one['command']}"
        )
    lines += [f"advice: {advice}" for advice in result["advice"]]
    return "\n".join([*lines, f"note: {_held(cluster)}"])


def _held(cluster: Cluster) -> str:
    """Returns how far the kernels' prices may be trusted."""
    rows, chip = len(cluster.software.fitted_on), cluster.chip
    if chip.proxy and not rows:
        return f"unvalidated: {chip.title} has another chip's efficiencies, and no measured step"
    if any(what.startswith("chip") for what in unvalidated(chip.name, cluster.software.name)):
        return f"unvalidated: no measured step of the project is of {chip.title}"
    if rows:
        profile = f"software profile {cluster.software.name}"
        return f"kernels as slow as in {rows} published steps ({profile})"
    return "exajax validate holds simulated steps against published ones"


def step(result: Plan, cluster: Cluster) -> str:
    """Returns what the analytic engine says of one step, as `exajax simulate` prints it."""
    lines = [
        f"simulated (analytic engine): {result['model']} on {result['mesh']} of {cluster.title}, "
        f"{result['devices']:,} x {cluster.chip.title}",
        f"  step    {units.show(result['step_time_s'], 's')}, {result['tokens_per_s']:,.0f} "
        f"tokens/s, MFU {result['mfu']:.1%}, HFU {result['hfu']:.1%}; " + _fit(result),
        *_where(result),
        *(f"  advice  {advice}" for advice in result["advice"]),
    ]
    return "\n".join(lines)


def _fit(result: Plan) -> str:
    """Returns whether a step fits, and with how much to spare."""
    memory, margin = result["memory_bytes"], result["fits_margin"]
    if result["fits"]:
        return f"fits with {margin:.0%} to spare"
    if memory["total"] <= memory["capacity"]:
        return f"MAY NOT FIT: less than {margin:.0%} to spare, and formulas may be short of that"
    return "DOES NOT FIT"


def _table(plans: list[Plan]) -> list[str]:
    lines = [f"{'':>3}{'step':>12}{'tokens/s':>13}{'MFU':>7}{'memory':>9}  mesh, options"]
    for number, one in enumerate(plans, 1):
        options = one["options"]
        how = [f"micro-batch {options['micro_batch']}", f"remat {options['remat']}"]
        how += [f"ZeRO {one['zero']}"] if one["zero"] else []
        how += [f"interleave {options['interleave']}"] if options["interleave"] > 1 else []
        how += [] if options["sequence_parallel"] else ["no sequence parallelism"]
        lines.append(
            f"{number:>3}{units.show(one['step_time_s'], 's'):>12}{one['tokens_per_s']:>13,.0f}"
            f"{one['mfu']:>7.1%}{units.show(one['memory_bytes']['total'], 'B'):>9}  "
            f"{one['mesh']}: {', '.join(how)}"
        )
        if found := one.get("verified"):
            lines.append(_compiled(found))
    return lines


def _compiled(found: Plan) -> str:
    if found["reason"]:
        return f"{'':>15}  compiled engine: {found['reason']}"
    fits = "" if found["fits"] else "; DOES NOT FIT"
    return (
        f"{'':>3}{units.show(found['step_time_s'], 's'):>12}{'':>20}"
        f"{units.show(found['memory_bytes'], 'B'):>9}  compiled engine; the line above is "
        f"{found['step_time_gap']:+.1%} in time, {found['memory_gap']:+.1%} in memory{fits}"
    )


def _where(one: Plan) -> list[str]:
    spent, memory = one["breakdown_s"], one["memory_bytes"]
    parts = {key: value for key, value in spent.items() if key != "exposed_communication"}
    parts |= {f"waiting for {axes}": s for axes, s in spent["exposed_communication"].items()}
    kinds = {key: value for key, value in memory.items() if key not in ("total", "capacity")}
    return [
        "  time    "
        + ", ".join(
            f"{name.replace('_', ' ')} {seconds / one['step_time_s']:.0%}"
            for name, seconds in sorted(parts.items(), key=lambda part: -part[1])
            if seconds >= 0.005 * one["step_time_s"]
        ),
        f"  memory  {units.show(memory['total'], 'B')} of {units.show(memory['capacity'], 'B')}: "
        + ", ".join(
            f"{name} {units.show(value, 'B')}"
            for name, value in sorted(kinds.items(), key=lambda part: -part[1])
            if value >= 0.005 * memory["total"]
        ),
    ]


def _cost(one: Plan, cluster: Cluster) -> list[str]:
    cost = one["cost"]
    if not cost:
        return []
    energy = cost["device_energy_kwh"]
    told = (
        "energy unknown: the chip's rated power is not in its description"
        if energy is None
        else f"{units.show(energy * 1e3, 'Wh')} at the {cluster.chip.power_w:.0f} W that a device "
        "is rated for, hosts and cooling apart"
    )
    return [
        f"  cost    {cost['tokens']:.3g} tokens: {cost['steps']:,} steps, {cost['days']:,.3g} "
        f"days, {cost['node_hours']:,.0f} node-hours; {told}"
    ]
