"""A local server with the routes of the Hugging Face Hub that huggingface_hub uses to push and to load a model."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_" + "0" * 34
LFS = (".safetensors", ".png")  # endings of the files that are stored as large files
LICENSES = ("mit", "apache-2.0")


def git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class Repository:
    """A repository: a list of commits, each a dictionary of files, and the names of some of them."""

    def __init__(self, private: bool):
        self.private, self.commits, self.refs = private, {}, {}
        self.commit("main", {})

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        before = self.refs.get(branch, "")
        listing = repr([before, sorted((name, git_digest(content)) for name, content in files.items())])
        sha = hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()
        self.commits[sha], self.refs[branch] = files, sha
        return sha

    def find(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


class Hub:
    """The server. ``repositories`` are those on it, and ``asked`` lists the requests. Only TOKEN may push.

    If ``status`` is set, it is the status of every answer. If ``full`` is true, no large file is accepted.
    """

    def __init__(self):
        hub = self
        self.repositories, self.large, self.asked, self.status = {}, {}, [], None
        self.full = False

        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                path = unquote(urlsplit(self.path).path)
                hub.asked.append((self.command, path))
                length = int(self.headers.get("content-length") or 0)
                body = self._chunks() if self.headers.get("transfer-encoding") == "chunked" else self.rfile.read(length)
                logged_in = self.headers.get("authorization") == f"Bearer {TOKEN}"
                status, headers, content = (
                    (hub.status, {}, b"{}")
                    if hub.status
                    else hub.reply(self.command, path, body, logged_in, self.headers.get("authorization") is not None)
                )
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(content))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_POST = do_PUT = answer

            def _chunks(self):
                found = b""
                while size := int(self.rfile.readline(), 16):
                    found += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return found

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self):
        self.http.shutdown()
        self.http.server_close()

    def reply(self, method: str, path: str, body: bytes, logged_in: bool, sent_token: bool):
        """Return the status, the headers and the content of an answer."""
        if sent_token and not logged_in:
            return error(401, None, "Invalid credentials in Authorization header")
        if path == "/api/whoami-v2":
            return (200, {}, {"name": "someone", "type": "user", "orgs": []}) if logged_in else error(401, None)
        if path == "/api/validate-yaml":
            return validate(json.loads(body)["content"])
        if path == "/api/repos/create":
            return self.create(json.loads(body), logged_in)
        if found := re.fullmatch(r"/large/(\w+)", path):
            if self.full:
                return error(403, None, "no storage is left")
            self.large[found[1]] = body
            return 200, {}, b""
        patterns = {
            self.info: r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>.+))?",
            self.preupload: r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>.+)",
            self.commit: r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>.+)",
            self.batch: r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch",
            self.resolve: r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>.+)/(?P<file>[^/]+)",
        }
        for function, pattern in patterns.items():
            if found := re.fullmatch(pattern, path):
                repo = self.repositories.get(found["repo"])
                if repo is None or (repo.private and not logged_in):
                    return error(401 if not logged_in else 404, "RepoNotFound")
                if method in ("POST", "PUT") and not logged_in:
                    return error(403, None, "no write access")
                return function(
                    repo, body, **{k: v for k, v in found.groupdict().items() if k != "repo"}, name=found["repo"]
                )
        return error(404, None)

    def create(self, asked: dict, logged_in: bool):
        name = f"{asked['organization']}/{asked['name']}"
        if not logged_in or asked["organization"] != "someone":
            return error(403, None, "You don't have the rights to create a model under this namespace")
        if name in self.repositories:
            return 409, {}, {"url": f"{self.address}/{name}", "error": "You already created this model repo"}
        private = asked.get("private") or asked.get("visibility") == "private"
        self.repositories[name] = Repository(bool(private))
        return 200, {}, {"url": f"{self.address}/{name}"}

    def info(self, repo: Repository, body: bytes, revision: str | None, name: str):
        if (sha := repo.find(revision or "main")) is None:
            return error(404, "RevisionNotFound")
        files = [{"rfilename": file} for file in repo.commits[sha]]
        return 200, {}, {"id": name, "sha": sha, "private": repo.private, "siblings": files, "tags": []}

    def preupload(self, repo: Repository, body: bytes, revision: str, name: str):
        files = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LFS) else "regular", "shouldIgnore": False}
            for f in json.loads(body)["files"]
        ]
        return 200, {}, {"files": files}

    def batch(self, repo: Repository, body: bytes, name: str):
        objects = json.loads(body)["objects"]
        for item in objects:
            if item["oid"] not in self.large:
                item["actions"] = {"upload": {"href": f"{self.address}/large/{item['oid']}"}}
        return 200, {}, {"transfer": "basic", "objects": objects}

    def commit(self, repo: Repository, body: bytes, revision: str, name: str):
        files = dict(repo.commits[repo.refs[revision]])
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
        sha = repo.commit(revision, files)
        return 200, {}, {"success": True, "commitOid": sha, "commitUrl": f"{self.address}/{name}/commit/{sha}"}

    def resolve(self, repo: Repository, body: bytes, revision: str, file: str, name: str):
        if (sha := repo.find(revision)) is None:
            return error(404, "RevisionNotFound")
        headers = {"X-Repo-Commit": sha}
        if (content := repo.commits[sha].get(file)) is None:
            status, more, text = error(404, "EntryNotFound")
            return status, more | headers, text
        digest = hashlib.sha256(content).hexdigest() if file.endswith(LFS) else git_digest(content)
        return 200, headers | {"ETag": f'"{digest}"', "Content-Type": "application/octet-stream"}, content


def error(status: int, code: str | None, message: str = "refused"):
    return status, {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}), {"error": message}


def validate(readme: str):
    """Answer as the Hub does to the metadata of a README: a license must be a known one."""
    metadata = yaml.safe_load(readme.split("---\n")[1])
    if metadata.get("license", "mit") not in LICENSES:
        return 400, {}, {"errors": [{"message": '"license" must be one of [mit, apache-2.0, ...]'}], "warnings": []}
    return 200, {}, {"errors": [], "warnings": []}


@contextmanager
def running():
    """Yield a server, and stop it at the end."""
    hub = Hub()
    try:
        yield hub
    finally:
        hub.stop()
