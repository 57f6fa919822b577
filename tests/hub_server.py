"""A small Hugging Face Hub on loopback for tests: datasets, commits, tags, large files, faults and a request log.

It serves what the `huggingface_hub` and `datasets` clients ask for when they publish and load: blobs are files on disk,
the state is one JSON file that is rewritten after every change, so a server can be stopped and started on the same
folder. It checks what the real Hub checks and the tests rely on: a parent commit that is not the head of the branch is
refused with 412, a tag or branch that exists with 409 (`HfApi.create_tag`, `create_branch`), a blob that was not
uploaded with 400. A commit that no branch or tag leads to is not found; the real Hub keeps it for some time. There are
no permissions beyond two tokens, no pull requests, and no Xet storage: clients need HF_HUB_DISABLE_XET.

Run it alone with `python tests/hub_server.py FOLDER`; it prints its address.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml
from aiohttp import web

TOKEN = "hf_test_token"
OTHER_TOKEN = "hf_other_token"
_LFS_SUFFIXES = (".parquet", ".arrow", ".bin")


class HubServer:
    """The state and the handlers. `faults` maps "METHOD kind" to what happens to the next requests of that kind.

    Kinds: create, info, refs, tree, paths, preupload, commit, commits, tag, branch, lfs_batch, lfs_put, resolve, yaml.
    Faults: an int is the status to answer with; "commit_then_503" does the work and answers 503; "drop" closes the
    connection; "hang" never answers; "before:NAME" runs the hook NAME of `hooks` first. Each fault is used once, in
    order. `before` is called in a thread of its own before every request with its token and kind; what it returns is
    a fault, or None.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self.log: list[tuple[str, str]] = []
        self.faults: dict[str, list[int | str]] = {}
        self.hooks: dict[str, Callable[[], None]] = {}
        self.before: Callable[[str, str], int | str | None] = lambda token, kind: None
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        self._state_file = folder / "state.json"
        empty: dict[str, Any] = {"repos": {}, "commits": {}}
        self.state: dict[str, Any] = json.loads(self._state_file.read_text()) if self._state_file.exists() else empty

    def save(self) -> None:
        temporary = self._state_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.state))
        os.replace(temporary, self._state_file)

    def put_blob(self, data: bytes) -> str:
        sha = hashlib.sha256(data).hexdigest()
        (self.folder / "blobs" / sha).write_bytes(data)
        return sha

    def blob(self, sha: str) -> Path:
        return self.folder / "blobs" / sha

    def create_repo(self, name: str, private: bool = False) -> None:
        self.state["repos"][name] = {"private": private, "main": None, "tags": {}, "branches": {}}
        self.add_commit(name, {".gitattributes": self.entry(b"*.parquet filter=lfs\n", lfs=False)}, "initial commit")

    def entry(self, data: bytes, *, lfs: bool) -> dict[str, Any]:
        git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        return {"sha256": self.put_blob(data), "size": len(data), "oid": git, "lfs": lfs}

    def add_commit(
        self, name: str, files: dict[str, Any], title: str, branch: str = "main", description: str = ""
    ) -> str:
        heads = self.state["repos"][name] if branch == "main" else self.state["repos"][name]["branches"]
        text = json.dumps([heads[branch], files, title, len(self.state["commits"])], sort_keys=True)
        oid = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        made = {"parent": heads[branch], "files": files, "title": title, "description": description, "repo": name}
        self.state["commits"][oid] = made
        heads[branch] = oid
        self.save()
        return oid

    def files(self, name: str, revision: str = "main") -> dict[str, Any]:
        """Return path -> entry of a revision."""
        oid = self.resolve(name, revision)
        assert oid is not None, f"{name} has no revision {revision}"
        return dict(self.state["commits"][oid]["files"])

    def read(self, name: str, path: str, revision: str = "main") -> bytes:
        return self.blob(self.files(name, revision)[path]["sha256"]).read_bytes()

    def history(self, oid: str | None) -> Iterator[str]:
        """Yield the ids of a commit and of those before it."""
        while oid is not None:
            yield oid
            oid = self.state["commits"][oid]["parent"]

    def commits(self, name: str) -> list[str]:
        """Return the titles of main, newest first."""
        return [self.state["commits"][oid]["title"] for oid in self.history(self.state["repos"][name]["main"])]

    def resolve(self, name: str, revision: str) -> str | None:
        repo = self.state["repos"][name]
        if revision in ("main", "refs/heads/main"):
            return str(repo["main"])
        for names in (repo["branches"], repo["tags"]):
            if revision in names:
                return str(names[revision])
        heads = {repo["main"], *repo["branches"].values(), *repo["tags"].values()}
        return revision if any(revision in self.history(head) for head in heads) else None

    def count(self, kind: str) -> int:
        """Return how many requests "METHOD kind" were logged."""
        return sum(1 for logged, _ in self.log if logged == kind)

    def application(self) -> web.Application:
        app = web.Application(client_max_size=2**30)
        repo = "/api/datasets/{owner}/{repo}"
        for method, path, kind, handler in (
            ("POST", "/api/repos/create", "create", self._create),
            ("POST", "/api/validate-yaml", "yaml", self._yaml),
            ("GET", repo, "info", self._info),
            ("GET", f"{repo}/revision/{{revision}}", "info", self._info),
            ("GET", f"{repo}/refs", "refs", self._refs),
            ("GET", f"{repo}/tree/{{revision}}", "tree", self._tree),
            ("GET", f"{repo}/tree/{{revision}}/{{path:.*}}", "tree", self._tree),
            ("POST", f"{repo}/paths-info/{{revision}}", "paths", self._paths),
            ("POST", f"{repo}/preupload/{{revision}}", "preupload", self._preupload),
            ("POST", f"{repo}/commit/{{revision}}", "commit", self._commit),
            ("GET", f"{repo}/commits/{{revision}}", "commits", self._commits),
            ("POST", f"{repo}/tag/{{revision}}", "tag", self._tag),
            ("POST", f"{repo}/branch/{{branch}}", "branch", self._branch),
            ("DELETE", f"{repo}/branch/{{branch}}", "branch", self._delete_branch),
            ("POST", "/datasets/{owner}/{repo}.git/info/lfs/objects/batch", "lfs_batch", self._lfs_batch),
            ("PUT", "/lfs/{sha}", "lfs_put", self._lfs_put),
            ("GET", "/datasets/{owner}/{repo}/resolve/{revision}/{path:.*}", "resolve", self._resolve),
        ):
            for verb in ("GET", "HEAD") if method == "GET" else (method,):
                app.router.add_route(verb, path, self._guarded(f"{verb} {kind}", handler))
        return app

    def _guarded(
        self, kind: str, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def guarded(request: web.Request) -> web.StreamResponse:
            self.log.append((kind, request.path))
            token = request.headers.get("Authorization", "").removeprefix("Bearer ")
            fault = await asyncio.to_thread(self.before, token, kind)
            if fault is None:
                fault = self.faults[kind].pop(0) if self.faults.get(kind) else None
            if isinstance(fault, int):
                return web.json_response({"error": f"injected {fault}"}, status=fault)
            if fault == "hang":
                await asyncio.sleep(3600)
            if fault == "drop":
                assert request.transport is not None
                request.transport.close()
                return web.Response(status=500)
            if fault is not None and fault.startswith("before:"):
                await asyncio.to_thread(self.hooks[fault.removeprefix("before:")])
            # The address of an upload is signed and carries no token, as on the real Hub.
            free = request.method in ("GET", "HEAD") or handler == self._lfs_put
            if not free and token not in (TOKEN, OTHER_TOKEN):
                return _error(401, "Unauthorized", "Invalid credentials")
            response = await handler(request)
            if fault in ("commit_then_503", "commit_then_418"):
                return web.json_response({"error": "injected after the work was done"}, status=int(fault[-3:]))
            return response

        return guarded

    def _target(self, request: web.Request) -> tuple[str, str]:
        """Return repository and commit of a request; raise the 404 that the client tells apart by its header."""
        name = f"{request.match_info['owner']}/{request.match_info['repo']}"
        if name not in self.state["repos"]:
            raise _not_found("RepoNotFound", "Repository not found")
        oid = self.resolve(name, unquote(request.match_info.get("revision", "main")))
        if oid is None:
            raise _not_found("RevisionNotFound", "Invalid rev id")
        return name, oid

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        name = f"{body['organization']}/{body['name']}"
        if name in self.state["repos"]:
            return web.json_response({"error": "exists", "url": f"{self.url}/datasets/{name}"}, status=409)
        self.create_repo(name, private=body.get("visibility") == "private" or bool(body.get("private")))
        return web.json_response({"url": f"{self.url}/datasets/{name}"})

    async def _yaml(self, request: web.Request) -> web.Response:
        content = (await request.json())["content"]
        try:
            data = yaml.safe_load(content.split("---")[1])
        except (yaml.YAMLError, IndexError) as error:
            return web.json_response({"errors": [{"message": str(error)}], "warnings": []}, status=400)
        wrong = [] if isinstance(data, dict) and isinstance(data.get("configs"), list) else [{"message": "no configs"}]
        return web.json_response({"errors": wrong, "warnings": []}, status=400 if wrong else 200)

    async def _info(self, request: web.Request) -> web.Response:
        name, oid = self._target(request)
        siblings = [{"rfilename": path} for path in self.state["commits"][oid]["files"]]
        private = self.state["repos"][name]["private"]
        return web.json_response({"id": name, "sha": oid, "private": private, "siblings": siblings, "tags": []})

    async def _refs(self, request: web.Request) -> web.Response:
        name, oid = self._target(request)
        tags = [
            {"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": target}
            for tag, target in self.state["repos"][name]["tags"].items()
        ]
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": oid}
        others = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": target}
            for branch, target in self.state["repos"][name]["branches"].items()
        ]
        return web.json_response({"branches": [main, *others], "converts": [], "tags": tags})

    async def _commits(self, request: web.Request) -> web.Response:
        _, head = self._target(request)
        found = [(oid, self.state["commits"][oid]) for oid in self.history(head)]
        date = "2026-01-01T00:00:00.000Z"
        return web.json_response(
            [
                {"id": oid, "title": one["title"], "message": one["description"], "date": date, "authors": []}
                for oid, one in found
            ]
        )

    async def _tree(self, request: web.Request) -> web.Response:
        _, oid = self._target(request)
        files = self.state["commits"][oid]["files"]
        base = unquote(request.match_info.get("path", "")).strip("/")
        prefix = f"{base}/" if base else ""
        inside = {path: entry for path, entry in files.items() if path.startswith(prefix)}
        if base and not inside:
            raise _not_found("EntryNotFound", f"{base} does not exist")
        if request.query.get("recursive", "").lower() in ("true", "1"):
            shown = inside
        else:
            shown = {path: entry for path, entry in inside.items() if "/" not in path.removeprefix(prefix)}
        folders = {prefix + p.removeprefix(prefix).split("/")[0] for p in inside if "/" in p.removeprefix(prefix)}
        listing = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
        return web.json_response(listing + [_listed(path, entry) for path, entry in shown.items()])

    async def _paths(self, request: web.Request) -> web.Response:
        _, oid = self._target(request)
        files = self.state["commits"][oid]["files"]
        if request.content_type == "application/json":
            paths = (await request.json())["paths"]
        else:
            paths = (await request.post()).getall("paths", [])
        found = []
        for path in map(str, paths):
            if path in files:
                found.append(_listed(path, files[path]))
            elif any(known.startswith(f"{path}/") for known in files):
                found.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        return web.json_response(found)

    async def _preupload(self, request: web.Request) -> web.Response:
        _, oid = self._target(request)
        files = self.state["commits"][oid]["files"]
        answers = []
        for file in (await request.json())["files"]:
            path, known = file["path"], files.get(file["path"])
            mode = "lfs" if path.endswith(_LFS_SUFFIXES) else "regular"
            remote = None if known is None else known["sha256" if known["lfs"] else "oid"]
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": remote})
        return web.json_response({"files": answers})

    async def _lfs_batch(self, request: web.Request) -> web.Response:
        objects = []
        for wanted in (await request.json())["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if not self.blob(wanted["oid"]).exists():
                answer["actions"] = {"upload": {"href": f"{self.url}/lfs/{wanted['oid']}", "header": {}}}
            objects.append(answer)
        return web.json_response({"transfer": "basic", "objects": objects})

    async def _lfs_put(self, request: web.Request) -> web.Response:
        data = await request.read()
        if hashlib.sha256(data).hexdigest() != request.match_info["sha"]:
            return web.Response(status=400, text="the content does not have this digest")
        self.put_blob(data)
        return web.Response()

    async def _commit(self, request: web.Request) -> web.Response:
        lines = (await request.read()).splitlines()
        name, oid = self._target(request)
        branch = request.match_info["revision"]
        if branch != "main" and branch not in self.state["repos"][name]["branches"]:
            return _error(400, "BadRequest", "a commit is made on a branch")
        files, title, description = dict(self.state["commits"][oid]["files"]), "", ""
        for line in lines:
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                title, description = value["summary"], value["description"]
                if value.get("parentCommit") not in (None, oid):
                    return _error(
                        412, "PreconditionFailed", "A commit has happened since. Please refresh and try again."
                    )
            elif key == "file":
                files[value["path"]] = self.entry(base64.b64decode(value["content"]), lfs=False)
            elif key == "lfsFile":
                blob = self.blob(value["oid"])
                # A copy of a file that the repository has is sent without its size (`_prepare_commit_payload`).
                if not blob.exists() or blob.stat().st_size != value.get("size", blob.stat().st_size):
                    return _error(400, "BadRequest", f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = self.entry(self.blob(value["oid"]).read_bytes(), lfs=True)
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    return _error(404, "EntryNotFound", "A file with this name doesn't exist")
            else:
                return _error(400, "BadRequest", f"unknown operation {key}")
        made = self.add_commit(name, files, title, branch, description)
        return web.json_response({"commitUrl": f"{self.url}/datasets/{name}/commit/{made}", "commitOid": made})

    async def _tag(self, request: web.Request) -> web.Response:
        tag = (await request.json())["tag"]
        name, oid = self._target(request)
        tags = self.state["repos"][name]["tags"]
        if tag in tags:
            return _error(409, "Conflict", f"Tag {tag} already exists")
        tags[tag] = oid
        self.save()
        return web.json_response({})

    async def _branch(self, request: web.Request) -> web.Response:
        wanted = await request.json()
        name, oid = self._target(request)
        branch, start = request.match_info["branch"], wanted.get("startingPoint")
        if branch.startswith("refs/"):
            return _error(400, "BadRequest", "Invalid reference for a branch")
        if branch == "main" or branch in self.state["repos"][name]["branches"]:
            return _error(409, "Conflict", f"Reference already exists: {branch}")
        at = oid if start is None else self.resolve(name, start)
        if at is None:
            raise _not_found("RevisionNotFound", "Invalid rev id")
        self.state["repos"][name]["branches"][branch] = at
        self.save()
        return web.json_response({})

    async def _delete_branch(self, request: web.Request) -> web.Response:
        name, _ = self._target(request)
        branch = request.match_info["branch"]
        if branch == "main":
            return _error(403, "Forbidden", "main cannot be deleted")
        if self.state["repos"][name]["branches"].pop(branch, None) is None:
            raise _not_found("RevisionNotFound", "Invalid rev id")
        self.save()
        return web.json_response({})

    async def _resolve(self, request: web.Request) -> web.StreamResponse:
        _, oid = self._target(request)
        entry = self.state["commits"][oid]["files"].get(unquote(request.match_info["path"]))
        if entry is None:
            raise _not_found("EntryNotFound", "Entry not found")
        etag = entry["sha256"] if entry["lfs"] else entry["oid"]
        headers = {
            "ETag": f'"{etag}"',
            "X-Repo-Commit": oid,
            "X-Linked-Size": str(entry["size"]),
            "Accept-Ranges": "bytes",
        }
        data, span = self.blob(entry["sha256"]).read_bytes(), request.http_range
        if span.start is None and span.stop is None:
            return web.Response(body=data, headers=headers, content_type="application/octet-stream")
        start = span.start if span.start >= 0 else len(data) + span.start
        part = data[start : span.stop]
        headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
        return web.Response(status=206, body=part, headers=headers, content_type="application/octet-stream")


def _listed(path: str, entry: dict[str, Any]) -> dict[str, Any]:
    listed = {"type": "file", "path": path, "size": entry["size"], "oid": entry["oid"]}
    if entry["lfs"]:
        listed["lfs"] = {"oid": entry["sha256"], "size": entry["size"], "pointerSize": 130}
    return listed


def _error(status: int, code: str, message: str) -> web.Response:
    headers = {"X-Error-Code": code, "X-Error-Message": message}
    return web.json_response({"error": message}, status=status, headers=headers)


def _not_found(code: str, message: str) -> web.HTTPNotFound:
    return web.HTTPNotFound(headers={"X-Error-Code": code, "X-Error-Message": message})


@contextmanager
def running(folder: Path) -> Iterator[HubServer]:
    """Serve on a free loopback port from a thread of its own until the block ends."""
    server = HubServer(folder)
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=0.1)
    ready = threading.Event()

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        server.url = f"http://{host}:{port}"
        ready.set()

    def serve() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    if not ready.wait(10):
        raise RuntimeError("the Hub server did not start")
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


if __name__ == "__main__":
    with running(Path(sys.argv[1])) as alone:
        print(alone.url, flush=True)
        threading.Event().wait()
