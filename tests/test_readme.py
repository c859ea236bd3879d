"""What the README prints works as printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from samebits.harness.records import Record, Verdict

from .suite_runs import ROOT, run_suite

README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def code_block(language: str, containing: str, page: str = README) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)
    (block,) = [block for block in blocks if containing in block]
    return str(block)


def test_the_example_backend_is_at_most_40_lines() -> None:
    lines = code_block("python", "class MyAttention").count("\n")
    assert lines <= 40, f"the README's example has {lines} lines"


def records_of_example(folder: Path, code: str, command: str) -> list[Record]:
    """Saves an example and runs the command that is printed with it, from outside of the checkout.

    But for the controls, each of which test_controls.py runs, and for the many other cases.
    """
    _, suite, *words = shlex.split(command.strip().removeprefix("$ pytest "))
    (file,) = re.findall(r"--load[ =](\w+\.py)", command)
    (folder / file).write_text(code)
    few = "(llama3-8b-causal-mixed or rope-llama3-8b:) and not CONTROL"
    installed = ("--pyargs", "samebits.suites", "-k", few)
    run = run_suite(suite, folder / "results", *words, *installed, cwd=folder)
    assert run.exit_code == 0, f"the example ended with {run.exit_code}:\n{run.output[-5000:]}"
    return list(run.records)


def test_the_example_backend_runs_as_printed(tmp_path: Path) -> None:
    code, command = code_block("python", "class MyAttention"), code_block("console", "--load my_attention.py")
    records = records_of_example(tmp_path, code, command)
    assert {record.label for record in records} == {"MY_ATTN/sdpa"}
    held = {record.relation for record in records if record.verdict is Verdict.PASS and record.claimed}
    assert len(held) >= 9, f"the example's claims held on {sorted(held)} only"


def test_the_example_operation_runs_as_printed(tmp_path: Path) -> None:
    code = code_block("python", "class MyRotary", OPERATIONS)
    command = code_block("console", "--load=my_rotary.py", OPERATIONS)
    records = records_of_example(tmp_path, code, command)
    assert {(record.label, record.operation) for record in records} == {("MY_OPS/plain", "rope")}
    assert {record.suite for record in records} == {"rope", "run_to_run"}


def test_every_page_that_the_readme_names_exists() -> None:
    missing = [link for link in re.findall(r"\]\(([^)#:]+)\)", README) if not (ROOT / link).exists()]
    assert not missing, f"the README links to {missing}, which do not exist"


def test_the_readme_names_make_targets_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\$ make (\w+)", README):
        assert f"\n{target}:" in makefile, f"the README names make {target}, which the Makefile has not"


def test_ci_calls_the_commands_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    for command in ("make test", "make matrix"):
        assert f"\n{command}\n" in script, f".ci/run does not call {command!r}"
