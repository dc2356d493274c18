"""What can be chosen by name is what the modules have."""

from semidavil import names
from semidavil.language.captioners import CAPTIONERS
from semidavil.losses import LOSSES
from semidavil.methods.base import Method
from semidavil.methods.table import METHODS
from semidavil.methods.volume_method import VolumeMethod
from semidavil.models.fusion import FUSIONS


def test_the_tables_hold_the_same_names_in_the_same_order() -> None:
    assert tuple(FUSIONS) == tuple(names.FUSIONS)
    assert tuple(LOSSES) == tuple(names.LOSSES)
    assert tuple(CAPTIONERS) == tuple(names.CAPTIONERS)
    assert tuple(METHODS) == tuple(names.METHODS)


def test_a_methods_kind_is_that_of_its_class() -> None:
    for name, traits in names.METHODS.items():
        base = {"images": Method, "volumes": VolumeMethod}[traits.kind]
        assert issubclass(METHODS[name], base), name
        assert traits.streams <= set(names.STREAMS)
