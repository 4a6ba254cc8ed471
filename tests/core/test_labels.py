"""Labels: which nodes fit is decided in one place."""

import pytest

from zmesh.core.labels import amount_of, said
from zmesh.core.records import in_group, outside_group
from zmesh.core.resources import Resources
from zmesh.core.victim import Victim
from zmesh.wire.messages import UNIT

ZONE_A = {"CPU": UNIT, "label:zone": 1 << 40, "label:zone=a": 1 << 40}
NONE = {"CPU": UNIT}


@pytest.mark.parametrize(
    ("mark", "in_a", "without"),
    [
        ("label:zone=a", True, False),
        ("label:zone", True, False),
        ("labels:zone=a,b", True, False),
        ("labels:zone=b,c", False, False),
        ("labels:zone!=a", False, True),
        ("labels:zone!=b,c", True, True),
        ("labels:!zone", False, True),
    ],
)
def test_a_node_fits_if_its_labels_do(mark: str, in_a: bool, without: bool) -> None:
    assert bool(amount_of(mark, ZONE_A)) == in_a
    assert bool(amount_of(mark, NONE)) == without
    for total, fits in ((ZONE_A, in_a), (NONE, without)):
        resources = Resources(total)
        shape = {"CPU": UNIT, mark: 1}
        assert resources.fits(shape) == fits
        assert (resources.missing(shape) == "") == fits
        assert resources.count(shape, total) == fits


def test_a_label_with_an_at_sign_is_of_no_placement_group() -> None:
    mark = "label:mail=me@host"
    assert not in_group(mark)
    assert outside_group({"CPU": UNIT, mark: 1}) == {"CPU": UNIT, mark: 1}
    assert Resources(NONE).missing({mark: 1}) != ""
    assert Victim.describe({"CPU": UNIT, mark: 1, "spread": 1}) == "CPU 1, label mail=me@host, spread"


def test_what_a_selection_books_is_what_is_beside_it() -> None:
    resources = Resources(ZONE_A)
    booking = resources.book({"CPU": UNIT, "labels:zone!=b": 1})
    assert resources.available["CPU"] == 0
    resources.release(booking)
    assert resources.available == ZONE_A
    resources.check()


def test_a_missing_label_is_said_as_a_person_would() -> None:
    assert "label zone=b" in Resources(ZONE_A).missing({"label:zone=b": 1})
    assert said("labels:zone=a,b") == "label zone in (a,b)"
    assert said("labels:zone!=a,b") == "label zone not in (a,b)"
    assert said("labels:!zone") == "lack of a label zone"
    assert said("CPU") == ""
