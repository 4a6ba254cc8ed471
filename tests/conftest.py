"""What all tests share: places for the keys and the cache they make, so that the user's own stay as they are."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("no time limits", deadline=None)  # how long an example takes says nothing on a busy machine
settings.load_profile("no time limits")


@pytest.fixture(scope="session", autouse=True)
def places_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.setenv("ZMESH_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield
