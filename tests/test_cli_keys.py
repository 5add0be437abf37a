from __future__ import annotations

from pathlib import Path

import pytest

from featurestore import FeatureStore
from tests.commands import Run
from tests.conftest import WEATHER, Repo


@pytest.fixture
def folder(weather_repo: Repo) -> Path:
    """A repo whose service is applied."""
    weather_repo.define(WEATHER)
    with FeatureStore(weather_repo.folder) as store:
        store.apply()
    return weather_repo.folder


def test_a_key_from_its_creation_to_its_end(run: Run, folder: Path) -> None:
    """Creating shows the secret once, listing never, and revoking puts the key out of force; JSON says the same."""
    made = run("keys", "create", "shop", "-r", "read-online", "-r", "write", "-s", "flight_weather", "--json", repo=folder).json()
    [listed] = run("keys", "list", "--json", repo=folder).json()
    secret = made.pop("key")

    assert secret.startswith(f"fsk_{made['id']}_")
    assert listed == made
    assert (made["roles"], made["services"], made["revoked_at"]) == (["read-online", "write"], ["flight_weather"], None)
    shown = run("keys", "list", repo=folder).out
    assert secret not in shown
    assert shown.splitlines()[1].split()[:5] == ["shop", made["id"], "read-online,", "write", "flight_weather"]
    assert run("keys", "revoke", "shop", "--json", repo=folder).json() == {"id": made["id"], "name": "shop", "revoked": True}
    assert "revoked 20" in run("keys", "list", repo=folder).out


def test_a_key_is_shown_to_people_with_how_to_send_it(run: Run, folder: Path) -> None:
    """The text stands on a line of its own, fit to be copied."""
    assert "There is no key" in run("keys", "list", repo=folder).out
    lines = run("keys", "create", "shop", "--role", "admin", repo=folder).out.splitlines()

    assert [line for line in lines if line.startswith("fsk_")]
    assert lines[-1] == "Send it as a header: Authorization: Bearer KEY"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["create", "shop", "-r", "root"], 1, "'root' is no role; the roles are read-online, read-offline, write, admin"),
        (["create", "shop"], 2, "--role"),
        (["create", "shop", "-r", "admin", "-s", "flight_wether"], 1, "did you mean 'flight_weather'?"),
        (["revoke", "shop"], 1, "no API key in force 'shop'; there is none yet"),
        (["rotate"], 2, "'rotate'"),
        ([], 2, "Usage: featurestore keys"),
    ],
)
def test_wrong_commands_about_keys(run: Run, folder: Path, arguments: list[str], code: int, message: str) -> None:
    """Unknown roles, services, keys and commands are refused with what there is."""
    result = run("keys", *arguments, repo=folder)

    assert (result.code, result.out) == (code, "")
    assert message in result.err
