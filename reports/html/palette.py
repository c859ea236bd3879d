"""The page's colours, by day and by night, as data, so that a test can compute their contrast."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# How much of a tone is blended into the surface, the palest first: how warm a place of the heat map is.
HEAT = (0.07, 0.15, 0.25, 0.37)
TONES = ("bad", "known", "varies", "good", "none")


@dataclass(frozen=True)
class Palette:
    """Colours as `#rrggbb`.

    Attributes:
        surface: behind everything.
        raised: behind what stands out from the surface: the heads of tables, the bar, panels.
        ink: of text.
        quiet: of text that is looked at second.
        line: between things; carries no meaning.
        edge: around what can be operated.
        link: of links, and around what has the keyboard's focus.
        bad, known, varies, good, none: tones of marks, as text and as tints.
    """

    surface: str
    raised: str
    ink: str
    quiet: str
    line: str
    edge: str
    link: str
    bad: str
    known: str
    varies: str
    good: str
    none: str

    def heat(self, tone: str, level: int) -> str:
        """The tint of a tone, by its level from 1 on."""
        return blended(self.surface, getattr(self, tone), HEAT[level - 1])

    def declarations(self) -> Iterator[str]:
        """Each colour as a custom property of CSS."""
        for name, colour in vars(self).items():
            yield f"--{name}: {colour};"
        for tone in TONES:
            for level in range(1, len(HEAT) + 1):
                yield f"--{tone}-{level}: {self.heat(tone, level)};"


DAY = Palette(
    surface="#ffffff",
    raised="#f5f6f8",
    ink="#1a1d21",
    quiet="#555e69",
    line="#dce0e5",
    edge="#858e99",
    link="#0b57b0",
    bad="#b3201b",
    known="#6a3da8",
    varies="#875400",
    good="#19693a",
    none="#5b6470",
)
NIGHT = Palette(
    surface="#14171b",
    raised="#1d2126",
    ink="#e6e9ed",
    quiet="#a3acb7",
    line="#31373f",
    edge="#78828e",
    link="#82b6ff",
    bad="#ff8a80",
    known="#c8a6ff",
    varies="#f0b95a",
    good="#74cf94",
    none="#a3acb7",
)


def blended(below: str, above: str, share: float) -> str:
    """A colour laid over another, which shows through but for a share."""
    pairs = zip(_channels(below), _channels(above), strict=True)
    return "#" + "".join(f"{round(low + (high - low) * share):02x}" for low, high in pairs)


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, from 1 to 21 (WCAG 2.2, "contrast ratio")."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _channels(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return red, green, blue


def _luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    shares = [channel / 255 for channel in _channels(colour)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
