"""What a command asks for, in the form in which the tracking store keeps it.

spec = Spec("attention", preset="toy", selections=(Selection(seeds=(0, 1)),))
spec.cells()                             # the Configs, the same ones on every machine
Spec.from_json(spec.to_json()) == spec
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace

from semidavil.config import Config, ConfigError, parse_settings, preset
from sweeps.plan.combine import Selection, union
from sweeps.plan.grid import Grid
from sweeps.plan.grids import GRIDS
from sweeps.plan.narrow import narrowed, variations
from sweeps.plan.needs import Lacking


@dataclass(frozen=True)
class Spec:
    """A grid with settings, and which of its cells were asked for. Of a search: its study."""

    grid: str
    preset: str
    # As given to --set, `name=value`, without those of `runtime`, which change no result.
    settings: tuple[str, ...] = ()
    selections: tuple[Selection, ...] = (Selection(),)
    trials: int = 0  # of a search alone, as is the study
    study: str = ""
    swept: tuple[str, ...] = ()  # settings with several values: `training.lr=1e-4,3e-4`
    plugins: tuple[str, ...] = ()  # ids of those that it uses, see `semidavil.plugins`

    @property
    def label(self) -> str:
        """What tells it apart from others of the same grid, for people."""
        return self.study or " ".join([self.preset, *self.settings, *self.swept])

    def base(self) -> Config:
        """The Config that every cell is derived from, without what a machine adds."""
        return preset(self.preset, parse_settings(self.settings))

    def cells(self, base: Config | None = None) -> list[Config]:
        """The Configs that were asked for, each once, around `base`, which may have settings of `runtime`.

        Raises ConfigError if the grid has no cell on these benchmarks with these budgets.
        """
        base = base or self.base()
        grid = self.around(base)
        return union(
            *(
                narrowed(self.all_cells(base, selection), selection.only, grid)
                for selection in self.selections
            )
        )

    def all_cells(self, base: Config, selection: Selection) -> list[Config]:
        """A selection's Configs before they are narrowed by `only`."""
        each = (selection.benchmarks, selection.budgets, selection.seeds)
        bases = variations(base, self.swept)
        return union(*(GRIDS[self.grid].cells(one, *each) for one in bases))

    def around(self, base: Config) -> Grid:
        """The grid with the baseline's open values taken from the settings."""
        axes = parse_settings(self.swept)
        first = variations(base, self.swept)[0]
        return GRIDS[self.grid].sweeping(tuple(axes)).around(first)

    def key(self) -> str:
        """What tells apart specs whose cells cannot be compared: 16 hexadecimal digits.

        Seeds, budgets and benchmarks do not count.
        """
        content = " ".join([self.study or self.base().key(), *self.swept])
        return hashlib.sha256(f"{self.grid} {content}".encode()).hexdigest()[:16]

    def with_earlier(self, earlier: "Spec") -> "Spec":
        """This spec with the cells that an earlier command of the same key has asked for as well."""
        both = dict.fromkeys([*earlier.selections, *self.selections])
        return replace(self, selections=tuple(both))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        """Raises ConfigError if another version has written it."""
        try:
            fields = json.loads(text)
            selections = [
                Selection(**{name: tuple(values) for name, values in one.items()})
                for one in fields.pop("selections")
            ]
            for name in ("settings", "swept", "plugins"):
                fields[name] = tuple(fields.get(name, ()))
            return cls(selections=tuple(selections), **fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"the spec {text[:100]!r} was written by another version") from error


@dataclass(frozen=True)
class Job:
    """One grid of a command."""

    spec: Spec
    grid: Grid  # with its baseline
    configs: list[Config]  # the cells to run: without those whose data are wrong
    lacking: Lacking = field(default_factory=dict)  # what some of them need that is not here

    @property
    def name(self) -> str:
        return self.spec.grid
