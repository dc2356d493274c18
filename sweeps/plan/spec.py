"""What a command asks for, in the form in which the tracking store keeps it.

spec = Spec("attention", preset="toy", selections=(Selection(seeds=(0, 1)),))
spec.cells()                             # the Configs, the same ones on every machine
Spec.from_json(spec.to_json()) == spec
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TypeVar

from semidavil.commandline import parse_settings, refuse_oracle
from semidavil.config import Config, ConfigError, preset
from sweeps.plan.grids import GRIDS, SHARED_AXES, Grid, union

T = TypeVar("T")


@dataclass(frozen=True)
class Selection:
    """Which of a grid's cells.

    Attributes:
        benchmarks: empty: the grid's own.
        budgets: numbers of labelled target images; None: each benchmark's own.
    """

    benchmarks: tuple[str, ...] = ()
    budgets: tuple[int, ...] | None = None
    seeds: tuple[int, ...] = (0,)

    @classmethod
    def from_fields(
        cls, benchmarks: Sequence[str], budgets: Sequence[int] | None, seeds: Sequence[int]
    ) -> "Selection":
        """As JSON has them, in lists."""
        return cls(tuple(benchmarks), None if budgets is None else tuple(budgets), tuple(seeds))


@dataclass(frozen=True)
class Spec:
    """A grid with settings, and which of its cells were asked for. Of a search: its study.

    Attributes:
        settings: as given to --set, `name=value`.
        data_root: as a whole path; empty for generated data.
        objective, trials, study: of a search alone.
    """

    grid: str
    preset: str
    settings: tuple[str, ...] = ()
    selections: tuple[Selection, ...] = (Selection(),)
    data_root: str = ""
    objective: str = ""
    trials: int = 0
    study: str = ""

    @property
    def label(self) -> str:
        """What tells it apart from others of the same grid, for people."""
        shown = [text for text in self.settings if not text.startswith("runtime.")]
        return " ".join([self.study or self.preset, *([] if self.study else shown)])

    def base(self, runtime: Mapping[str, str] | None = None) -> Config:
        """The Config that every cell is derived from.

        Args:
            runtime: settings of `runtime` that this machine needs, unless the command has set them.

        Raises:
            ConfigError: an unknown name, or a setting that the grid itself varies.
        """
        given = parse_settings(self.settings)
        for path in given:
            if path in SHARED_AXES:
                raise ConfigError(f"--set {path}: use {SHARED_AXES[path]} instead")
            if self.grid in GRIDS and path in GRIDS[self.grid].baseline:
                raise ConfigError(f"--set {path}: the grid {self.grid} varies it")
        base = preset(self.preset, {**(runtime or {}), **given})
        if base.data.toy and self.data_root:
            raise ConfigError(
                f"the {self.preset} preset draws generated scenes and would leave --data-root "
                f"{self.data_root} alone: use --preset small or paper, or no --data-root"
            )
        refuse_oracle(base)
        return base

    def cells(self, base: Config | None = None) -> list[Config]:
        """The Configs that were asked for, each once.

        Args:
            base: instead of this spec's own, with `runtime` settings.

        Raises:
            ConfigError: as `base`; or the grid has no cell on these benchmarks with these budgets.
        """
        base = base or self.base()
        grid = GRIDS[self.grid]
        return union(*(grid.cells(base, s.benchmarks, s.budgets, s.seeds) for s in self.selections))

    def around(self, base: Config | None = None) -> Grid:
        """The grid with the baseline's open values taken from the settings."""
        return GRIDS[self.grid].around(base or self.base())

    def key(self) -> str:
        """What tells apart specs whose cells cannot be compared: 16 hexadecimal digits.

        Seeds, budgets and benchmarks do not count, nor does where the data are: settings of `runtime`
        change no result.
        """
        content = self.study or self.base().key()
        return hashlib.sha256(f"{self.grid} {content}".encode()).hexdigest()[:16]

    def with_earlier(self, earlier: "Spec") -> "Spec":
        """This spec with the cells that an earlier command of the same key has asked for as well."""
        selections = list(self.selections)
        for old in earlier.selections:
            for i, new in enumerate(selections):
                if (joined := _joined(new, old)) is not None:
                    selections[i] = joined
                    break
            else:
                selections.append(old)
        return replace(self, selections=tuple(selections))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        """Raises ConfigError if another version has written it."""
        try:
            fields = json.loads(text)
            selections = tuple(Selection.from_fields(**one) for one in fields.pop("selections"))
            return cls(
                **{**fields, "settings": tuple(fields["settings"]), "selections": selections}
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"the spec {text[:100]!r} was written by another version") from error


@dataclass(frozen=True)
class Job:
    """One grid of a command.

    Attributes:
        grid: with its baseline.
        configs: the cells to run: without those that cannot run here.
    """

    spec: Spec
    grid: Grid
    configs: list[Config] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.spec.grid


def _joined(new: Selection, old: Selection) -> Selection | None:
    """One selection of just the cells of both, if there is one: they may differ in one axis."""
    if (new.benchmarks, new.seeds) == (old.benchmarks, old.seeds):
        if new.budgets is None or old.budgets is None:
            same = new.budgets is old.budgets
            return new if same else None
        return replace(new, budgets=_both(new.budgets, old.budgets))
    if (new.benchmarks, new.budgets) == (old.benchmarks, old.budgets):
        return replace(new, seeds=_both(new.seeds, old.seeds))
    if (new.budgets, new.seeds) == (old.budgets, old.seeds) and new.benchmarks and old.benchmarks:
        return replace(new, benchmarks=_both(new.benchmarks, old.benchmarks))
    return None


def _both(new: Sequence[T], old: Sequence[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys([*old, *new]))
