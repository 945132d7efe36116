"""A Hub on this machine: the few HTTP calls that huggingface_hub makes to create, upload and download, kept in memory."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeHub:
    """Repositories as dictionaries. `fail` holds substrings of "METHOD /path"; a request with one of them gets `status`."""

    def __init__(self):
        self.repos = {}  # name -> {"private": bool, "files": {path: bytes}, "commits": [message]}
        self.blobs = {}  # sha256 -> bytes, what was uploaded as large file
        self.sent = []  # "METHOD /path" of every request
        self.fail, self.status = [], 403
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def handle_one(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = self.path.split("?")[0]
                hub.sent.append(f"{self.command} {path}")
                if any(word in hub.sent[-1] for word in hub.fail):
                    return self.answer({"error": "the fake Hub was told to refuse this"}, hub.status)
                found = hub.answer(self.command, path, body)
                return self.answer(*(found if isinstance(found, tuple) else (found,)))

            do_GET = do_POST = do_PUT = do_HEAD = handle_one

            def answer(self, content, status=200, headers=()):
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in dict(headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo):
        return self.repos[repo]["files"]

    def answer(self, method, path, body):
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization') or 'somebody'}/{wanted['name']}"
            if name in self.repos:
                return {"error": "exists", "url": f"{self.url}/{name}"}, 409
            self.repos[name] = {
                "private": wanted.get("visibility") == "private" or wanted.get("private") is True,
                "files": {},
                "commits": [],
            }
            return {"url": f"{self.url}/{name}", "name": name}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path.endswith("/info/lfs/objects/batch"):
            return {"transfer": "basic", "objects": [self._large_file(entry) for entry in json.loads(body)["objects"]]}
        if parts[0] == "blobs":
            self.blobs[hashlib.sha256(body).hexdigest()] = body
            return {}
        if parts[:2] == ["api", "models"]:
            name, call = "/".join(parts[2:4]), parts[4] if len(parts) > 4 else ""
            if name not in self.repos:
                return {"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound"}
            if call == "preupload":
                return {"files": [self._preupload(entry["path"]) for entry in json.loads(body)["files"]]}
            if call == "commit":
                return self._commit(name, [json.loads(line) for line in body.splitlines()])
            return {
                "id": name,
                "sha": "0" * 40,
                "siblings": [{"rfilename": file} for file in self.files(name)],
                "tags": [],
            }
        if len(parts) > 4 and parts[2] == "resolve":
            content = self.repos.get("/".join(parts[:2]), {"files": {}})["files"].get("/".join(parts[4:]))
            if content is None:
                return {"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "0" * 40}
            etag = hashlib.sha256(content).hexdigest()
            return content, 200, {"ETag": f'"{etag}"', "X-Repo-Commit": etag[:40]}
        return {"error": f"the fake Hub does not know {method} {path}"}, 501

    def _preupload(self, path):
        large = path.endswith((".safetensors", ".bin", ".pt"))
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": None}

    def _large_file(self, entry):
        answer = {"oid": entry["oid"], "size": entry["size"]}
        if entry["oid"] not in self.blobs:  # what is there already is not asked for again
            answer["actions"] = {"upload": {"href": f"{self.url}/blobs/{entry['oid']}", "header": {}}}
        return answer

    def _commit(self, name, lines):
        files = self.files(name)
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.repos[name]["commits"].append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.blobs[value["oid"]]
        return {"commitUrl": f"{self.url}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40}
