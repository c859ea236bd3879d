"""Times, shares and rates as they are read."""

from __future__ import annotations

from samebits.harness.bench.records import Rate, SuiteRate, Timing
from samebits.reports import text

# Below each bound the unit of its times, and how many of it a second has.
_UNITS = ((1e-3, 1e6, "us"), (1.0, 1e3, "ms"), (float("inf"), 1.0, "s"))


def seconds(value: float | None) -> str:
    """A time with three digits or more and its unit; `-` for none."""
    if value is None:
        return "-"
    scale, unit = next((scale, unit) for bound, scale, unit in _UNITS if value < bound)
    scaled = value * scale
    digits = 0 if scaled >= 100 else 1 if scaled >= 10 else 2
    return f"{scaled:.{digits}f} {unit}"


def median(timing: Timing | None) -> str:
    """The median of a timing."""
    return seconds(None if timing is None else timing.median)


def ratio(value: float | None) -> str:
    """A multiple of another time, or a share of a limit; `-` for none."""
    return "-" if value is None else f"{value:.2f}"


def percent(value: float) -> str:
    """A share in percent."""
    return f"{value:.0%}" if value >= 0.1 else f"{value:.1%}"


def suite_rate(found: SuiteRate) -> str:
    """How fast the harness was, or why that is not known."""
    if found.rate is None:
        return found.reason or "no cells"
    told = f"{text.counted(found.cells, 'cell')} of {found.label} in {found.seconds:.1f} s, {found.rate:.1f} a second"
    return told + (f"; {found.told_red}" if found.told_red else "")


def rate(found: Rate) -> str:
    """A rate with its unit."""
    if found.name.startswith("matrix"):
        return f"{found.value / 1e12:,.1f} TFLOP/s" if found.value >= 1e12 else f"{found.value / 1e9:,.0f} GFLOP/s"
    return f"{found.value / 1e12:,.2f} TB/s" if found.value >= 1e12 else f"{found.value / 1e9:,.1f} GB/s"
