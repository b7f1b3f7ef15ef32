"""A local server that answers the requests of wandb's public API for one artifact."""

import base64
import hashlib
import http.server
import json
import threading
from contextlib import contextmanager


def _membership(name: str) -> dict:
    collection = {
        "__typename": "ArtifactSequence",
        "name": name,
        "project": {"id": "p", "internalId": "1", "name": "zoo", "entity": {"name": "someone"}},
    }
    artifact = {"__typename": "Artifact", "id": "QXJ0", "artifactSequence": collection, "versionIndex": 0}
    artifact |= {"artifactType": {"name": "model"}, "description": None, "metadata": "{}", "tags": [], "aliases": []}
    artifact |= {"ttlDurationSeconds": 0, "ttlIsInherited": True, "historyStep": None, "state": "COMMITTED"}
    artifact |= {"size": 1, "digest": "d", "commitHash": "c", "fileCount": 2, "updatedAt": None}
    artifact |= {"createdAt": "2026-01-01T00:00:00Z"}
    membership = {"__typename": "ArtifactCollectionMembership", "id": "m", "versionIndex": 0}
    membership |= {"aliases": [{"__typename": "ArtifactAlias", "id": "a", "alias": "best"}], "artifact": artifact}
    return membership | {"createdAt": "2026-01-01T00:00:00Z", "artifactCollection": collection}


@contextmanager
def serve(name: str, files: dict[str, bytes], damaged: bool = False):
    """Start a server with the artifact someone/zoo/``name``:best, and yield its address.

    Args:
        name: name of the artifact. The server has no other artifact.
        files: content of the artifact's files, by name.
        damaged: whether the server changes the content of files.
    """
    entries = {
        file: {"digest": base64.b64encode(hashlib.md5(content).digest()).decode(), "size": len(content)}
        for file, content in files.items()
    }
    manifest = {"version": 1, "storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {}}
    manifest["contents"] = {file: entry | {"birthArtifactID": "QXJ0"} for file, entry in entries.items()}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if self.path != "/graphql":
                return self.reply(b"{}")
            asked = json.loads(body)
            query, given = asked["query"], asked.get("variables") or {}
            if "FileUrls" in query:
                nodes = [{"__typename": "File", "name": f, "directUrl": f"{self.address}/file/{f}"} for f in files]
                pages = {"pageInfo": {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}}
                found = {"files": pages | {"edges": [{"node": node} for node in nodes]}}
                collection = {"__typename": "ArtifactSequence", "artifactMembership": found}
                data = {"project": {"artifactCollection": collection}}
            elif "FetchArtifactManifest" in query:
                data = {"artifact": {"currentManifest": {"file": {"directUrl": f"{self.address}/manifest"}}}}
            elif "ArtifactMembershipByName" in query:
                known = given["name"] == f"{name}:best"
                data = {"project": {"artifactCollectionMembership": _membership(name) if known else None}}
            elif "viewer" in query:
                viewer = {"id": "1", "entity": "someone", "username": "someone", "email": "", "flags": "{}"}
                data = {"viewer": viewer | {"teams": {"edges": []}}}
            else:
                data = {}
            return self.reply(json.dumps({"data": data}).encode())

        def do_GET(self):
            if self.path == "/manifest":
                return self.reply(json.dumps(manifest).encode())
            content = files[self.path.removeprefix("/file/")]
            return self.reply(content[:-1] + bytes([content[-1] ^ 1]) if damaged else content)

        def reply(self, content):
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Handler.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Handler.address
    finally:
        server.shutdown()
        server.server_close()
