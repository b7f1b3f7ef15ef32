"""A local server that keeps what ``wandb sync`` uploads: runs with their history, files and artifacts."""

import http.server
import json
import re
import threading
from contextlib import contextmanager


class Run:
    """What the service keeps of a run."""

    def __init__(self, name):
        self.id, self.settings, self.config, self.tags = name, {}, {}, []
        self.files, self.artifacts, self.exit_codes = {}, [], []
        self.lines = {}  # lines of each streamed file by number

    def streamed(self, file):
        """Return the lines of a streamed file."""
        lines = self.lines.get(f"wandb-{file}", {})
        return [lines[number] for number in sorted(lines)]

    @property
    def history(self):
        return [json.loads(line) for line in self.streamed("history.jsonl")]

    @property
    def summary(self):
        return json.loads((self.streamed("summary.json") or ["{}"])[0])


class _Service:
    """The answers of the service to queries. ``runs`` has a run for each run ID."""

    def __init__(self):
        self.runs, self.artifact_files, self.address = {}, {}, ""

    def upsert(self, given):
        inserted = given["name"] not in self.runs
        run = self.runs.setdefault(given["name"], Run(given["name"]))
        # The service replaces what is given, and keeps everything else.
        if given.get("config") is not None:
            run.config = json.loads(given["config"])
        if given.get("tags") is not None:
            run.tags = given["tags"]
        names = ("displayName", "groupName", "jobType", "notes", "sweep")
        run.settings |= {key: given[key] for key in names if given.get(key) is not None}
        project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "someone"}}
        bucket = self.bucket(run) | {"description": "", "sweepName": None, "project": project}
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def bucket(self, run):
        found = {"id": f"id-{run.id}", "name": run.id, "displayName": run.settings.get("displayName")}
        return found | {"config": json.dumps(run.config), "historyLineCount": len(run.history)}

    def resume_status(self, given):
        found = None
        if run := self.runs.get(given["name"]):
            events = run.streamed("events.jsonl")
            found = self.bucket(run) | {"notes": None, "tags": run.tags, "summaryMetrics": json.dumps(run.summary)}
            found |= {"logLineCount": 0, "eventsLineCount": len(events), "eventsTail": json.dumps(events[-1:])}
            found |= {"historyTail": json.dumps(run.streamed("history.jsonl")[-1:]), "wandbConfig": '{"t": 1}'}
        return {"model": {"id": "p", "name": "zoo", "entity": {"id": "e", "name": "someone"}, "bucket": found}}

    def create_files(self, given):
        files = [{"name": f, "uploadUrl": f"{self.address}/store/{given['run']}/{f}"} for f in given["files"]]
        return {"createRunFiles": {"runID": f"id-{given['run']}", "uploadHeaders": [], "files": files}}

    def create_artifact(self, given):
        given = given["input"]
        run = self.runs[given["runName"]]
        run.artifacts.append(given)
        number = f"{run.id}-{len(run.artifacts)}"
        artifact = {"id": number, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def create_manifest(self, given):
        file = {"id": "f", "uploadUrl": f"{self.address}/manifest/{given['artifactID']}", "uploadHeaders": []}
        manifest = {"artifactManifest": {"id": given["artifactID"], "file": file}}
        return {"createArtifactManifest": manifest, "updateArtifactManifest": manifest}

    def create_artifact_files(self, given):
        edges = []
        for file in given["input"]["artifactFiles"]:
            node = {"storagePath": file["name"], "uploadUrl": f"{self.address}/artifact/{file['name']}"}
            node |= {"uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}}
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def answer(self, query, given):
        answers = {
            "mutation UpsertBucket": self.upsert,
            "query RunResumeStatus": self.resume_status,
            "mutation CreateRunFiles": self.create_files,
            "mutation CreateArtifact ": self.create_artifact,
            "mutation CreateArtifactManifest": self.create_manifest,
            "mutation UpdateArtifactManifest": self.create_manifest,
            "mutation CreateArtifactFiles": self.create_artifact_files,
            "mutation CommitArtifact": lambda given: {
                "commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}
            },
            "mutation MarkRunFilesUploaded": lambda given: {"markRunFilesUploaded": {"success": True}},
            "query ServerFeaturesQuery": lambda given: {"serverInfo": {"features": []}},
        }
        for beginning, function in answers.items():
            if query.startswith(beginning):
                return function(given)
        if "viewer" in query:
            viewer = {"id": "1", "entity": "someone", "username": "someone", "email": "", "flags": "{}"}
            return {"viewer": viewer | {"teams": {"edges": []}}}
        return {}

    def stream(self, name, sent):
        run = self.runs[name]
        for file, chunk in (sent.get("files") or {}).items():
            lines = run.lines.setdefault(file, {})
            lines |= dict(enumerate(chunk["content"], chunk.get("offset", 0)))
        if sent.get("complete"):
            run.exit_codes.append(sent.get("exitcode"))


@contextmanager
def serve():
    """Start the server, and yield it. ``address`` is its address, and ``runs`` has what was uploaded by run ID.

    ``artifact_files`` has the content of the files of all artifacts by name.

    Each run has ``settings``, ``config``, ``tags``, ``history`` (the rows), ``summary``, ``files`` (content by name),
    ``artifacts`` and ``exit_codes`` (one for each part of the run).
    """
    service = _Service()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def content(self):
            return self.rfile.read(int(self.headers.get("content-length", 0)))

        def do_POST(self):
            sent = self.content()
            answer = {}
            if self.path == "/graphql":
                asked = json.loads(sent)
                answer = {"data": service.answer(asked["query"].strip(), asked.get("variables") or {})}
            elif stream := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                service.stream(stream[1], json.loads(sent))
            self.reply(json.dumps(answer).encode())

        def do_PUT(self):
            kind, _, name = self.path.strip("/").partition("/")
            content = self.content()
            if kind == "store":
                run, _, file = name.partition("/")
                service.runs[run].files[file] = content
            elif kind == "artifact":
                service.artifact_files[name] = content
            self.reply(b"{}")

        def do_GET(self):
            self.reply(b"{}")

        def reply(self, content):
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request, client_address):
            """Print nothing. The client closes its idle connections with a reset."""

    server = Server(("127.0.0.1", 0), Handler)
    service.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
