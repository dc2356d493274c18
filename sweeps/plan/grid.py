"""What a grid is: which Configs answer a question, and what its variants are called."""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from semidavil.config import Config, ConfigError
from sweeps.plan.combine import Selection, union


@dataclass(frozen=True)
class Grid:
    """A grid's function and what is fixed about it."""

    build: Callable[[Config, Selection], list[Config]]
    # The settings that it varies, with the values that the others are compared to; None stands for the
    # value that the preset has.
    baseline: Mapping[str, Any]
    benchmarks: tuple[str, ...]  # unless told otherwise; toy runs take the first alone
    shown: tuple[str, ...] = ()  # of the settings that it varies, those that name a variant; or all
    name_of: Callable[[Mapping[str, str]], str] | None = None  # names it instead, from flat params
    swept: tuple[str, ...] = ()  # settings that --set varies besides
    first: Mapping[str, Any] = field(default_factory=dict)  # of a list of settings, the baseline's
    # Of a list of settings with names: name to settings.
    named: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def around(self, base: Config) -> "Grid":
        """This grid with the baseline's open values taken from `base`."""
        place = {"data.benchmark": self.benchmarks[0]} if self.first and self.benchmarks else {}
        params = base.replace({**place, **self.first}).to_params()
        known = {axis: params[axis] if v is None else v for axis, v in self.baseline.items()}
        if not self.named:
            return replace(self, baseline=known)
        whole = {
            name: base.replace({**place, **settings}).to_params()
            for name, settings in self.named.items()
        }
        return replace(self, baseline=known, name_of=_namer(whole, tuple(self.baseline)))

    def sweeping(self, axes: Sequence[str]) -> "Grid":
        """This grid with settings that every variant has several values of; see `around`."""
        return replace(
            self, baseline={**self.baseline, **dict.fromkeys(axes)}, swept=(*self.swept, *axes)
        )

    @property
    def about(self) -> str:
        return inspect.getdoc(self.build) or ""

    def cells(
        self,
        base: Config,
        benchmarks: Sequence[str] = (),
        budgets: Sequence[int] = (),
        seeds: Sequence[int] = (0,),
    ) -> list[Config]:
        """The grid's Configs around `base`, each once; raises ConfigError if none is left."""
        chosen = benchmarks or (self.benchmarks[:1] if base.data.toy else self.benchmarks)
        which = Selection(tuple(chosen), tuple(budgets), tuple(seeds))
        cells = union(self.build(base, which))
        if not cells:
            raise ConfigError(
                f"this grid has no run on {', '.join(chosen)} with {' or '.join(map(str, budgets))} labelled "
                "images: give other --budgets"
            )
        return cells

    def variant(self, config: Config) -> str:
        """What sets `config` apart within the grid: `vlga`; with settings that are swept `vlga+lr=0.001`."""
        params = config.to_params()
        if self.name_of:
            names = [self.name_of(params)]
        else:
            axes = self.shown or [axis for axis in self.baseline if axis not in self.swept]
            names = [params[axis] for axis in axes]
        return "+".join([*names, *(f"{short(axis)}={params[axis]}" for axis in self.swept)])

    def difference(self, config: Config) -> str:
        """How `config` differs from the baseline: `fusion=vlga, loss=ce`; empty for the baseline itself."""
        params = config.to_params()
        return ", ".join(
            f"{short(axis)}={params[axis]}"
            for axis, value in self.baseline.items()
            if params[axis] != str(value)
        )

    def name(self, config: Config) -> str:
        """A readable name of one cell: `gta5-cityscapes/dlg/100/s0`."""
        data = config.data
        return f"{data.benchmark}/{self.variant(config)}/{data.budget}/s{config.seed}"


def short(path: str) -> str:
    """A setting's name in print: `model.fusion` is `fusion`, `loss.name` is `loss`."""
    return path.removesuffix(".name").rpartition(".")[2]


def _namer(
    whole: Mapping[str, Mapping[str, str]], axes: Sequence[str]
) -> Callable[[Mapping[str, str]], str]:
    """Names a variant by all settings that its grid varies, also those which it leaves as they were.

    Where none has all of them, as with another base, the name is that of the variant which has most.
    """

    def name_of(params: Mapping[str, str]) -> str:
        return max(whole, key=lambda name: sum(whole[name][axis] == params[axis] for axis in axes))

    return name_of


def require_known(name: str, table: Mapping[str, object], what: str) -> None:
    """Raises ConfigError, with the names that are meant or all, for one that is not in the table."""
    if name not in table:
        close = difflib.get_close_matches(name, table, n=2, cutoff=0.5)
        hint = f"; did you mean {' or '.join(close)}?" if close else "."
        raise ConfigError(f"unknown {what} {name!r}{hint} There are: {', '.join(table)}")
