"""Plans in words: ranked, with where the time of the best goes and what more memory would bring."""

from collections.abc import Sequence

from exajax import units
from exajax.machine.cluster import Cluster
from exajax.machine.software_of_rows import unvalidated
from exajax.simulate.formulas.prediction import fits_margin
from exajax.simulate.plan_report import Cost, Plan, Plans, Verified
from exajax.simulate.step_report import LEAST_SHARE, StepReport


def described(result: Plans, cluster: Cluster) -> str:
    """What `exajax plan` prints: a table of plans, the best one, and what would help.

    Args:
        result: the plans.
        cluster: the machine.
    """
    rate = result.evaluated / result.seconds
    lines = [
        f"simulated (analytic engine): {result.evaluated:,} layouts over {result.devices:,} "
        f"x {cluster.chip.title} of {cluster.title} in {result.seconds:.1f} s ({rate:,.0f} a "
        f"second), {result.fitting:,} fit with {fits_margin():.0%} to spare, as "
        "formulas may be short of that"
    ]
    good = [plan for plan in result.plans if not plan.verified or plan.verified.fits]
    lines += _table(result.plans) if result.plans else []
    if good:
        best = good[0]
        lines += ["", f"best: {best.report.mesh}", *_where(best.report)]
        lines += [_cost(best.cost, cluster)] if best.cost else []
        lines += ["", "train it:", f"  {best.command}"]
    elif result.plans:
        lines.append("none of these fits as compiled; give a larger `verify`")
    for faster in result.faster_with_more_memory:
        lines.append(
            f"with {units.show(faster.memory_bytes, 'B')} a device instead of "
            f"{units.show(faster.capacity, 'B')}: {units.show(faster.step_time_s, 's')}, "
            f"{faster.faster_by:.0%} faster: {faster.command}"
        )
    lines += [f"advice: {advice}" for advice in result.advice]
    return "\n".join([*lines, f"note: {_trust(cluster)}"])


def _trust(cluster: Cluster) -> str:
    """How far the prices of kernels may be trusted, in words."""
    rows, chip = len(cluster.software.fitted_on), cluster.chip
    if chip.proxy and not rows:
        return f"unvalidated: {chip.title} has another chip's efficiencies, and no measured step"
    if any(what.startswith("chip") for what in unvalidated(chip.name, cluster.software.name)):
        return f"unvalidated: no measured step of the project is of {chip.title}"
    if rows:
        profile = f"software profile {cluster.software.name}"
        return f"kernels as slow as in {rows} published steps ({profile})"
    return "exajax validate holds simulated steps against published ones"


def step(report: StepReport, cluster: Cluster) -> str:
    """What `exajax simulate --engine analytic` prints of one step."""
    lines = [
        f"simulated (analytic engine): {report.model} on {report.mesh} of {cluster.title}, "
        f"{report.devices:,} x {cluster.chip.title}",
        f"  step    {units.show(report.step_time_s, 's')}, {report.tokens_per_s:,.0f} "
        f"tokens/s, MFU {report.mfu:.1%}, HFU {report.hfu:.1%}; " + _fit(report),
        *_where(report),
        *(f"  advice  {advice}" for advice in report.advice or ()),
    ]
    return "\n".join(lines)


def _fit(report: StepReport) -> str:
    """Whether a step fits, and with how much to spare."""
    memory, margin = report.memory_bytes, report.fits_margin
    if report.fits:
        return f"fits with {margin:.0%} to spare"
    if memory.total <= memory.capacity:
        return f"MAY NOT FIT: less than {margin:.0%} to spare, and formulas may be short of that"
    return "DOES NOT FIT"


def _table(plans: Sequence[Plan]) -> list[str]:
    lines = [f"{'':>3}{'step':>12}{'tokens/s':>13}{'MFU':>7}{'memory':>9}  mesh, options"]
    for number, plan in enumerate(plans, 1):
        report, options = plan.report, plan.options
        how = [f"micro-batch {options['micro_batch']}", f"remat {options['remat']}"]
        how += [f"ZeRO {report.zero}"] if report.zero else []
        how += [f"interleave {options['interleave']}"] if options["interleave"] > 1 else []
        how += [] if options["sequence_parallel"] else ["no sequence parallelism"]
        lines.append(
            f"{number:>3}{units.show(report.step_time_s, 's'):>12}{report.tokens_per_s:>13,.0f}"
            f"{report.mfu:>7.1%}{units.show(report.memory_bytes.total, 'B'):>9}  "
            f"{report.mesh}: {', '.join(how)}"
        )
        if plan.verified:
            lines.append(_compiled(plan.verified))
    return lines


def _compiled(verified: Verified) -> str:
    """The line of the compiled engine under that of a plan."""
    if verified.step_time_s is None or verified.memory_bytes is None:
        return f"{'':>15}  compiled engine: {verified.reason}"
    fits = "" if verified.fits else "; DOES NOT FIT"
    return (
        f"{'':>3}{units.show(verified.step_time_s, 's'):>12}{'':>20}"
        f"{units.show(verified.memory_bytes, 'B'):>9}  compiled engine; the line above is "
        f"{verified.step_time_gap:+.1%} in time, {verified.memory_gap:+.1%} in memory{fits}"
    )


def _where(report: StepReport) -> list[str]:
    """Where time and memory of a step go, a line each."""
    memory = report.memory_bytes
    least = LEAST_SHARE * memory.total
    parts = memory.parts().items()
    return [
        f"  time    {report.breakdown_s.shares()}",
        f"  memory  {units.show(memory.total, 'B')} of {units.show(memory.capacity, 'B')}: "
        + ", ".join(f"{name} {units.show(size, 'B')}" for name, size in parts if size >= least),
    ]


def _cost(cost: Cost, cluster: Cluster) -> str:
    energy = cost.device_energy_kwh
    words = (
        "energy unknown: the chip's rated power is not in its description"
        if energy is None
        else f"{units.show(energy * 1e3, 'Wh')} at the {cluster.chip.power_w:.0f} W that a device "
        "is rated for, hosts and cooling apart"
    )
    return (
        f"  cost    {cost.tokens:.3g} tokens: {cost.steps:,} steps, {cost.days:,.3g} "
        f"days, {cost.node_hours:,.0f} node-hours; {words}"
    )
