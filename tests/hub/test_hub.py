"""Pushing to a Hub: one commit of what was verified, whatever breaks in between; the client is the real one."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from huggingface_hub import constants, snapshot_download
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

import sea_export
from sea_export.cards.description import update_description
from sea_export.cli import main, stages
from sea_export.cli import upload_progress as upload_progress_module
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError, SeaExportError
from sea_export.export.fetch import fetch_output
from sea_export.hub import push as push_module
from sea_export.hub.push import push
from tests.helpers.hub_client import OWNER, TOKEN, connected_hub
from tests.helpers.loopback_hub import LoopbackHub, Repository, User
from tests.helpers.messages import assert_names, naming
from tests.helpers.parameters import slow_but
from tests.helpers.schemas import validated
from tests.helpers.tiny_models import tiny_model

REPO = f"{OWNER}/edited"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with connected_hub(tmp_path / "home") as hub:
        yield hub


@pytest.fixture(scope="module")
def edit(fit_tiny: Callable[..., SpectralEdit]) -> SpectralEdit:
    return fit_tiny(tiny_model("llama"))


@pytest.fixture(scope="module")
def merged(edit: SpectralEdit, tiny_sharded_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged export of several shards. Read only."""
    output = tmp_path_factory.mktemp("hub") / "merged"
    sea_export.save(edit, tiny_sharded_checkpoint, output, verify=False)
    return output


