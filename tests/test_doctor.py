from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import redis

from featurestore.doctor import Finding, examine
from featurestore.materialize import offline_table
from featurestore.online import embedded
from tests.commands import Run
from tests.conftest import HOUR, NOON, WEATHER, Repo, at
from tests.test_push import crew, define


def found(repo: Repo, *checks: str) -> list[Finding]:
    """Return what some checks found, or all that is not well."""
    return [each for each in examine(repo.folder) if each.check in checks or (not checks and each.level != "ok")]


@pytest.fixture
def running(weather_repo: Repo, monkeypatch: pytest.MonkeyPatch) -> Repo:
    """The weather's repo at a fixed noon, applied and materialized."""
    monkeypatch.setenv("FEATURESTORE_NOW", at(NOON).isoformat())
    monkeypatch.setenv("FEATURESTORE_REGISTRY__URL", "sqlite:///.featurestore/registry.db")
    store = weather_repo.open()
    store.apply()
    store.materialize()
    return weather_repo


def client(repo: Repo) -> redis.Redis:
    """Return a client of the repo's embedded server."""
    return redis.Redis(unix_socket_path=str(embedded.ensure_running(repo.folder / ".featurestore/online")))


def test_a_repo_that_is_well_has_nothing_to_do(running: Repo) -> None:
    """Every check of a healthy repo is ok, but for the present, which this one fixes."""
    assert [(each.check, each.level) for each in examine(running.folder)] == [
        ("libraries", "ok"),
        ("settings", "ok"),
        ("settings", "warn"),
        ("definitions", "ok"),
        ("state folder", "ok"),
        ("offline store", "ok"),
        ("online store", "ok"),
        ("clock", "ok"),
        ("registry", "ok"),
        ("plan", "ok"),
        ("coverage", "ok"),
    ]


