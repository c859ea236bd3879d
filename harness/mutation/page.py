"""What the mutants tell: tables by source, by operator and by what killed them, and a list of those that survive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from samebits.harness.mutation.accepted import reason_for
from samebits.harness.mutation.findings import Fate, Finding
from samebits.harness.mutation.mutants import Mutant
from samebits.reports.markdown_table import markdown_table

_FATES = (Fate.INVALID, Fate.UNCHANGED, Fate.KILLED, Fate.SURVIVED)
_PAGE = """# Mutants of the bundled kernels

Small changes of the bundled kernels' own sources, made mechanically, and which of them the suites that users run see.
Planted bugs ([the museum](museum.md)) are those that people made; these are what nobody thought of.

```console
$ {command}
```

made this page. `samebits mutants --only merge.cpp` tries the mutants of one source; `--sample N --seed S` draws as many
of each; with `--results FILE` a run that was cut off goes on where it was.
"""
_HOW = """## How a mutant is tried

* **Made.** Python sources are changed in the tree that [libcst](https://libcst.readthedocs.io) makes of them, C++
  sources in that of [tree-sitter](https://tree-sitter.github.io): comparison operators, whole numbers one larger or
  smaller, `+` for `-`, a minimum for a maximum, one stride for its neighbour, a mask or one of its conditions left
  out, a narrower type, a guard taken for true or false, one side of a choice, constants, signs, calls left out. What
  an implementation declares of itself, its claims and what it supports, is not changed: the suites take it at its
  word. Nor are whole numbers of C++ made narrower: nothing overflows at the sizes that a processor's cells have.
* **Run.** Each is compiled or imported from a copy, in a process of its own with limits on what it
  computes and maps. It goes through the cells of the default tier of its implementation and operation, the cheapest
  of each case first, up to the first that is red. Cells of a second process are left out, which would compute with
  the unchanged source.
* **Killed.** A cell is red, or the process crashed or hung, which its user would see as well. Bits alone kill
  nothing.
* **No output changed.** In all cells every verdict and every bit is that of the unchanged kernel, or the mutant
  compiles to the same instructions. Many such change what no bit may depend on: the number of threads, room in a
  buffer, a bound.
* **Survived.** Bits changed in some cell, and no cell is red. A report against a baseline still shows each of them,
  as `new bits` or as a regression. Whoever survives and may, such as a kernel that adds up in another order, is
  listed with the reason why it is as right as the source; reasons are kept in `harness/mutation/accepted.py` with the
  lines they are about, and one that fits no line any more is refused.

### Why no existing tool

mutmut and cosmic-ray change Python alone. mutmut puts its mutants into functions that choose among them by a
variable, which Triton, who compiles a function from its source, does not see through; cosmic-ray changes the checkout
in place and starts a test command for each mutant, which would import torch and make every reference anew.
universalmutator changes C++ too, line by line with regular expressions, and leaves the running to a command again.
mull needs Clang and its intermediate code; the bundled kernels are built with whatever compiler is there.
"""


def told_of(findings: Sequence[Finding], mutants: Sequence[Mutant]) -> str:
    """How many mutants there are and what became of those that were tried, in a few sentences.

    Args:
        findings: of those that were tried.
        mutants: all that there are.
    """
    fates = Counter(finding.fate for finding in findings)
    changed, killed = fates[Fate.KILLED] + fates[Fate.SURVIVED], fates[Fate.KILLED]
    survivors = [finding for finding in findings if finding.fate is Fate.SURVIVED]
    right = [finding for finding in survivors if reason_for(finding.mutant)]
    new_bits = sum(not finding.regressed for finding in survivors)
    lines = [
        f"{len(mutants):,} mutants; {len(findings):,} tried: {fates[Fate.INVALID]} do not compile, "
        f"{fates[Fate.UNCHANGED]} change no output, {changed} do.",
        f"Of these {changed}, {killed} are killed ({_share(killed, changed)}) and {len(survivors)} survive, "
        f"of which {len(right)} are as right as the source; "
        f"of all others {_share(killed, changed - len(right))} are killed.",
        f"Of the survivors a report against a baseline shows {new_bits} as new bits and {len(survivors) - new_bits} as "
        "a regression.",
    ]
    return "\n".join(lines)


def unexplained(findings: Iterable[Finding]) -> list[Finding]:
    """The survivors without a reason why they may."""
    return [finding for finding in findings if finding.fate is Fate.SURVIVED and not reason_for(finding.mutant)]


def as_list(findings: Iterable[Finding]) -> str:
    """Survivors, one paragraph each, in Markdown."""
    return "\n".join(_survivor(finding) for finding in findings)


def as_page(findings: Sequence[Finding], mutants: Sequence[Mutant], command: str) -> str:
    """The page of all mutants that were tried, in Markdown.

    Args:
        findings: of those that were tried.
        mutants: all that there are.
        command: that made it.
    """
    there_are = Counter(mutant.path for mutant in mutants)
    by_operator = Counter(str(mutant.operator) for mutant in mutants)
    survivors = [finding for finding in findings if finding.fate is Fate.SURVIVED]
    return "\n".join(
        [
            _PAGE.format(command=command),
            f"{told_of(findings, mutants)}\n",
            *_table("source", findings, lambda finding: finding.mutant.path, there_are),
            *_table("operator", findings, lambda finding: str(finding.mutant.operator), by_operator),
            "What killed a mutant first:\n",
            *_killers(findings),
            "## Survivors\n",
            as_list(survivors) if survivors else "None.",
            "",
            _HOW.rstrip(),
            "",
        ]
    )


def _table(
    heading: str, findings: Sequence[Finding], key: Callable[[Finding], str], there_are: Mapping[str, int]
) -> Iterable[str]:
    rows = []
    for name, count in there_are.items():
        fates = Counter(finding.fate for finding in findings if key(finding) == name)
        changed = fates[Fate.KILLED] + fates[Fate.SURVIVED]
        numbers = (count, fates.total(), *(fates[fate] for fate in _FATES))
        rows.append((name, *(f"{number:,}" for number in numbers), _share(fates[Fate.KILLED], changed)))
    headings = (heading, "mutants", "tried", *map(str, _FATES), "killed of changed")
    return markdown_table(headings, rows, len(headings) - 1)


def _killers(findings: Iterable[Finding]) -> Iterable[str]:
    killed = [finding for finding in findings if finding.fate is Fate.KILLED]
    by_suite: dict[str, Counter[str]] = {}
    for finding in killed:
        by_suite.setdefault(finding.suite or "no cell", Counter())[finding.relation or _first_word(finding.told)] += 1
    rows = [
        (suite, ", ".join(f"{name} {count}" for name, count in checks.most_common()), str(checks.total()))
        for suite, checks in sorted(by_suite.items(), key=lambda entry: -entry[1].total())
    ]
    return markdown_table(("suite", "checks", "mutants"), rows, 1)


def _survivor(finding: Finding) -> str:
    mutant = finding.mutant
    seen = "regression" if finding.regressed else "new bits"
    reason = reason_for(mutant) or "**unexplained**"
    return (
        f"* `{mutant.path}` line {mutant.line}, {mutant.operator}: {_code(mutant.before)} becomes "
        f"{_code(mutant.after)}. "
        f"Other bits in {finding.changed} of {finding.ran} cells ({seen}). {reason}"
    )


def _code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _first_word(sentence: str) -> str:
    return sentence.partition(":")[0]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"
