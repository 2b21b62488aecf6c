from __future__ import annotations

import pytest

from vmimage.cache.changes import differences, why_new

OLD: dict[str, object] = {
    "edition": 3,
    "after": "base/1",
    "pins": {"helm": {"version": "v4.3.0", "sha256": "a"}, "k3s": {"version": "v1", "sha256": "b"}},
    "files": {"provision/30-k3s.sh": "x 1", "provision/gone": "x 2"},
    "tools": {"packer": "1.6.6"},
    "packages": ["less", "nano"],
    "period": "2026-W47",
    "facts": {"versions": {"helm": "v4.3.0"}},
}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, []),
        ({"after": "base/2"}, []),
        ({"files": {"provision/30-k3s.sh": "x 9", "provision/gone": "x 2"}}, ["provision/30-k3s.sh changed"]),
        (
            {"files": {"provision/30-k3s.sh": "x 1", "provision/new": "x 3"}},
            ["provision/gone is gone", "provision/new is new"],
        ),
        (
            {
                "pins": {"helm": {"version": "v4.3.1", "sha256": "c"}, "k3s": {"version": "v1", "sha256": "b"}},
                "facts": {"versions": {"helm": "v4.3.1"}},
            },
            ["helm v4.3.0 -> v4.3.1"],
        ),
        (
            {"pins": {"helm": {"version": "v4.3.0", "sha256": "c"}, "k3s": {"version": "v1", "sha256": "b"}}},
            ["helm has another SHA-256"],
        ),
        ({"pins": {"k3s": {"version": "v1", "sha256": "b"}}}, ["helm is gone"]),
        ({"tools": {"packer": "1.15.0"}}, ["packer 1.6.6 -> 1.15.0"]),
        ({"packages": ["less", "vim"]}, ["packages: nano is gone", "packages: vim is new"]),
        ({"period": "2026-W48"}, ["fresh packages: 2026-W47 -> 2026-W48"]),
        ({"edition": 4}, ["edition: 3 -> 4"]),
    ],
)
def test_differences_in_words(changed: dict[str, object], told: list[str]) -> None:
    assert differences(OLD, OLD | changed) == told


def test_nearest_earlier_result_tells() -> None:
    far = OLD | {"edition": 1, "tools": {}, "packages": []}
    near = OLD | {"period": "2026-W46"}
    assert why_new(OLD, [far, near]) == "fresh packages: 2026-W46 -> 2026-W47"


def test_nothing_changed_but_what_it_builds_on() -> None:
    assert why_new(OLD, [OLD | {"after": "base/9"}]) == "what it builds on changed"


def test_only_the_same_step_is_compared() -> None:
    layer = {"script": "10-system.sh", "after": "base/1"}
    assert why_new(layer, [{"script": "20-kubectl.sh", "after": "base/1"}]) == "nothing like it was made before"
    assert why_new(layer, []) == "nothing like it was made before"


def test_many_differences_are_counted() -> None:
    new = OLD | {"packages": ["a", "b", "c", "d", "less", "nano"], "edition": 4}
    assert why_new(new, [OLD]).endswith("packages: c is new and 1 more")
