"""A small Hub on loopback: real HTTP, the routes and headers that huggingface_hub asks for."""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Names that answer with an error: its status and the code in its headers.
REFUSED = {
    "org/gated": (403, "GatedRepo"),
    "org/missing": (404, "RepoNotFound"),
}


class Hub:
    """Repositories by (kind, name): {file: bytes}; `cut`: files of which half is sent."""

    def __init__(self):
        self.repositories = {}
        self.cut = set()
        self.asked = []

    def answer(self, method, path):
        """(status, headers, body) of a request."""
        self.asked.append((method, path))
        parts = urllib.parse.unquote(path).strip("/").split("/")
        is_api = parts[0] == "api"
        parts = parts[1:] if is_api else parts
        kind = "dataset" if parts[0] == "datasets" else "model"
        parts = parts[1:] if parts[0] in ("datasets", "models") else parts
        name, rest = "/".join(parts[:2]), parts[2:]
        if name in REFUSED:
            status, code = REFUSED[name]
            return status, {"X-Error-Code": code, "X-Error-Message": code}, b"{}"
        files = self.repositories.get((kind, name))
        if files is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in ("main", "v1", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if is_api and rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": file, "size": len(body), "oid": COMMIT}
                for file, body in files.items()
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(tree).encode()
        if is_api:
            body = {"_id": "1", "id": name, "sha": COMMIT, "private": False, "tags": []}
            body |= {"siblings": [{"rfilename": file} for file in files]}
            body |= {"modelId": name, "downloads": 0, "likes": 0, "gated": False}
            return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()
        file = "/".join(rest[2:])
        if file not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        body = files[file]
        tag = hashlib.sha256(body).hexdigest()
        return 200, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "file": file}, body


@contextlib.contextmanager
def serve():
    """A running Hub and its address."""
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, headers, body = hub.answer(
                self.command, self.path.partition("?")[0]
            )
            file = headers.pop("file", None)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if file in hub.cut else body)
                self.close_connection = file in hub.cut

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
