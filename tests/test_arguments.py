"""A command's arguments, read off its signature."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import pytest

from mde import arguments
from mde.arguments import FLAT, MISSING, Changed
from mde.commands import pipeline
from mde.study import STAGES


@dataclass(frozen=True)
class Size:
    """Of a thing.

    Attributes:
      width: metres
        across.
      height: metres.
    """

    width: float
    height: float = 2.0


def build(
    study: Any,
    name: str,
    flat: Annotated[Size, FLAT],
    other: Size = Size(3.0, 4.0),
    change: Annotated[Mapping[str, Any] | None, Changed(Size, without=("height",))] = None,
) -> dict[str, Any]:
    """Builds.

    Args:
      name: of it.
    """
    return {"name": name, "flat": flat, "other": other, "change": change}


def test_objects_stand_for_their_fields():
    found = arguments.arguments(build)
    assert list(found) == ["name", "width", "height", "other.width", "other.height", "change.width"]
    defaults = [argument.default for argument in found.values()]
    assert defaults == [MISSING, MISSING, 2.0, 3.0, 4.0, None]
    assert found["width"].text == found["other.width"].text == "metres across."
    assert found["name"].text == "of it."
    assert found["change.width"].annotation == float | None


def test_a_call_is_given_objects_and_changes_only_what_is_changed():
    given = {"name": "x", "width": 1.0, "height": 5.0, "other.width": 6.0, "other.height": 7.0, "change.width": None}
    made = build(None, **arguments.keywords(build, given))
    assert made == {"name": "x", "flat": Size(1.0, 5.0), "other": Size(6.0, 7.0), "change": {}}
    assert arguments.keywords(build, given | {"change.width": 8.0})["change"] == {"width": 8.0}


def test_objects_and_mappings_are_taken_apart():
    assert arguments.flattened(build, {"flat": Size(1.0), "other": {"width": 9.0}, "change": {"width": 2.0}}) == {
        "width": 1.0,
        "height": 2.0,
        "other.width": 9.0,
        "change.width": 2.0,
    }
    assert arguments.flattened(build, {"other": {"wdth": 9.0}}) == {"other.wdth": 9.0}


@pytest.mark.parametrize("name", [*STAGES, *pipeline.TOOLS])
def test_every_argument_of_every_command_is_described(name):
    assert [key for key, argument in pipeline.parameters(name).items() if not argument.text] == []