def test_it_makes_and_starts_nothing(weather_repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything was applied there is no registry, and after the examination neither; no server runs."""
    monkeypatch.setenv("FEATURESTORE_REGISTRY__URL", "sqlite:///.featurestore/registry.db")
    assert [each.message for each in found(weather_repo, "registry")] == [
        "there is none yet at sqlite:///.featurestore/registry.db"
    ]
    assert not (weather_repo.folder / ".featurestore").exists()


def test_settings_that_are_wrong_are_the_only_failure(weather_repo: Repo) -> None:
    """Nothing else can be examined without settings."""
    (weather_repo.folder / "featurestore.toml").write_text('project = "test"\ncolour = "red"\n')
    [failure] = found(weather_repo)
    assert (failure.check, failure.level) == ("settings", "fail")
    assert "colour" in failure.message


def test_faulty_definitions_are_listed(running: Repo) -> None:
    """Definitions that cannot be loaded fail, and the rest is examined all the same."""
    running.define("nonsense", "more.py")
    assert [each.level for each in found(running, "definitions", "coverage")] == ["fail", "ok"]


def test_servers_that_do_not_answer_fail(running: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each server that cannot be reached is a failure of its own that names it, without passwords."""
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", "redis://me:secret@127.0.0.1:1")
    monkeypatch.setenv("FEATURESTORE_REGISTRY__URL", f"postgresql://me:secret@/fs?host={running.folder}")
    online, registry = (each for each in examine(running.folder) if each.level == "fail")
    assert (online.check, registry.check) == ("online store", "registry")
    assert "secret" not in str(online) + str(registry)
    assert registry.todo == "start the database, or correct registry.url"


def test_postgresql_is_named_with_its_version_and_clock(running: Repo, monkeypatch: pytest.MonkeyPatch, postgres_url: str) -> None:
    """A registry on a server has a version to be new enough and a clock to compare."""
    monkeypatch.setenv("FEATURESTORE_REGISTRY__URL", postgres_url)
    registry, clock = found(running, "registry")[0], found(running, "clock")[-1]
    assert (registry.level, registry.message.split()[0], clock.level) == ("ok", "PostgreSQL", "ok")
    assert clock.message.endswith("from that of the registry")


def test_an_offline_store_that_cannot_be_written_fails(running: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that this user cannot write to is named."""
    (running.folder / "file").touch()
    monkeypatch.setenv("FEATURESTORE_OFFLINE__PATH", "file/offline")
    [finding] = found(running, "offline store")
    assert (finding.level, finding.message) == ("fail", f"{running.folder}/file cannot be written by this user")


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from featurestore.doctor import examine
list(examine(Path(sys.argv[1])))  # what it imports, another user may not be able to read
os.setgid(65534); os.setuid(65534)
for each in examine(Path(sys.argv[1])):
    print(each.level, each.check)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without rights")
@pytest.mark.parametrize(("mode", "online"), [(0o755, "ok"), (0o700, "fail")])
def test_a_state_folder_that_cannot_be_written_ends_no_examination(running: Repo, mode: int, online: str) -> None:
    """Whoever may only read is told so, and of all else that there is to see; a server is found without writing."""
    running.stores[0].stop()
    for folder in (running.folder, *running.folder.parents):
        if Path(tempfile.gettempdir()) in folder.parents:
            folder.chmod(0o755)
    (running.folder / ".featurestore/online").chmod(mode)
    command = [sys.executable, "-c", UNPRIVILEGED, str(running.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines()[4:7] == ["fail state folder", "fail offline store", f"{online} online store"]
    assert " registry\n" in done.stdout


@pytest.mark.parametrize(("free", "level"), [(3 * 1024**3, "ok"), (2 * 1024**3 - 1, "warn"), (200 * 1024**2 - 1, "fail")])
def test_little_room_is_a_warning_and_hardly_any_a_failure(
    running: Repo, monkeypatch: pytest.MonkeyPatch, free: int, level: str
) -> None:
    """Below 2 GiB a disk is to be looked at, below 200 MiB runs are about to fail."""
    monkeypatch.setattr("featurestore.doctor.shutil.disk_usage", lambda _: type("Usage", (), {"free": free}))
    assert [each.level for each in found(running, "offline store")] == [level]


@pytest.mark.parametrize(("skew", "level"), [(900_000, "ok"), (-5_000_000, "warn"), (61_000_000, "fail")])
def test_a_clock_that_goes_wrong_is_found(running: Repo, monkeypatch: pytest.MonkeyPatch, skew: int, level: str) -> None:
    """The online server's time is compared with this machine's."""
    from featurestore.online.store import OnlineStore

    server = OnlineStore.server

    def skewed(store: OnlineStore) -> dict[str, Any]:
        facts = server(store)
        return facts | {"time": facts["time"] + skew}

    monkeypatch.setattr(OnlineStore, "server", skewed)
    assert [each.level for each in found(running, "clock")] == [level]


def test_a_server_that_may_drop_rows_is_a_warning(running: Repo) -> None:
    """With a limit of memory, a policy that evicts rows makes entities unknown without a sign."""
    with client(running) as server:
        server.config_set("maxmemory", "100mb")
        assert found(running, "online store")[1:] == []
        server.config_set("maxmemory-policy", "allkeys-lru")
        _, policy = found(running, "online store")
        assert (policy.level, policy.todo) == ("warn", "set maxmemory-policy noeviction")
        server.config_set("maxmemory-policy", "noeviction")
        server.config_set("maxmemory", str(server.info()["used_memory"]))
        assert "uses over 90% of its maxmemory" in found(running, "online store")[1].message


def test_rows_that_the_online_store_lost_are_found(running: Repo) -> None:
    """A server whose marker is gone has lost rows; a run loads them again."""
    with client(running) as server:
        server.flushall()
    [finding] = found(running, "online rows")
    assert (finding.level, finding.todo) == ("fail", "featurestore materialize airport_weather")
    running.stores[0].materialize()
    assert found(running, "online rows") == []


def test_pushed_rows_that_the_online_store_lacks_are_found(repo: Repo) -> None:
    """What no push has written is a warning, what a load had written is lost; a run writes both, and an erasure is neither."""
    store = define(repo)
    store.push("crew", [crew("A", 1), crew("B", 1)])
    assert found(repo, "online rows") == []
    with client(repo) as server:
        server.flushall()
        assert [(each.level, each.todo.split(",")[0]) for each in found(repo, "online rows")] == [
            ("warn", "featurestore sync --views crew_state"), ("warn", "featurestore sync --views crew_minutes"),
        ]  # fmt: skip
        store.push("crew", [crew("C", 1)])
        store.materialize()
        store.delete_entities("aircraft", {"tail": ["A"]})
        assert found(repo, "online rows") == []
        server.flushall()
        assert [each.level for each in found(repo, "online rows")] == ["fail", "fail"]
        store.materialize()
    assert found(repo, "online rows") == []


def test_a_view_that_is_behind_or_not_loaded_is_a_warning(running: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Coverage that ended more than a refresh ago is a gap, and so is a table that is not loaded."""
    monkeypatch.setenv("FEATURESTORE_NOW", at(NOON + HOUR).isoformat())
    assert [each.level for each in found(running, "coverage")] == ["ok"]
    monkeypatch.setenv("FEATURESTORE_NOW", at(NOON + HOUR + 1).isoformat())
    [finding] = found(running, "coverage")
    assert finding.message.endswith("covers until 2013-06-01T12:00:00Z, more than its refresh ago")
    monkeypatch.setenv("FEATURESTORE_NOW", at(NOON).isoformat())
    monkeypatch.setattr("featurestore.online.store.OnlineLoad.write", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        running.stores[0].materialize(start=at(NOON - 3 * HOUR))
    [finding] = found(running, "coverage")
    assert finding.message.endswith("and not all of it is loaded online")


def test_a_table_that_is_gone_fails(running: Repo) -> None:
    """A table that the registry knows and that cannot be read is named."""
    store = running.stores[0]
    [version] = store.applied().versions
    log = offline_table(store.settings, version).folder / "_delta_log"
    for file in log.iterdir():
        file.write_text("nothing")
    assert [each.level for each in found(running, "state")] == ["fail"]


def test_leases_say_who_holds_them(running: Repo) -> None:
    """A view under a run is named with the process that has it."""
    store = running.stores[0]
    [version] = store.applied().versions
    with store.registry.lease(version):
        [finding] = found(running, "lease")
    assert finding.level == "ok"
    assert f"airport_weather v1 is being materialized by process {os.getpid()} since " in finding.message
    assert found(running, "lease") == []


KILLED = """
import os, signal, sys
from featurestore import FeatureStore
with FeatureStore(sys.argv[1]) as store:
    store.registry.cover = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    store.materialize(start="2013-06-01T01:00:00Z")
"""


def test_a_run_that_was_killed_is_a_warning(running: Repo) -> None:
    """A run that is open in the registry and whose lease is free was killed; the next one goes on."""
    killed = subprocess.run([sys.executable, "-c", KILLED, str(running.folder)], timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    [finding] = found(running, "lease")
    assert (finding.level, finding.message) == ("warn", "a run of airport_weather v1 was killed")
    running.stores[0].materialize()
    assert found(running, "lease") == []


def test_candidates_and_what_waits_for_them_are_listed(running: Repo) -> None:
    """Each with what it needs; definitions that are not applied are a warning too."""
    running.define(WEATHER.replace('ttl="6h"', 'ttl="5h"'))
    assert [each.level for each in found(running, "plan")] == ["warn"]
    running.stores[0].apply()
    [finding] = found(running, "candidates")
    assert finding.message == (
        "feature view airport_weather waits for airport_weather v2: materialization until 2013-06-01T12:00:00Z"
    )
    assert [each.level for each in found(running, "plan")] == ["ok"]


def test_folders_that_no_version_names_are_found(running: Repo) -> None:
    """A table without a version takes room and is never read."""
    (running.folder / ".featurestore/offline/airport_weather/v9-0a1b2c3d").mkdir()
    [finding] = found(running, "removal")
    assert (finding.level, finding.message.split()[0].endswith("v9-0a1b2c3d")) == ("warn", True)


def test_the_command_exits_with_1_on_a_failure(run: Run, tmp_path: Path, plant: Path) -> None:
    """Every line is a level, a check and what it found; --json has the same, and warnings alone are no failure."""
    good = run("doctor", repo=plant)
    assert (good.code, good.err) == (0, "")
    assert "ok   coverage       machine_health v1 covers until 2024-01-03T00:00:00Z\n" in good.out
    assert good.out.endswith(" ok, 1 to look at, 0 failed\n")
    bad = run("doctor", "--json", repo=tmp_path)
    assert (bad.code, bad.err) == (1, "")
    assert '"fail": 1' in bad.out
