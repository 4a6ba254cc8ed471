"""Whoever finds the store full lets go of what he has and tries again, for a while."""

import pytest

from zmesh.exceptions import StoreFullError, TaskError
from zmesh.runtime import patience
from zmesh.runtime.patience import when_full


class Failed(TaskError, StoreFullError):  # type: ignore[misc]  # as a task that raised one is told
    """What a task raised."""


def test_it_is_done_again_until_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(patience, "sleep", pauses.append)
    left = [StoreFullError("full"), StoreFullError("full")]

    def attempt() -> str:
        if left:
            raise left.pop()
        return "value"

    assert when_full(attempt) == "value"
    assert len(pauses) == 2
    assert all(patience.PAUSE_S[0] <= pause <= patience.PAUSE_S[1] for pause in pauses)


@pytest.mark.parametrize("error", [Failed("f raised"), ValueError("no")], ids=["of a task", "another"])
def test_other_errors_are_raised_at_once(error: Exception) -> None:
    def attempt() -> None:
        raise error

    with pytest.raises(type(error)):
        when_full(attempt)


def test_in_the_end_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(patience, "monotonic", lambda: now[0])
    monkeypatch.setattr(patience, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))

    def attempt() -> None:
        raise StoreFullError("full")

    with pytest.raises(StoreFullError):
        when_full(attempt)
    assert now[0] >= patience.PATIENCE_S
