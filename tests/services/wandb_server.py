"""A stand-in for the server of Weights & Biases on the loopback address, which misbehaves as told.

The stand-in speaks what the client asks for a training: the login, GraphQL for a run's creation and resume, the file
stream of figures, and the upload of files. It keeps runs in memory and knows no accounts. It is not W&B's server.
"""

import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from urllib.parse import urlparse

KEY = "0123456789abcdef0123456789abcdef01234567"
"""The form of a key; the stand-in takes any."""


class Run:
    """What the server has of a run.

    Attributes:
        config, summary: JSON objects.
        streams: {file of the stream: {line number: line}}.
        files: {name of an uploaded file: bytes}.
        exit_code: that the client has sent, or None.
        created: how often the run was created or resumed.
    """

    def __init__(self, name):
        self.name, self.created, self.exit_code = name, 0, None
        self.config, self.summary, self.streams, self.files = {}, {}, {}, {}

    def lines(self, file):
        """The lines of a stream in order."""
        return [line for _, line in sorted(self.streams.get(file, {}).items())]

    @property
    def history(self):
        """The logged figures, one dict a line."""
        return [json.loads(line) for line in self.lines("wandb-history.jsonl")]

    def values(self, metric):
        """{step of the trainer: value} of a metric."""
        return {row["trainer/global_step"]: row[metric] for row in self.history if metric in row}

    def bucket(self):
        history, events = self.lines("wandb-history.jsonl"), self.lines("wandb-events.jsonl")
        project = {"id": "cA==", "name": "consistency-models", "entity": {"id": "ZQ==", "name": "me"}}
        return {
            "id": self.name,
            "name": self.name,
            "displayName": self.name,
            "description": None,
            "sweepName": None,
            "project": project,
            "config": json.dumps(self.config),
            "summaryMetrics": json.dumps(self.summary),
            "historyLineCount": len(history),
            "eventsLineCount": len(events),
            "logLineCount": 0,
            "historyTail": json.dumps(history[-1:]),
            "eventsTail": json.dumps(events[-1:]),
            "tags": [],
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
        }


class WandbServer:
    """The stand-in.

    Attributes:
        runs: {id: `Run`}.
        mode: what becomes of requests from now on. "answer"; "500": an error; "hang": silence until the next mode;
            "dead": the connection is refused.
    """

    def __init__(self):
        self.runs = {}
        self.mode, self._changed, self.port = "answer", Event(), 0
        self._listen()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self):
        """The environment variables of a client that is logged in."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    def become(self, mode):
        """Behave as `mode` says from now on; at the same address."""
        if self.mode == "dead" and mode != "dead":
            self._listen()
        if mode == "dead" and self.mode != "dead":
            self._close()
        self.mode = mode
        self._changed.set()  # requests that hang are released
        self._changed = Event()

    def _listen(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                server.answer(self)

            do_PUT = do_GET = do_POST

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_port
        Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def _close(self):
        self.http.shutdown()
        self.http.server_close()

    def answer(self, request):
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if self.mode == "hang":
            self._changed.wait(60)
            request.close_connection = True
            return
        if self.mode == "500":
            request.send_error(500)
            return
        path = urlparse(request.path).path
        stream = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path)
        upload = re.fullmatch(r"/upload/([^/]+)/(.*)", path)
        if path == "/graphql":
            reply = self._graphql(json.loads(body))
        elif stream:
            reply = self._file_stream(self.runs[stream[1]], json.loads(body))
        elif upload:
            self.runs[upload[1]].files[upload[2]] = body
            reply = {}
        else:
            request.send_error(404)
            return
        content = json.dumps(reply).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def _graphql(self, request):
        operation = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        name, variables = operation[1] if operation else "", request.get("variables") or {}
        answer = getattr(self, f"_{name}", None)
        if answer is None:
            return {"errors": [{"message": f"the stand-in does not know {name}"}]}
        return {"data": answer(variables)}

    def _Viewer(self, variables):
        return {"viewer": {"id": "bWU=", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}

    def _ServerFeaturesQuery(self, variables):
        return {"serverInfo": {"features": []}}

    def _RunResumeStatus(self, variables):
        run = self.runs.get(variables["name"])
        return {"model": {"name": "consistency-models", "entity": {"name": "me"}, "bucket": run and run.bucket()}}

    def _UpsertBucket(self, variables):
        name = variables.get("name") or variables["id"]
        inserted = name not in self.runs
        run = self.runs.setdefault(name, Run(name))
        run.created += 1
        run.config |= json.loads(variables.get("config") or "{}")
        run.summary |= json.loads(variables.get("summaryMetrics") or "{}")
        return {"upsertBucket": {"bucket": run.bucket(), "inserted": inserted}}

    def _CreateRunFiles(self, variables):
        files = [
            {"name": name, "uploadUrl": f"{self.url}/upload/{variables['run']}/{name}"} for name in variables["files"]
        ]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}

    def _MarkRunFilesUploaded(self, variables):
        return {"markRunFilesUploaded": {"success": True}}

    def _file_stream(self, run, content):
        for file, part in (content.get("files") or {}).items():
            lines = enumerate(part["content"], part["offset"])
            if file == "wandb-summary.json":
                run.summary |= json.loads(part["content"][-1])
            else:
                run.streams.setdefault(file, {}).update(lines)
        if content.get("complete"):
            run.exit_code = content["exitcode"]
        return {"limits": {}}


@contextmanager
def wandb_server():
    """A `WandbServer` for as long as the block runs."""
    server = WandbServer()
    try:
        yield server
    finally:
        server.become("dead")
