"""On-demand code is part of parity: it must be there as it was applied."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from featurestore import FeatureStore
from featurestore.online import embedded
from featurestore.parity.findings import Cause
from tests.repo_files import write_repo
from tests.test_on_demand_code import FILES


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A repo with an on-demand view, applied and materialized."""
    made = write_repo(tmp_path / "repo", **FILES)
    (made / "featurestore.toml").write_text('project = "test"\n')
    with FeatureStore(made) as store:
        store.apply()
        store.materialize()
        assert [view.view for view in store.verify(keys=None).views] == ["airport_weather"]
    yield made
    embedded.stop(made / ".featurestore/online")


def test_a_folder_with_other_code_is_said_and_serves_what_is_applied(folder: Path) -> None:
    """Code that was changed and not applied is no difference, since the kept copy serves and trains."""
    (folder / "lib/constants.py").write_text("ZERO = 31.0\n")
    with FeatureStore(folder) as store:
        weather, code = store.verify().views
        assert (weather.is_equal, code.view, code.is_equal) == (True, "celsius_of", True)
        assert code.skipped == "the definitions folder has other code than is applied; what is applied serves and trains"
        assert store.verify(["celsius_of"]).views == (code,)


def test_code_that_is_not_there_as_it_was_applied_is_a_difference(folder: Path) -> None:
    """A deployment whose copy and folder both have other code is caught."""
    for path in [*folder.rglob(".featurestore/code/**/constants.py"), folder / "lib/constants.py"]:
        path.write_text("ZERO = 31.0\n")
    with FeatureStore(folder) as store:
        found = store.verify()
        code = found.views[-1]
        assert (code.view, code.causes, found.differences) == ("celsius_of", {Cause.CHANGED_CODE: 1}, 1)
        assert "is not there" in code.examples[0].evidence
