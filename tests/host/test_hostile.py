"""Hostile inputs, made from good ones, for everything that reads what others wrote.

Each is refused with an error of its kind, or taken for a reason that its family states; within time and memory, with
nothing written elsewhere and the user's files as they were. See tests/hostile/.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.host.test_fuzz_formats import Corpus, corpus
from tests.hostile.answers import FAMILIES as ANSWERS
from tests.hostile.bundles import BUNDLES
from tests.hostile.disks import DISKS
from tests.hostile.records import RECORDS
from tests.hostile.signed import SIGNED
from tests.hostile.texts import TEXTS
from tests.hostile.trial import Case, Family, try_all, unused

__all__ = ["corpus"]
LEAST = 400
"""Inputs in all; and so many that have to be refused."""
tried: list[Family] = []
"""Those that were, without their bytes."""


def require_sound(family: Family, base: Path) -> None:
    names = [case.name for case in family.cases]
    assert len(set(names)) == len(names), "two have one name"
    assert not unused(family), "a reason for an input that is not there"
    wrong = try_all(family, base)
    tried.append(replace(family, cases=tuple(Case(name=name, data=b"") for name in names)))
    assert not wrong, "\n".join(f"{name}: {why}" for name, why in wrong.items())


@pytest.mark.parametrize("name", TEXTS)
def test_hostile_texts(name: str, tmp_path: Path) -> None:
    require_sound(TEXTS[name](tmp_path / "made"), tmp_path)


@pytest.mark.parametrize("name", RECORDS)
def test_hostile_records(name: str, tmp_path: Path) -> None:
    require_sound(RECORDS[name](tmp_path / "made"), tmp_path)


@pytest.mark.parametrize("name", SIGNED)
def test_hostile_signed(name: str, tmp_path: Path) -> None:
    require_sound(SIGNED[name](tmp_path / "made"), tmp_path)


@pytest.mark.parametrize("name", ANSWERS)
def test_hostile_answers(name: str, tmp_path: Path) -> None:
    require_sound(ANSWERS[name](), tmp_path)


@pytest.mark.parametrize("name", BUNDLES)
def test_hostile_bundles(name: str, tmp_path: Path) -> None:
    require_sound(BUNDLES[name](tmp_path / "made"), tmp_path)


@pytest.mark.parametrize("name", DISKS)
def test_hostile_disks(name: str, corpus: Corpus, tmp_path: Path) -> None:
    require_sound(DISKS[name](corpus, tmp_path / "made"), tmp_path)


def test_there_are_many() -> None:
    if len(tried) < len([*TEXTS, *RECORDS, *SIGNED, *ANSWERS, *BUNDLES, *DISKS]):
        pytest.skip("not all of them were tried")
    assert sum(len(family.cases) for family in tried) >= LEAST
    assert sum(family.must_be_refused(case.name) for family in tried for case in family.cases) >= LEAST
