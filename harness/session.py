"""One pytest session's matrix: what was selected, and how a cell is run in this process."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from samebits.backends.contract import Availability
from samebits.backends.platform import accelerator
from samebits.backends.problem import DTYPE_NAMES
from samebits.backends.subject import Subject
from samebits.harness.code_state import code_digest, digest_of, loaded_code
from samebits.harness.compilation.cases import CompiledSubject
from samebits.harness.compilation.judgement import compiling_reasons, judge_compilation
from samebits.harness.environment import environment
from samebits.harness.executor import Executor
from samebits.harness.judgement import TakeFound, computing_reasons, judge, judge_given_up, told_apart, unjudged
from samebits.harness.matrix import Cell, Selection
from samebits.harness.properties.cases import DrawnCase
from samebits.harness.properties.draws import Draws
from samebits.harness.records import TIERS, Record, Resumable, RunHeader, UnusableInput, Verdict
from samebits.harness.registry import is_absent, load_registry
from samebits.harness.relation_order import merged_order
from samebits.harness.second_process import SecondProcess
from samebits.harness.suite_cells import SUITES

CellRunner = Callable[[Cell], None]


@dataclass(frozen=True)
class Options:
    """What the user asked for.

    Attributes:
        backends, implementations, dtypes: names; empty for all.
        tier: name of the tier.
        load: Python files of further backends.
        libs: folders of vendors' libraries, for what is not installed.
        cells: ids of single cells; empty for all.
        threads: intra-operation threads.
        seed: of all data.
        shard: name of the job of the nightly matrix that this is; empty for none. It has those of the tier's cells that
            are of `dtypes`; without a name, `dtypes` take the place of the tier's.
        draws: how the properties suite draws batches.
        places: words that tell pytest where the suites are; none in a checkout, which knows.
    """

    backends: tuple[str, ...] = ()
    implementations: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    tier: str = "default"
    load: tuple[Path, ...] = ()
    libs: tuple[Path, ...] = ()
    cells: tuple[str, ...] = ()
    threads: int = 1
    seed: int = 0
    shard: str = ""
    draws: Draws = dataclasses.field(default_factory=Draws)
    places: tuple[str, ...] = ()


class MatrixSession:
    """Makes and runs the cells that the options select."""

    def __init__(self, options: Options) -> None:
        """Checks the options against what there is.

        Raises:
            UnusableInput: a backend, an implementation, a dtype or a tier is unknown, a file cannot be loaded, or a
                folder of libraries is damaged.
        """
        if options.tier not in TIERS:
            raise UnusableInput(f"unknown tier {options.tier!r}; known are {', '.join(TIERS)}")
        for dtype in options.dtypes:
            if dtype not in DTYPE_NAMES:
                raise UnusableInput(f"unknown dtype {dtype!r}; known are {', '.join(DTYPE_NAMES)}")
        torch.set_num_threads(options.threads)
        self.options = options
        self._registry = load_registry(options.load, options.libs)
        self.selection = Selection(
            implementations=self._registry.select(options.backends, options.implementations),
            dtypes=tuple(dict.fromkeys(options.dtypes)),
            tier=options.tier,
            seed=options.seed,
            within_tier=bool(options.shard),
        )
        if not self.selection.implementations:
            asked = ", ".join((*options.backends, *options.implementations))
            raise UnusableInput(f"nothing is selected by {asked} together; name an implementation of a named backend")
        self._cells: dict[str, tuple[Cell, ...]] = {}
        # By kind, too: those of two subjects that share a name must not stand in for each other.
        self._executors: dict[tuple[type[Subject], str, str], Executor] = {}
        # It needs no cells by name, of which the controls may be none.
        self._second_process = SecondProcess(dataclasses.replace(options, cells=()))
        # Records of the correct kernels that controls were broken from, by suite and cell.
        self._parents: dict[tuple[str, str], Record] = {}
        self._check_cells()

    def cells(self, suite: str) -> tuple[Cell, ...]:
        """The cells of a suite, or those of them that were asked for by name; made when they are first asked for.

        An implementation whose library is absent has its first cell only, which says so, unless others are asked for.
        """
        if suite not in self._cells:
            every, wanted = SUITES[suite](self.selection), self.options.cells
            chosen = (cell for cell in every if cell.cell_id in wanted) if wanted else _once_where_absent(every)
            self._cells[suite] = tuple(chosen)
        return self._cells[suite]

    def run(self, cell: Cell, take_found: TakeFound | None = None) -> Record:
        """Runs one cell; of a control that of its parent, too, which several controls may share.

        Args:
            cell: of this session.
            take_found: is given its record when it did not hold, before its batch is made smaller; None for nobody.
        """
        record, of_parent = self._judged(cell, take_found), cell.of_parent
        if of_parent is None:
            return record
        name = (of_parent.suite, of_parent.cell_id)
        if name not in self._parents:
            self._parents[name] = self._judged(of_parent)
        return told_apart(record, self._parents[name])

    def _judged(self, cell: Cell, take_found: TakeFound | None = None) -> Record:
        implementation, availability = cell.implementation, self._availability(cell)
        if isinstance(implementation, CompiledSubject):
            return judge_compilation(cell, availability, self._command(cell))
        command, options = self._command(cell), [*self._loading(), *self._threads()]
        if isinstance(cell.case, DrawnCase):
            # Hypothesis takes as long to import as all of samebits, and most runs and processes draw nothing.
            from samebits.harness.properties.judgement import judge_drawn

            draws = self.options.draws
            return judge_drawn(cell, availability, self.executor(cell), command, options, draws, take_found)
        return judge(cell, availability, self.executor(cell), command, options, take_found)

    def give_up(self, cell: Cell, reason: str) -> Record:
        """The record of a cell that is not computed: what it cannot do is told as ever, and anything else by a reason.

        Args:
            cell: of this session.
            reason: why it is not computed.
        """
        availability = self._availability(cell)

        def reasons_against_it() -> tuple[str, ...]:
            if isinstance(cell.implementation, CompiledSubject):
                return compiling_reasons(cell)
            return computing_reasons(cell, availability)

        return judge_given_up(cell, availability, self._command(cell), reasons_against_it, reason)

    def executor(self, cell: Cell) -> Executor:
        """Runs the implementation of a cell, which computes something, where it is available."""
        implementation = cell.implementation
        name = (type(implementation), implementation.operation, implementation.label)
        if name not in self._executors:
            device = torch.device(self._availability(cell).device)
            self._executors[name] = Executor(implementation, device, self._second_process)
        return self._executors[name]

    def not_run(self, cell: Cell) -> Record:
        """The record of a cell before it is run, for which its implementation is probed."""
        return unjudged(cell, self._availability(cell), self._command(cell))

    def not_probed(self, cell: Cell) -> Record:
        """The record of a cell of whose implementation nothing is asked."""
        return unjudged(cell, Availability(device=accelerator().device), self._command(cell))

    def crashed(self, node_id: str, message: str) -> Record | None:
        """The record of a cell whose process died; None when the test was no cell.

        Args:
            node_id: pytest's, which holds the cell's id in brackets.
            message: what is known of the crash.
        """
        for suite in SUITES:
            for cell in self.cells(suite):
                if f"[{cell.cell_id}]" in node_id:
                    reasons = (" ".join(message.split()),)
                    return dataclasses.replace(self.not_run(cell), verdict=Verdict.ERROR, reasons=reasons)
        return None

    @property
    def devices(self) -> frozenset[str]:
        """The devices that cells may run on, as records name them."""
        return frozenset(environment(device).device for device in ("cpu", accelerator().device))

    def header(self, suites: tuple[str, ...], narrowed: bool, cell_ids: Collection[str]) -> RunHeader:
        """The first line of this session's records.

        Args:
            suites: marks of the suites that run.
            narrowed: whether single cells were selected.
            cell_ids: of all cells that run.
        """
        now = datetime.datetime.now(datetime.UTC)
        every = [cell for suite in suites for cell in self.cells(suite)]
        cells = [cell for cell in every if cell.flaw is None]
        return RunHeader(
            run_id=now.strftime("%Y%m%dT%H%M%S.%fZ"),
            started=now.isoformat(timespec="seconds"),
            suites=suites,
            implementations=tuple(dict.fromkeys(subject.label for subject in self.selection.implementations)),
            dtypes=tuple(sorted(self.selection.dtypes or {cell.dtype for cell in cells})),
            tier=self.selection.tier,
            narrowed=narrowed,
            expected=tuple(dict.fromkeys(cell.implementation.label for cell in cells)),
            relations=_told_order(cells, every),
            asked=(*self.options.backends, *self.options.implementations),
            environment=environment(accelerator().device),
            shard=self.options.shard,
            resumable=Resumable(
                dtypes=self.options.dtypes,
                cell_ids=self.options.cells,
                seed=self.options.seed,
                cells=len(cell_ids),
                cells_digest=digest_of(cell_id.encode(errors="surrogatepass") for cell_id in sorted(cell_ids)),
                code_digest=code_digest(self.options.load, self.options.libs),
                draw_seed=self.options.draws.seed,
                loaded=loaded_code(self.options.load, self.options.libs),
            ),
        )

    def availability(self, subject: Subject) -> Availability:
        """Whether an implementation can run here, and where it computes."""
        return self._registry.availability(subject)

    def _availability(self, cell: Cell) -> Availability:
        return cell.implementation.probe() if cell.flaw else self.availability(cell.implementation)

    def _command(self, cell: Cell) -> str:
        words = ["pytest", *self.options.places, "-m", cell.suite, *self._loading()]
        if self.options.tier != "default":
            words += ["--tier", self.options.tier]
        if self.selection.dtypes:
            words += ["--dtype", cell.dtype]
        words += self._threads()
        if cell.seed:
            words += ["--seed", str(cell.seed)]
        if isinstance(cell.case, DrawnCase) and self.options.draws.seed is not None:
            words += ["--draw-seed", str(self.options.draws.seed)]
        return shlex.join([*words, "--cell", cell.cell_id])

    def _loading(self) -> list[str]:
        """The words of a command that loads what this session loaded."""
        given = [("--load", path) for path in self.options.load] + [("--libs", path) for path in self.options.libs]
        return [word for option, path in given for word in (option, str(path))]

    def _threads(self) -> list[str]:
        return ["--threads", str(self.options.threads)] if self.options.threads != 1 else []

    def _check_cells(self) -> None:
        wanted = self.options.cells
        known = {cell.cell_id for suite in SUITES for cell in self.cells(suite)} if wanted else {}
        for name in wanted:
            if name not in known:
                raise UnusableInput(
                    f"unknown cell {name!r} in tier {self.options.tier}; it must be the cell_id of a record, "
                    "and --tier, --dtype, --seed, --load and --libs must be those of its run"
                )


def _told_order(cells: Iterable[Cell], every: Iterable[Cell]) -> tuple[str, ...]:
    """The order of relations: that of the cells of each case, then what controls alone check."""
    cases = itertools.groupby(cells, key=lambda cell: (cell.suite, cell.implementation, cell.case, cell.dtype))
    orders = [tuple(cell.relation.name for cell in of_case) for _, of_case in cases]
    return merged_order([*dict.fromkeys(orders), tuple(cell.relation.name for cell in every)])


def _once_where_absent(cells: Iterable[Cell]) -> Iterator[Cell]:
    """All cells, but of each implementation whose library is absent no more than one."""
    absent: dict[Subject, bool] = {}
    for cell in cells:
        subject = cell.implementation
        if subject not in absent:
            absent[subject] = is_absent(subject)
        elif absent[subject]:
            continue
        yield cell
