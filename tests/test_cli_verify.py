from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from featurestore import FeatureStore
from featurestore.online.keys import online_key
from featurestore.parity.findings import Cause, Difference, Kind, Parity, ViewParity
from featurestore.parity.page import page
from tests.commands import Run


def spoil(folder: Path) -> None:
    """Change a value in the online store behind the store's back."""
    with FeatureStore(folder) as store:
        [version] = store.applied().versions
        client: Any = store.online.topology.client(store.online.topology.layout().endpoints[0])
        name = online_key(version.uid, b"pump_1")
        client.set(name, client.get(name)[:-1] + b"\x7f")


def test_verify_says_that_all_agree_and_exits_with_0(run: Run, fresh: Path) -> None:
    """A line for each view, and the verdict; JSON has the features."""
    run("materialize", repo=fresh)
    record = run("verify", "--json", repo=fresh).json()
    assert run("verify", "--all", repo=fresh).out.endswith("3 keys, 9 values compared: serving and training agree\n")
    assert (record["differences"], record["compared"], record["is_over_threshold"], record["threshold"]) == (0, 3, False, 0)
    [view] = record["views"]
    assert [each["feature"] for each in view["features"]] == ["temperature", "vibration", "restarts"]
    assert view["features"][0] == {
        "feature": "temperature", "compared": 3, "equal": 3, "different": 0, "missing_online": 0, "extra_online": 0,
    }  # fmt: skip


@pytest.mark.parametrize("options", [(), ("--all", "--threshold", "5"), ("--from-log",)])
def test_verify_of_nothing_does_not_say_that_all_agree(run: Run, fresh: Path, options: tuple[str, ...]) -> None:
    """Before anything is loaded or logged there is nothing to compare: the verdict says so, and no gate opens."""
    shown, result = run("verify", *options, repo=fresh), run("verify", *options, "--json", repo=fresh)
    assert (shown.code, shown.err) == (1, "")
    assert shown.out.endswith("\nnothing was compared\n")
    assert (result.code, result.err, json.loads(result.out)["compared"]) == (1, "", 0)


def test_verify_exits_with_1_above_its_threshold(run: Run, fresh: Path) -> None:
    """The answer is there all the same: which key, which feature, both values, and the cause."""
    run("materialize", repo=fresh)
    spoil(fresh)
    result = run("verify", repo=fresh)
    assert (result.code, result.err) == (1, "")
    assert "machine_health sensor_id=pump_1: different, write outside the store: its header names run 1" in result.out
    assert result.out.endswith("3 keys, 9 values compared: 1 of them differs\n")
    assert run("verify", "--threshold", "1", repo=fresh).code == 0
    assert run("verify", "machine_health", "--service", "machine_health_v1", repo=fresh).code == 1
    assert run("verify", "machine_helth", repo=fresh).err.startswith("error: ")


class _Reader(HTMLParser):
    """Reads a page strictly: what opens closes, and nothing is fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert not {"src", "href", "onload", "onerror"} & {name for name, _ in attrs}
        if tag not in ("meta", "br", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


HOSTILE = '<script>alert("1")</script>&amp;\'\u202e\0'


def read(text: str) -> _Reader:
    """Return what a strict reader finds on a page."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_needs_nothing_else_and_escapes_what_it_shows() -> None:
    """Keys, values, notes and names that look like HTML are text, controls are spelled out; the plots are there."""
    view = ViewParity("view", 1, 0, compared=4, features_compared=("a", "b"), notes=[HOSTILE])
    view.add([Difference(Kind.DIFFERENT, Cause.LATE_ROWS, HOSTILE, {"k": HOSTILE}, {"a": (HOSTILE, None)})])
    view.add([Difference(Kind.EXTRA, Cause.WRITE_OUTSIDE, HOSTILE, {})])
    found = Parity(0, None, (view, ViewParity("other", 2, None, skipped="never loaded online")))
    reader = read(page(found))
    assert {"script", "link", "img", "iframe"}.isdisjoint(reader.seen)
    assert reader.seen.count("svg") == 1 + 2 + 2  # the view, its features, the causes
    shown = "".join(reader.text)
    assert '<script>alert("1")</script>&amp;\'\\x202e\\x00' in shown
    assert "2 of 4 keys differ" in shown
    assert "never loaded online" in shown


def test_a_bar_shows_each_part_however_small() -> None:
    """Among millions of equal keys the few of each other outcome are seen side by side, within the bar."""
    view = ViewParity("v", 1, 0, compared=10**7)
    view.add([Difference(kind, Cause.UNKNOWN, "", {}) for kind in Kind])
    bar = re.findall(r'<rect x="([0-9.]+)" width="([0-9.]+)"', page(Parity(0, None, (view,))).split("<h2>")[0])
    places, widths = [float(x) for x, _ in bar], [float(width) for _, width in bar]
    assert len(bar) == 4
    assert min(widths) == 2.0
    assert [x + width for x, width in zip(places, widths, strict=True)] == [*places[1:], 240.0]


def test_a_page_of_nothing_says_so() -> None:
    """What was not compared does not agree."""
    assert "Nothing was compared" in page(Parity(0, None, ()))


def test_the_command_writes_the_page(run: Run, fresh: Path, tmp_path: Path) -> None:
    """`--html` names a file; one that cannot be written is an error."""
    run("materialize", repo=fresh)
    target = tmp_path / "parity.html"
    assert run("verify", "--html", target, repo=fresh).out.endswith(f"report: {target}\n")
    assert "Serving and training agree" in "".join(read(target.read_text("utf-8")).text)
    assert "cannot write" in run("verify", "--html", tmp_path / "no/such.html", repo=fresh).err