@pytest.fixture
def output(merged: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return shutil.copytree(merged, tmp_path / "output")


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def main_history(repository: Repository) -> list[str]:
    return [commit for branch, commit in repository.history if branch == "main"]


def assert_complete(repository: Repository, output: Path, revision: str = "main") -> None:
    held = repository.files(revision)
    held.pop(".gitattributes", None)
    assert held == files_of(output)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# What a push makes


def test_a_push_is_one_commit_of_all_files_in_a_new_private_repository(hub: LoopbackHub, merged: Path) -> None:
    pushed = push(merged, "edited")
    repository = hub.repositories[REPO]
    assert pushed.destination.repo_id == REPO
    assert pushed.changed
    assert repository.private
    assert_complete(repository, merged)
    _, commit = main_history(repository)
    assert pushed.url.endswith(commit)
    assert repository.commits[commit].title == f"Push {tiny_name(merged)} with a spectral edit (merged)"
    assert "3.mlp" in repository.commits[commit].description
    storage = [request for request in hub.requests if request.host == "localhost"]
    assert storage
    assert not any(request.token for request in storage), "the storage gets no token"

    hub.reset()
    again = push(merged, REPO)
    assert not again.changed
    assert len(main_history(repository)) == 2
    assert not hub.lines("^PUT")


def tiny_name(output: Path) -> str:
    name: str = json.loads((output / "sea_export.json").read_text(encoding="utf-8"))["base"]["name"]
    return name


def test_who_may_see_a_repository(hub: LoopbackHub, merged: Path) -> None:
    push(merged, "org/open", public=True)
    assert not hub.repositories["org/open"].private
    with pytest.raises(InputError, match=naming("org/open", "--public")):
        push(merged, "org/open")
    push(merged, REPO)
    assert push(merged, REPO, public=True).destination.private, "what is private stays so"


def test_large_files_go_up_in_parts(hub: LoopbackHub, merged: Path) -> None:
    hub.part_size = 5000
    push(merged, REPO)
    assert len(hub.lines(r"^PUT .*/\d+$")) > len(hub.lines(r"^POST /storage")) > 0
    assert_complete(hub.repositories[REPO], merged)


def test_a_push_tells_how_far_it_is(hub: LoopbackHub, merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files go up in groups, and what is told moves with them."""
    monkeypatch.setattr(push_module, "_BYTES_AT_ONCE", 5000)
    told: list[tuple[str, int, int]] = []
    files = files_of(merged)
    checked = sum(len(content) for file, content in files.items() if file != "sea_export.json")
    push(merged, REPO, progress=lambda stage, done, total: told.append((stage, done, total)))
    uploading = f"Uploading {len(files)} files"
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages == ["Checking the files", uploading, "Making the commit"]
    done = [done for stage, done, _ in told if stage == stages[0]]
    assert (told[0], done) == ((stages[0], 0, checked), sorted(done))
    assert done[-1] == checked
    sent = [(done, total) for stage, done, total in told if stage == uploading]
    assert len(sent) > 3
    assert sent == sorted(sent)
    assert (sent[0], sent[-1]) == ((0, sent[0][1]), (sent[0][1], sent[0][1]))
    assert len(main_history(hub.repositories[REPO])) == 2, "the first commit of the repository, and this one"
    assert_complete(hub.repositories[REPO], merged)


def test_a_program_can_read_how_far_a_push_is(hub: LoopbackHub, merged: Path) -> None:
    result = run("push", merged, REPO, "--progress", "json")
    assert result.exit_code == 0, result.output
    found = [validated(line, "progress") for line in result.stderr.splitlines()]
    assert list(dict.fromkeys(one["stage"].split()[0] for one in found)) == ["Checking", "Uploading", "Making"]
    assert all(one["done"] == one["total"] for one in found[1::2])


def test_a_long_push_is_told_regularly(hub: LoopbackHub, merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the bars of huggingface_hub, which would fill a log."""
    monkeypatch.setattr(stages, "_SECONDS_BETWEEN_LINES", 0.05)
    hub.fail("^PUT", pause=0.3)
    enable_progress_bars()
    result = run("push", merged, REPO)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("Uploading ")]
    assert lines
    assert all(re.fullmatch(r"Uploading \d+ files: 0 bytes of [\d.]+ kB \(\d+ s\)", line) for line in lines)
    assert "%|" not in result.stderr
    assert not are_progress_bars_disabled(), "as before"
    disable_progress_bars()


def test_a_terminal_shows_the_bars_of_the_hub(hub: LoopbackHub, merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a fit has switched them off."""
    disable_progress_bars()
    monkeypatch.setattr(upload_progress_module, "shows_bars", lambda: True)
    result = run("push", merged, REPO)
    assert result.exit_code == 0, result.output
    assert "Uploading " in result.stderr
    assert "%|" in result.stderr
    assert are_progress_bars_disabled(), "as before"


def test_an_earlier_push_is_replaced_and_what_others_added_stays(
    hub: LoopbackHub, merged: Path, edit: SpectralEdit, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    push(merged, REPO)
    repository = hub.repositories[REPO]
    held = repository.commits[main_history(repository)[-1]].files
    repository.commit("main", "Add a picture", "", {**held, "picture.png": held["config.json"]})
    single = tmp_path / "single"
    sea_export.save(edit, tiny_checkpoint, single, verify=False)
    push(single, REPO)
    now = repository.files()
    assert now.pop("picture.png") == held["config.json"].content
    now.pop(".gitattributes")
    assert now == files_of(single), "no shard of the earlier push is left"


def test_a_repository_with_other_content_is_refused_but_for_a_branch_of_its_own(
    hub: LoopbackHub, merged: Path, tiny_checkpoint: Path
) -> None:
    hub.add_model(REPO, tiny_checkpoint, private=True)
    repository = hub.repositories[REPO]
    before = repository.files()
    with pytest.raises(InputError, match=naming(REPO, "config.json", "--revision")):
        push(merged, REPO)
    pushed = push(merged, REPO, revision="spectral/1")
    assert pushed.revision == "spectral/1"
    assert repository.files() == before
    assert_complete(repository, merged, "spectral/1")
    push(merged, REPO, revision="spectral/1")
    snapshot = snapshot_download(REPO, revision="spectral/1")
    assert files_of(Path(snapshot)).keys() == files_of(merged).keys()


def test_a_manifest_of_somebody_else(hub: LoopbackHub, merged: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "sea_export.json").write_text("[]", encoding="utf-8")
    hub.add_model(REPO, tmp_path / "theirs", private=True)
    with pytest.raises(InputError, match=naming(REPO, "sea_export.json")):
        push(merged, REPO)


def test_a_branch_without_anything_of_its_own_is_one_that_an_interrupted_push_made(
    hub: LoopbackHub, merged: Path, tiny_checkpoint: Path
) -> None:
    hub.add_model(REPO, tiny_checkpoint, private=True)
    hub.fail("POST .*/commit/", 500)
    with pytest.raises(SeaExportError, match="500"):
        push(merged, REPO, revision="spectral")
    push(merged, REPO, revision="spectral")
    assert_complete(hub.repositories[REPO], merged, "spectral")


def test_a_pull_request_leaves_the_main_branch_as_it_is(hub: LoopbackHub, merged: Path) -> None:
    pushed = push(merged, REPO, create_pr=True)
    repository = hub.repositories[REPO]
    assert list(repository.files()) == [".gitattributes"]
    assert pushed.revision == "refs/pr/1"
    assert pushed.url == f"{hub.endpoint}/{REPO}/discussions/1"
    assert_complete(repository, merged, "refs/pr/1")
    with pytest.raises(InputError, match=naming("--create-pr", "--revision")):
        push(merged, REPO, create_pr=True, revision="other")


def test_readers_may_open_a_pull_request(hub: LoopbackHub, merged: Path) -> None:
    push(merged, "org/open", public=True)
    repository = hub.repositories["org/open"]
    earlier = repository.commits[repository.branches["main"]].files
    repository.commit("main", "Drop the config", "", {k: v for k, v in earlier.items() if k != "config.json"})
    hub.users[TOKEN] = User("somebody")
    pushed = push(merged, "org/open", public=True, create_pr=True)
    assert_complete(repository, merged, pushed.revision)


# What is pushed is what was verified


def test_a_file_that_is_not_as_the_manifest_says_is_refused(hub: LoopbackHub, output: Path) -> None:
    shard = sorted(output.glob("model-*.safetensors"))[0]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=naming(shard.name)):
        push(output, REPO)
    shard.unlink()
    with pytest.raises(InputError, match=naming(shard.name)):
        push(output, REPO)
    assert not hub.requests, "nothing was asked of the Hub"


@pytest.mark.parametrize("entry", ["layers", "versions", "verification", "added_tensors"])
def test_an_entry_that_the_manifest_lacks_is_told_before_anything_is_asked(
    hub: LoopbackHub, output: Path, entry: str
) -> None:
    manifest = json.loads((output / "sea_export.json").read_text()) | {"repository": REPO}
    del manifest[entry]
    (output / "sea_export.json").write_text(json.dumps(manifest))
    if entry in ("layers", "versions"):
        with pytest.raises(InputError, match=naming("sea_export.json", entry)):
            push(output, REPO)
        assert not hub.requests, "nothing was asked of the Hub"
    else:
        assert push(output, REPO).changed


def test_a_file_that_changes_during_the_push_is_not_committed(
    hub: LoopbackHub, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(remark: str) -> None:
        (output / "config.json").write_bytes(b"{}")

    (output / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(SeaExportError, match=naming("config.json")):
        push(output, REPO, announce=change)
    assert list(hub.repositories[REPO].files()) == [".gitattributes"]


def test_files_that_the_manifest_does_not_name_stay_here(hub: LoopbackHub, output: Path) -> None:
    (output / "notes.txt").write_text("mine", encoding="utf-8")
    result = run("push", output, REPO)
    assert result.exit_code == 0, result.output
    assert_names(result.output, "sea_export.json", "notes.txt")
    assert "notes.txt" not in hub.repositories[REPO].files()


def test_the_pushed_card_loads_from_the_repository(hub: LoopbackHub, output: Path) -> None:
    update_description(output, {"repository": None})  # as before any push
    snippet = 'generate = pipeline("text-generation", "{}")'
    assert snippet.format(".") in (output / "README.md").read_text(encoding="utf-8")
    for repository in (REPO, f"{REPO}-again"):
        assert run("push", output, repository).exit_code == 0
        held = files_of(Path(snapshot_download(repository)))
        assert snippet.format(repository) in held["README.md"].decode()
        assert held.items() >= files_of(output).items()


def test_a_file_that_the_repository_ignores_is_missed(hub: LoopbackHub, merged: Path) -> None:
    hub.ignored = {"tokenizer.json"}
    with pytest.raises(SeaExportError, match=naming(".gitignore", "tokenizer.json")):
        push(merged, REPO)


# What breaks in between


@pytest.mark.parametrize("tenth", slow_but([5], range(10)))
def test_a_push_that_is_cut_and_repeated_is_complete_and_never_half(hub: LoopbackHub, merged: Path, tenth: int) -> None:
    hub.part_size = 12000
    push(merged, "whole")
    whole = hub.received
    hub.reset()
    hub.part_size = 12000
    hub.allowance = whole * tenth // 10
    with pytest.raises(SeaExportError, match=naming("again")):
        push(merged, REPO)
    repository = hub.repositories.get(REPO)
    kept = set() if repository is None else set(repository.large_files)
    assert repository is None or len(main_history(repository)) == 1

    hub.reset()
    assert push(merged, REPO).changed
    repository = hub.repositories[REPO]
    assert_complete(repository, merged)
    assert len(main_history(repository)) == 2, "the main branch was empty, and then complete"
    sent = {line.split("/")[3] for line in hub.lines("^PUT /storage")}
    assert not sent & kept, "what had arrived is not sent again"
    assert sent | kept == set(repository.large_files)


def test_cuts_keep_what_has_arrived(hub: LoopbackHub, merged: Path) -> None:
    """The premise of the test above: some cut leaves some large files there and some not."""
    push(merged, "whole")
    hub.allowance, hub.requests = hub.received // 2, []
    with pytest.raises(SeaExportError):
        push(merged, REPO)
    assert 0 < len(hub.repositories[REPO].large_files) < len(hub.repositories[f"{OWNER}/whole"].large_files)


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub: LoopbackHub, merged: Path) -> None:
    hub.fail("POST .*/commit/", cut_after=0)
    with pytest.raises(SeaExportError, match=naming(REPO)):
        push(merged, REPO)
    assert not push(merged, REPO).changed
    assert_complete(hub.repositories[REPO], merged)
    assert len(main_history(hub.repositories[REPO])) == 2


@pytest.mark.parametrize("status", [429, 500])
def test_a_hub_that_asks_for_patience_gets_it(hub: LoopbackHub, merged: Path, status: int) -> None:
    hub.fail("POST .*/preupload/", status, headers={"Retry-After": "7"} if status == 429 else {}, times=2)
    push(merged, REPO)
    assert hub.waits == ([8, 8] if status == 429 else [1, 2])
    assert_complete(hub.repositories[REPO], merged)


def test_a_branch_that_moves_during_the_push_is_left_alone(hub: LoopbackHub, output: Path) -> None:
    def interfere(remark: str) -> None:
        repository = hub.repositories[REPO]
        repository.commit("main", "Interfere", "", repository.commits[repository.branches["main"]].files)

    (output / "notes.txt").write_text("to have something announced", encoding="utf-8")
    with pytest.raises(SeaExportError, match=naming(REPO, "changed")):
        push(output, REPO, announce=interfere)
    assert list(hub.repositories[REPO].files()) == [".gitattributes"]


def test_downloads_that_are_cut_or_stall_go_on_where_they_were(
    hub: LoopbackHub, merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(merged, REPO)
    hub.reset()
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.fail("GET /storage", cut_after=3000, times=2)
    hub.fail("GET /storage", pause=0.5)
    fetched = files_of(fetch_output(REPO))
    assert fetched == {name: content for name, content in files_of(merged).items() if name != "README.md"}
    large = sum(len(content) for name, content in fetched.items() if name.endswith(".safetensors"))
    assert len(hub.lines("GET /storage")) == len(hub.repositories[REPO].large_files) + 3
    assert sum(request.sent for request in hub.requests if "/storage" in request.line) < large + 3000


# Errors


def no_token(hub: LoopbackHub, home: Path) -> None:
    (home / "token").unlink()


def wrong_token(hub: LoopbackHub, home: Path) -> None:
    hub.users.clear()


def read_token(hub: LoopbackHub, home: Path) -> None:
    hub.users[TOKEN] = User(OWNER, role="read")


def token_of_somebody_else(hub: LoopbackHub, home: Path) -> None:
    hub.users[TOKEN] = User("somebody")


def forbidden(hub: LoopbackHub, home: Path) -> None:
    hub.fail("POST .*/preupload/", 403)


def conflict(hub: LoopbackHub, home: Path) -> None:
    hub.fail("POST .*/commit/", 409)


def busy(hub: LoopbackHub, home: Path) -> None:
    hub.fail("POST .*/commit/", 429, headers={"Retry-After": "60"})


def broken(hub: LoopbackHub, home: Path) -> None:
    hub.fail("POST .*/objects/batch", 500, times=9)


def storage_refuses(hub: LoopbackHub, home: Path) -> None:
    hub.fail("PUT /storage", 403, times=9)


def nobody_there(hub: LoopbackHub, home: Path) -> None:
    hub.allowance = 0


ERRORS: dict[Callable[[LoopbackHub, Path], None], tuple[int, list[str]]] = {
    no_token: (2, ["hf auth login"]),
    wrong_token: (2, [REPO, "hf auth whoami"]),
    read_token: (2, ["token", "write", "hf auth login"]),
    token_of_somebody_else: (2, [REPO, "hf auth whoami"]),
    forbidden: (2, [REPO, "hf auth whoami"]),
    conflict: (1, [REPO, "changed"]),
    busy: (1, ["wait"]),
    broken: (1, ["500"]),
    storage_refuses: (1, [REPO]),
    nobody_there: (1, [REPO]),
}


@pytest.mark.parametrize("cause", ERRORS, ids=lambda cause: cause.__name__)
def test_each_error_is_one_clear_line(
    hub: LoopbackHub, merged: Path, tmp_path: Path, cause: Callable[[LoopbackHub, Path], None]
) -> None:
    status, facts = ERRORS[cause]
    cause(hub, tmp_path / "home")
    result = run("push", merged, REPO)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert_names(line, *facts)
    assert result.exit_code == status
    assert "Traceback" not in result.output
    assert TOKEN not in result.output
    assert REPO not in hub.repositories or len(main_history(hub.repositories[REPO])) == 1


def test_bad_names_and_directories(hub: LoopbackHub, merged: Path, tmp_path: Path) -> None:
    for repo_id in ("a/b/c", "me/bad name"):
        result = run("push", merged, repo_id)
        assert result.exit_code == 2
        assert_names(result.stderr, repo_id)
    result = run("push", tmp_path, REPO)
    assert result.exit_code == 2
    assert_names(result.stderr, tmp_path)


# The base


@pytest.fixture(scope="module")
def adapter(edit: SpectralEdit, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("hub") / "adapter"
    sea_export.save(edit, tiny_checkpoint, output, format="adapter", verify=False)
    return output


def test_an_adapter_of_a_base_that_others_cannot_find_is_refused(hub: LoopbackHub, adapter: Path) -> None:
    with pytest.raises(InputError, match=naming("--base")):
        push(adapter, REPO)
    assert not hub.requests


@pytest.mark.parametrize(
    ("kept", "format", "public", "remark"),
    [
        ("private", "adapter", False, "private"),
        ("gated", "adapter", True, "gated"),
        ("gated", "merged", True, "public"),
        ("gated", "merged", False, None),
        ("", "adapter", True, None),
    ],
)
def test_what_is_said_of_a_base_that_not_everybody_may_see(
    hub: LoopbackHub,
    edit: SpectralEdit,
    tiny_checkpoint: Path,
    tmp_path: Path,
    kept: str,
    format: str,
    public: bool,
    remark: str | None,
) -> None:
    hub.add_model("org/tiny", tiny_checkpoint, private=kept == "private", gated=kept == "gated")
    output = tmp_path / "output"
    sea_export.save(edit, "org/tiny", output, format=format, verify=False)
    remarks: list[str] = []
    push(output, REPO, public=public, announce=remarks.append)
    assert len(remarks) == (remark is not None)
    if remark is not None:
        assert_names(remarks[0], "org/tiny", remark)
    del hub.repositories["org/tiny"]
    push(output, REPO, public=public, announce=remarks.append)
    assert_names(remarks[-1], "org/tiny")


@pytest.mark.parametrize(("private", "gated", "fact"), [(True, False, "log in"), (False, True, "terms")])
def test_a_base_that_is_not_for_this_user(
    hub: LoopbackHub, tiny_checkpoint: Path, tmp_path: Path, private: bool, gated: bool, fact: str
) -> None:
    hub.add_model("them/tiny", tiny_checkpoint, private=private, gated=gated)
    result = run("fit-and-save", "them/tiny", tmp_path / "out", "--push", REPO)
    assert result.exit_code == 2, result.output
    assert_names(result.stderr, "them/tiny", fact)
    assert REPO not in hub.repositories
