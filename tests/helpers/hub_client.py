"""huggingface_hub's client, in this process and in those that it starts, with a Hub of the tests and its own home."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.utils._http
import pytest
from huggingface_hub import constants

from tests.helpers.loopback_hub import LoopbackHub, User

TOKEN = "hf_OnlyForTheTests0123456789"
OWNER = "me"


@contextmanager
def connected_hub(home: Path) -> Iterator[LoopbackHub]:
    """A Hub that is all that the client knows, with an empty cache and a user that is logged in as OWNER."""
    hub = LoopbackHub()
    with hub.serving(), connected_to(hub, home):
        try:
            yield hub
        finally:
            huggingface_hub.utils.close_session()


@contextmanager
def connected_to(hub: LoopbackHub, home: Path) -> Iterator[None]:
    """The same with a Hub that serves already, and goes on. The client keeps its connections."""
    hub.users[TOKEN] = User(OWNER, organizations=("org",))
    with pytest.MonkeyPatch.context() as patch:
        home.mkdir(exist_ok=True)
        (home / "token").write_text(TOKEN, encoding="utf-8")
        for name, value in environment(hub, home).items():
            patch.setenv(name, value)
        patch.delenv("HF_TOKEN", raising=False)
        # The client has read its settings already.
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        # It waits up to 23 seconds before it gives up: nothing here becomes better by that.
        patch.setattr(huggingface_hub.utils._http, "time", SimpleNamespace(sleep=hub.waits.append))
        yield


def environment(hub: LoopbackHub, home: Path) -> dict[str, str]:
    """What tells a process where the Hub and its home are."""
    return {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
