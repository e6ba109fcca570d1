"""A Hub on this machine: the HTTP API as huggingface_hub's client uses it, with repositories in memory.

It serves models only: accounts, repositories with branches and pull requests, uploads of large files in one or several
parts, atomic commits, trees, and files with ranges. As on the Hub, large files live under another host name, where no
token has any business.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from tests.helpers.loopback_server import Answer, LoopbackServer, Request


@dataclass(frozen=True)
class User:
    """An account, as a token shows it."""

    name: str
    organizations: tuple[str, ...] = ()
    role: str = "write"


@dataclass(frozen=True)
class StoredFile:
    """A file of a commit."""

    content: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def entity(self) -> str:
        """What the client compares files by: the SHA-256 of a large file, git's SHA-1 of another."""
        blob = b"blob %d\0" % len(self.content) + self.content
        return self.sha256 if self.large else hashlib.sha1(blob).hexdigest()


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    title: str
    description: str
    files: Mapping[str, StoredFile]


@dataclass
class Repository:
    """A model repository. `history` names every commit that any branch has ever pointed to, in order."""

    private: bool
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    history: list[tuple[str, str]] = field(default_factory=list)
    large_files: dict[str, bytes] = field(default_factory=dict)

    def commit(self, branch: str, title: str, description: str, files: Mapping[str, StoredFile]) -> str:
        name = hashlib.sha1(f"{len(self.history)} {branch} {title}".encode()).hexdigest()
        self.commits[name] = Commit(title, description, dict(files))
        self.branches[branch] = name
        self.history.append((branch, name))
        return name

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The contents of a branch or commit by path."""
        commit = self.commits[self.branches.get(revision, revision)]
        return {path: file.content for path, file in commit.files.items()}


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str = "", **more: str) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.answer = Answer(json.dumps({"error": message, **more}).encode(), status, headers)


class LoopbackHub(LoopbackServer):
    """The state of the Hub. Its address is `endpoint`."""

    def __init__(self) -> None:
        super().__init__()
        self.users: dict[str, User] = {}
        self.repositories: dict[str, Repository] = {}
        self.ignored: set[str] = set()
        """Files that a `.gitignore` in a repository would keep out of commits."""
        self.part_size: int | None = None
        """Large files above this size are uploaded in parts of it."""
        self._parts: dict[str, dict[int, bytes]] = {}

    def reset(self) -> None:
        super().reset()
        self.ignored, self.part_size = set(), None

    def answer(self, request: Request) -> Answer:
        user = self.users.get(request.token)
        try:
            if request.token and user is None:
                raise Refusal(401, "Invalid credentials in Authorization header")
            for pattern, route in _ROUTES:
                if match := re.fullmatch(pattern, request.line):
                    found = route(self, Call(self, user, request), *map(unquote, match.groups()))
                    return found if isinstance(found, Answer) else Answer(json.dumps(found).encode())
            raise Refusal(404, f"{request.line} is not known here")
        except Refusal as refusal:
            return refusal.answer

    def add_model(self, repo_id: str, directory: Path, *, private: bool = False, gated: bool = False) -> str:
        """Puts a directory up as a repository, and gives its commit."""
        repository = self.repositories[repo_id] = Repository(private=private, gated=gated)
        files = {}
        for path in sorted(path for path in directory.rglob("*") if path.is_file()):
            file = StoredFile(path.read_bytes(), large=path.suffix == ".safetensors")
            files[path.relative_to(directory).as_posix()] = file
            repository.large_files |= {file.sha256: file.content} if file.large else {}
        return repository.commit("main", "Add the model", "", files)

    # What the routes answer: JSON data, or a file.

    def whoami(self, call: Call) -> Any:
        if call.user is None:
            raise Refusal(401, "Invalid username or password.")
        organizations = [{"name": name, "roleInOrg": "write"} for name in call.user.organizations]
        access = {"type": "access_token", "accessToken": {"displayName": "test", "role": call.user.role}}
        return {"type": "user", "name": call.user.name, "orgs": organizations, "auth": access}

    def create_repository(self, call: Call) -> Any:
        asked = call.request.json()
        owner = asked.get("organization") or (call.user and call.user.name)
        repo_id = f"{owner}/{asked['name']}"
        call.check_write(repo_id)
        if repo_id in self.repositories:
            raise Refusal(409, "You already created this model repo", url=f"{self.endpoint}/{repo_id}")
        repository = Repository(private=asked.get("private", asked.get("visibility") == "private"))
        repository.commit("main", "initial commit", "", {".gitattributes": StoredFile(b"*.safetensors", large=False)})
        self.repositories[repo_id] = repository
        return {"url": f"{self.endpoint}/{repo_id}", "name": repo_id}

    def validate_card(self, call: Call) -> Any:
        if not call.request.json()["content"].startswith("---"):
            return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}]}
        return {"errors": [], "warnings": []}

    def model_info(self, call: Call, repo_id: str, revision: str = "main") -> Any:
        repository, commit = call.find(repo_id, revision)
        files = [{"rfilename": path} for path in repository.commits[commit].files]
        gated = "manual" if repository.gated else False
        about = {"private": repository.private, "gated": gated, "disabled": False, "tags": [], "downloads": 0}
        return {"_id": repo_id, "id": repo_id, "modelId": repo_id, "sha": commit, "siblings": files, **about}

    def tree(self, call: Call, repo_id: str, revision: str, folder: str = "") -> Any:
        repository, commit = call.find(repo_id, revision)
        entries, folders = [], set()
        recursive = call.request.query.get("recursive", ["false"])[0].lower() == "true"
        for path, file in repository.commits[commit].files.items():
            if folder and not path.startswith(f"{folder}/"):
                continue
            rest = path[len(folder) + 1 if folder else 0 :]
            if "/" in rest:
                folders.add((f"{folder}/" if folder else "") + rest.partition("/")[0])
                if not recursive:
                    continue
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(file.content), "oid": file.entity}
            if file.large:
                entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
            entries.append(entry)
        if folder and not entries:
            raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
        return [*entries, *({"type": "directory", "path": name, "oid": "0" * 40} for name in sorted(folders))]

    def create_branch(self, call: Call, repo_id: str, branch: str) -> Any:
        call.check_write(repo_id)
        repository, commit = call.find(repo_id, call.request.json().get("startingPoint", "main"))
        if branch in repository.branches:
            raise Refusal(409, "Reference already exists")
        repository.branches[branch] = commit
        return {}

    def preupload(self, call: Call, repo_id: str, revision: str) -> Any:
        repository, commit = call.find(repo_id, revision)
        if "create_pr" not in call.request.query:
            call.check_write(repo_id)
        answers = []
        for file in call.request.json()["files"]:
            path = file["path"]
            known = repository.commits[commit].files.get(path)
            mode = "lfs" if path.endswith(".safetensors") else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": path in self.ignored})
            answers[-1]["oid"] = known and known.entity
        return {"files": answers}

    def upload_batch(self, call: Call, repo_id: str) -> Any:
        repository, _ = call.find(repo_id)
        objects = []
        for asked in call.request.json()["objects"]:
            name, size = asked["oid"], asked["size"]
            answer = {"oid": name, "size": size}
            if name not in repository.large_files:
                place = f"{self.storage}/{quote(repo_id, safe='')}/{name}"
                upload: dict[str, Any] = {"href": place, "header": {}}
                if self.part_size is not None and size > self.part_size:
                    count = -(-size // self.part_size)
                    parts = {str(number): f"{place}/{number}" for number in range(1, count + 1)}
                    upload["header"] = {"chunk_size": str(self.part_size), **parts}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{self.endpoint}/{repo_id}.git/verify"}}
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def verify_upload(self, call: Call, repo_id: str) -> Any:
        asked = call.request.json()
        stored = self.repositories[repo_id].large_files.get(asked["oid"])
        if stored is None or len(stored) != asked["size"]:
            raise Refusal(404, "The file was not uploaded")
        return {}

    def store(self, call: Call, repo_id: str, name: str) -> Any:
        if hashlib.sha256(call.request.body).hexdigest() != name:
            raise Refusal(400, "The content is not of that digest")
        self.repositories[repo_id].large_files[name] = call.request.body
        return {}

    def store_part(self, call: Call, repo_id: str, name: str, number: str) -> Any:
        self._parts.setdefault(name, {})[int(number)] = call.request.body
        return Answer(b"", headers={"ETag": hashlib.md5(call.request.body).hexdigest()})

    def join_parts(self, call: Call, repo_id: str, name: str) -> Any:
        parts = self._parts.pop(name)
        told = {part["partNumber"]: part["etag"] for part in call.request.json()["parts"]}
        assert told == {number: hashlib.md5(part).hexdigest() for number, part in parts.items()}
        call.request.body = b"".join(parts[number] for number in sorted(parts))
        return self.store(call, repo_id, name)

    def commit(self, call: Call, repo_id: str, revision: str) -> Any:
        repository, parent = call.find(repo_id, revision)
        by_request = "create_pr" in call.request.query
        if not by_request:
            call.check_write(repo_id)
        header, *changes = [json.loads(line) for line in call.request.body.splitlines()]
        told = header["value"]
        if told.get("parentCommit", parent) != parent and not by_request:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.commits[told.get("parentCommit", parent)].files)
        for change in changes:
            kind, value = change["key"], change["value"]
            path = value["path"]
            if kind == "deletedFile":
                del files[path]
            elif kind == "lfsFile":
                if value["oid"] not in repository.large_files:
                    raise Refusal(400, f"{path} was not uploaded")
                files[path] = StoredFile(repository.large_files[value["oid"]], large=True)
            else:
                assert kind == "file"
                files[path] = StoredFile(base64.b64decode(value["content"]), large=False)
        number = sum(branch.startswith("refs/pr/") for branch in repository.branches) + 1
        branch = f"refs/pr/{number}" if by_request else revision
        name = repository.commit(branch, told["summary"], told["description"], files)
        address = f"{self.endpoint}/{repo_id}"
        answer = {"success": True, "commitOid": name, "commitUrl": f"{address}/commit/{name}", "hookOutput": ""}
        return {**answer, "pullRequestUrl": f"{address}/discussions/{number}"} if by_request else answer

    def resolve(self, call: Call, repo_id: str, revision: str, path: str) -> Any:
        repository, commit = call.find(repo_id, revision)
        if repository.gated and not call.owns(repo_id):
            raise Refusal(403, "Access to this model is restricted", "GatedRepo")
        if path not in repository.commits[commit].files:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        file = repository.commits[commit].files[path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.entity}"'}
        if not file.large:
            return Answer(file.content, headers=headers)
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        headers["Location"] = f"{self.storage}/{quote(repo_id, safe='')}/{file.sha256}"
        return Answer(b"", 302, headers)

    def stored(self, call: Call, repo_id: str, name: str) -> Any:
        return Answer(self.repositories[repo_id].large_files[name])


@dataclass
class Call:
    """A request, with whose it is."""

    hub: LoopbackHub
    user: User | None
    request: Request

    def owns(self, repo_id: str) -> bool:
        user = self.user
        return user is not None and repo_id.partition("/")[0] in (user.name, *user.organizations)

    def check_write(self, repo_id: str) -> None:
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        if not self.owns(repo_id) or self.user.role != "write":
            raise Refusal(403, f"You don't have the rights to write to {repo_id}")

    def find(self, repo_id: str, revision: str = "main") -> tuple[Repository, str]:
        """A repository that the user may see, and a commit of it."""
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and not self.owns(repo_id)):
            raise Refusal(404 if self.user else 401, "Repository not found", "RepoNotFound")
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository, commit


_MODEL = "([^/]+/[^/]+)"
_ROUTES: tuple[tuple[str, Callable[..., Any]], ...] = (
    ("GET /api/whoami-v2", LoopbackHub.whoami),
    ("POST /api/repos/create", LoopbackHub.create_repository),
    ("POST /api/validate-yaml", LoopbackHub.validate_card),
    (f"GET /api/models/{_MODEL}", LoopbackHub.model_info),
    (f"GET /api/models/{_MODEL}/revision/([^/]+)", LoopbackHub.model_info),
    (f"GET /api/models/{_MODEL}/tree/([^/]+)", LoopbackHub.tree),
    (f"GET /api/models/{_MODEL}/tree/([^/]+)/(.+)", LoopbackHub.tree),
    (f"POST /api/models/{_MODEL}/branch/([^/]+)", LoopbackHub.create_branch),
    (f"POST /api/models/{_MODEL}/preupload/([^/]+)", LoopbackHub.preupload),
    (f"POST /api/models/{_MODEL}/commit/([^/]+)", LoopbackHub.commit),
    (f"POST /{_MODEL}.git/info/lfs/objects/batch", LoopbackHub.upload_batch),
    (f"POST /{_MODEL}.git/verify", LoopbackHub.verify_upload),
    (f"(?:GET|HEAD) /{_MODEL}/resolve/([^/]+)/(.+)", LoopbackHub.resolve),
    ("PUT /storage/([^/]+)/([^/]+)", LoopbackHub.store),
    ("PUT /storage/([^/]+)/([^/]+)/([0-9]+)", LoopbackHub.store_part),
    ("POST /storage/([^/]+)/([^/]+)", LoopbackHub.join_parts),
    ("(?:GET|HEAD) /storage/([^/]+)/([^/]+)", LoopbackHub.stored),
)
