"""What cells would see now, to be compared with what their runs have seen."""

from collections.abc import Mapping
from functools import cached_property, partial

from semidavil.config import Config
from semidavil.data.files import DataError, hash_files, recall_hashes
from semidavil.data.fingerprint import Part, fingerprint
from semidavil.settings import Runtime
from sweeps.track.provenance import owner_tags
from sweeps.track.runs import TrackedRun

ELSEWHERE = "the data are on other machines"


class PresentData:
    """Fingerprints of what is here; thousands of cells with the same data cost one.

    Args:
        runtime: where data and caches are; None where this machine cannot say.
        read: read files that are not known yet, with a bar; else nothing is written, and what would take long
            is not compared.
        why_not: without a runtime, why; empty where there is nothing to say.
    """

    def __init__(
        self, runtime: Runtime | None, read: bool = False, why_not: str = ELSEWHERE
    ) -> None:
        self.runtime, self.why_not = runtime, why_not
        # Why something that was asked for is not known, each reason once, in order.
        self.unknown: dict[str, None] = {}
        self._hashes = partial(hash_files, progress=True) if read else recall_hashes
        self._parts: dict[Part, str] = {}
        self._of: dict[tuple[object, ...], str] = {}

    @classmethod
    def of_overview(cls, overview: TrackedRun) -> "PresentData":
        """What the last command of a sweep has compared with, if it was this machine's."""
        tags = overview.tags
        if "data_root" not in tags or tags.get("host") != owner_tags()["host"]:
            return cls(None, why_not=f"the data are on {tags.get('host', 'another machine')}")
        folders = tags.get("folders", "")  # which earlier versions did not know
        return cls(
            Runtime(data_root=tags["data_root"], cache_dir=tags["cache_dir"], folders=folders)
        )

    @cached_property
    def tags(self) -> Mapping[str, str]:
        """Of the overview of a sweep, for `of_overview`."""
        if self.runtime is None:
            return {}
        runtime = self.runtime
        tags = {"data_root": runtime.data_root, "cache_dir": runtime.cache_dir}
        return tags | ({"folders": runtime.folders} if runtime.folders else {})

    def of(self, config: Config) -> str:
        """The fingerprint of what a run of `config` would see; empty where it is not known."""
        if self.runtime is None:
            self.unknown |= {self.why_not: None} if self.why_not else {}
            return ""
        about = config.data, config.model, config.training.method
        if about not in self._of:
            here = config.model_copy(update={"runtime": self.runtime})
            try:
                self._of[about] = fingerprint(here, self._hashes, self._parts)
            except (DataError, OSError) as error:
                self._of[about] = ""
                self.unknown[str(error)] = None
        return self._of[about]


NOT_COMPARED = PresentData(None, why_not="")
