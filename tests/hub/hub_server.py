"""A Hub on loopback: the part of its protocol that huggingface_hub's client, datasets and diffusers use.

One `Hub` object holds the state: repositories with commits (path -> bytes), tags, large files by SHA-256, tokens and what
they may do. Knobs make it refuse, hang, or be changed by somebody else. Written from the client's requests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".parquet", ".safetensors", ".webp", ".png")


@dataclass
class Repository:
    private: bool
    history: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], message: str = "") -> str:
        seed = json.dumps(
            [len(self.history), message, sorted((p, hashlib.sha1(b).hexdigest()) for p, b in files.items())]
        )
        self.history.append((hashlib.sha1(seed.encode()).hexdigest(), dict(files)))
        return self.history[-1][0]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        revision = self.tags.get(revision, revision)
        if revision == "main":
            return self.history[-1]
        return next((entry for entry in self.history if entry[0] == revision), None)


class Hub:
    """with Hub() as hub: hub.url is the endpoint. tokens: token -> user; readers may read only; expired are refused."""

    def __init__(self) -> None:
        self.reset()
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def reset(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large: dict[str, bytes] = {}
        self.tokens = {"hf_goodtoken": "you"}
        self.readers: set[str] = set()
        self.log: list[str] = []
        self.before_commit: Callable[[Hub, Repository], None] | None = None
        self.before_put: Callable[[Hub, str], None] | None = None

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, kind: str, name: str, revision: str = "main") -> dict[str, bytes]:
        entry = self.repositories[kind, name].at(revision)
        assert entry is not None
        return entry[1]


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, value: Any = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps({} if value is None else value).encode()
        self.send_response(status)
        for key, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, text)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, text: str, code: str = "") -> None:
        headers = {"X-Error-Message": text} | ({"X-Error-Code": code} if code else {})
        self.answer({"error": text}, status, headers)

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        data = self.body()
        self.hub.log.append(f"{self.command} {self.path}")
        if url.path.startswith("/lfs/"):
            return self.large_file(url.path.removeprefix("/lfs/"), data)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            return self.refuse(401, "Invalid credentials in Authorization header")
        user = self.hub.tokens.get(token)
        with self.hub.lock:
            if url.path == "/api/whoami-v2":
                return (
                    self.answer({"name": user, "type": "user"})
                    if user
                    else self.refuse(401, "Invalid username or password.")
                )
            if url.path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            if url.path == "/api/repos/create":
                return self.create(json.loads(data), user, token)
            if url.path.endswith(".git/info/lfs/objects/batch"):
                return self.batch(json.loads(data))
            if url.path.startswith("/api/") and url.path.count("/") < 4:
                return self.refuse(404, "not here")  # what the client asks for besides
            if url.path.startswith("/api/"):
                return self.api(url, data, user, token)
            return self.resolve(url, user)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def may_write(self, name: str, user: str | None, token: str) -> bool:
        return user == name.split("/")[0] and token not in self.hub.readers

    def create(self, wanted: dict[str, Any], user: str | None, token: str) -> None:
        name, kind = f"{wanted.get('organization') or user}/{wanted['name']}", wanted.get("type") or "model"
        if not self.may_write(name, user, token):
            return self.refuse(403, f"You don't have the rights to create a {kind} under this namespace")
        if (kind, name) in self.hub.repositories:
            return self.refuse(409, "You already created this repo")
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        repository = self.hub.repositories[kind, name] = Repository(private)
        repository.commit({".gitattributes": b"*.parquet filter=lfs\n"}, "initial commit")
        self.answer({"url": f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}", "name": name})

    def large_file(self, sha: str, data: bytes) -> None:
        if self.hub.before_put is not None:
            self.hub.before_put(self.hub, sha)
        if hashlib.sha256(data).hexdigest() != sha:
            return self.refuse(400, "checksum mismatch")
        self.hub.large[sha] = data
        self.answer(headers={"ETag": sha})

    def batch(self, wanted: dict[str, Any]) -> None:
        objects = []
        for entry in wanted["objects"]:
            action = {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}"}}}
            objects.append(entry | ({} if entry["oid"] in self.hub.large else action))
        self.answer({"transfer": "basic", "objects": objects})

    def api(self, url: Any, data: bytes, user: str | None, token: str) -> None:
        _, _, kinds, owner, short, *rest = [unquote(part) for part in url.path.split("/")]
        kind, name = kinds.removesuffix("s"), f"{owner}/{short}"
        repository = self.hub.repositories.get((kind, name))
        if repository is None or (repository.private and user != owner):
            return self.refuse(404 if user else 401, "Repository not found", "RepoNotFound")
        what = rest[0] if rest else "revision"
        writes = self.command in ("PUT", "DELETE") or what in ("preupload", "commit", "tag", "super-squash")
        if writes and not self.may_write(name, user, token):
            return self.refuse(403, "Forbidden: you need write access to this repository")
        if what == "settings":
            repository.private = (
                json.loads(data)["visibility"] == "private" if b"visibility" in data else json.loads(data)["private"]
            )
            return self.answer()
        if what == "refs":
            ends = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in repository.tags.items()]
            head = {"name": "main", "ref": "refs/heads/main", "targetCommit": repository.history[-1][0]}
            return self.answer({"branches": [head], "converts": [], "tags": ends})
        if what == "tag" and self.command == "DELETE":
            return (
                self.answer() if repository.tags.pop(rest[1], None) else self.refuse(404, "no tag", "RevisionNotFound")
            )
        if what == "super-squash":
            files = repository.history[-1][1]
            repository.history = []
            return self.answer({"commitId": repository.commit(files, json.loads(data).get("message", ""))})
        entry = repository.at(rest[1] if len(rest) > 1 else "main")
        if entry is None:
            return self.refuse(404, "Revision not found", "RevisionNotFound")
        if what == "tag":
            if json.loads(data)["tag"] in repository.tags:
                return self.refuse(409, "Tag exists already")
            repository.tags[json.loads(data)["tag"]] = entry[0]
            return self.answer()
        self.revision(what, rest, url, data, (kind, name, repository, entry))

    def revision(self, what: str, rest: list[str], url: Any, data: bytes, at: Any) -> None:
        kind, name, repository, (commit, files) = at
        if what == "preupload":
            found = [{"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular", "shouldIgnore": False, "oid": _oid(f["path"], files)} for f in json.loads(data)["files"]]  # fmt: skip
            return self.answer({"files": found})
        if what == "commit":
            return self.commit(data, name, kind, repository)
        if what == "tree":
            return self.tree("/".join(rest[2:]), parse_qs(url.query), files)
        if what == "paths-info":
            query = json.loads(data) if data.startswith(b"{") else parse_qs(data.decode())
            return self.answer(
                [
                    _entry(p, files[p]) if p in files else _folder(p)
                    for p in query["paths"]
                    if p in files or _holds(p, files)
                ]
            )
        siblings = [{"rfilename": path} for path in sorted(files)]
        self.answer({"id": name, "sha": commit, "private": repository.private, "siblings": siblings, "tags": [], "gated": False, "disabled": False, "downloads": 0, "likes": 0})  # fmt: skip

    def commit(self, data: bytes, name: str, kind: str, repository: Repository) -> None:
        if self.hub.before_commit is not None:
            self.hub.before_commit(self.hub, repository)
        lines = [json.loads(line) for line in data.splitlines()]
        header, (head, files) = lines[0]["value"], repository.history[-1]
        if header.get("parentCommit") and header["parentCommit"] != head:
            return self.refuse(412, "A commit has happened since. Please refresh and try again.")
        files = dict(files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.large:
                    return self.refuse(400, "lfs object is missing")
                files[value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = repository.commit(files, header["summary"])
        self.answer({"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def tree(self, folder: str, query: dict[str, list[str]], files: dict[str, bytes]) -> None:
        inside = {p: b for p, b in files.items() if not folder or p.startswith(folder + "/")}
        if not inside:
            return self.refuse(404, "Entry not found", "EntryNotFound")
        depth = len(folder.split("/")) if folder else 0
        entries = {}
        for path in sorted(inside):
            parts = path.split("/")
            for level in range(depth + 1, len(parts)):
                entries["/".join(parts[:level])] = None
            entries[path] = inside[path]
        if query.get("recursive", ["false"])[0].lower() != "true":
            entries = {p: b for p, b in entries.items() if len(p.split("/")) == depth + 1}
        self.answer([_folder(p) if b is None else _entry(p, b) for p, b in entries.items()])

    def resolve(self, url: Any, user: str | None) -> None:
        parts = unquote(url.path).strip("/").split("/")
        kind = "dataset" if parts[0] == "datasets" else "model"
        owner, short, _, revision, *path = parts[1:] if kind == "dataset" else parts
        repository = self.hub.repositories.get((kind, f"{owner}/{short}"))
        if repository is None or (repository.private and user != owner):
            return self.refuse(404 if user else 401, "Repository not found", "RepoNotFound")
        entry = repository.at(revision)
        if entry is None:
            return self.refuse(404, "Revision not found", "RevisionNotFound")
        data = entry[1].get("/".join(path))
        if data is None:
            return self.refuse(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": entry[0], "ETag": f'"{_hash("/".join(path), data)}"', "Accept-Ranges": "bytes"}
        headers["Content-Type"] = "application/octet-stream"
        span = self.headers.get("Range")
        if span:
            first, _, last = span.removeprefix("bytes=").partition("-")
            end = min(int(last) if last else len(data) - 1, len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{end}/{len(data)}"
            return self.answer(data[int(first) : end + 1], 206, headers)
        self.answer(data, 200, headers)


def _hash(path: str, data: bytes) -> str:
    if path.endswith(LARGE) and data:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _oid(path: str, files: dict[str, bytes]) -> str | None:
    return _hash(path, files[path]) if path in files else None


def _entry(path: str, data: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    found = {"type": "file", "path": path, "size": len(data), "oid": blob}
    if path.endswith(LARGE):
        found["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return found


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}


def _holds(path: str, files: dict[str, bytes]) -> bool:
    return any(name.startswith(path.rstrip("/") + "/") for name in files)
