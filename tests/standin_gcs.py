"""Stands in for Google Cloud Storage: the part of its JSON API that gcsfs and TensorStore use, with objects in memory.

As in the real one, every write gives an object a new generation, `ifGenerationMatch` makes a request conditional, there
are no folders, and single objects are moved but not several at once. A bucket exists that is asked for.

    with running() as environment: ...            # variables that lead clients here
    python standin_gcs.py                         # prints its port, and serves until it is killed
"""

import contextlib
import email
import hashlib
import itertools
import json
import re
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, unquote, urlsplit

OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
PAGE = 1000


class Store:
    """Objects by bucket and name, each with its content, its generation and its type."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], tuple[bytes, int, str]] = {}
        self.uploads: dict[str, tuple[str, str, str, bytearray]] = {}
        self.generations = itertools.count(1)
        self.lock = threading.Lock()

    def describe(self, bucket: str, name: str) -> dict:
        content, generation, kind = self.objects[bucket, name]
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(content)),
            "generation": str(generation),
            "metageneration": "1",
            "contentType": kind,
            "md5Hash": b64encode(hashlib.md5(content).digest()).decode(),
            "etag": str(generation),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": f"2026-01-01T00:00:{generation % 60:02}.{generation % 1000:03}Z",
            "storageClass": "STANDARD",
        }

    def write(self, bucket: str, name: str, content: bytes, kind: str) -> dict:
        self.objects[bucket, name] = content, next(self.generations), kind
        return self.describe(bucket, name)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    store: Store

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def handle_any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if self.path.startswith("/batch/"):
            self._batch(body)
            return
        with self.store.lock:
            status, headers, content = self.answer(self.command, self.path, dict(self.headers), body)
        self._send(status, headers, content)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_any  # noqa: N815

    def answer(self, verb: str, target: str, headers: dict, body: bytes) -> tuple[int, dict, bytes]:
        """Status, headers and content of the answer to a request."""
        path, query = urlsplit(target).path, dict(parse_qsl(urlsplit(target).query, keep_blank_values=True))
        if uploaded := re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", path):
            return self._upload(verb, unquote(uploaded[1]), query, headers, body)
        if copied := re.fullmatch(OBJECT.pattern + r"/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)", path):
            return self._copy(*map(unquote, copied.groups()))
        if moved := re.fullmatch(OBJECT.pattern + r"/moveTo/o/([^/]+)", path):
            return self._move(*map(unquote, moved.groups()))
        if found := OBJECT.fullmatch(path):
            return self._object(verb, *map(unquote, found.groups()), query, headers)
        if listed := re.fullmatch(r"/storage/v1/b/([^/]+)/o", path):
            return self._list(unquote(listed[1]), query)
        if bucket := re.fullmatch(r"/storage/v1/b/([^/]+)", path):
            about = {"kind": "storage#bucket", "name": bucket[1], "location": "US", "locationType": "multi-region"}
            return _json(about)
        return _error(404, f"{verb} {target} is nothing that this stand-in knows")

    def _upload(self, verb: str, bucket: str, query: dict, headers: dict, body: bytes) -> tuple[int, dict, bytes]:
        kind = headers.get("Content-Type", "application/octet-stream")
        if "upload_id" in query:
            return self._resume(query["upload_id"], headers, body)
        if query["uploadType"] == "media":
            about, content = {}, body
        elif query["uploadType"] == "multipart":
            about_part, content = _parts(kind, body)
            about, kind = json.loads(about_part), "application/octet-stream"
        else:
            about, content = json.loads(body or b"{}"), b""
        name = query.get("name", about.get("name"))
        if failed := self._condition(bucket, name, query):
            return failed
        if query["uploadType"] == "resumable":
            number = str(len(self.store.uploads))
            self.store.uploads[number] = bucket, name, kind, bytearray()
            here = f"http://{self.headers['Host']}/upload/storage/v1/b/{quote(bucket)}/o"
            return 200, {"Location": f"{here}?uploadType=resumable&upload_id={number}"}, b""
        return _json(self.store.write(bucket, name, content, kind))

    def _resume(self, number: str, headers: dict, body: bytes) -> tuple[int, dict, bytes]:
        bucket, name, kind, received = self.store.uploads[number]
        total = headers.get("Content-Range", "bytes 0-0/1").rsplit("/", 1)[1]
        received += body
        if total != "*" and len(received) >= int(total):
            return _json(self.store.write(bucket, name, bytes(received), kind))
        return 308, {"Range": f"bytes=0-{len(received) - 1}"} if received else {}, b""

    def _copy(self, bucket: str, name: str, to_bucket: str, to_name: str) -> tuple[int, dict, bytes]:
        if (bucket, name) not in self.store.objects:
            return _error(404, f"No such object: {bucket}/{name}")
        content, _, kind = self.store.objects[bucket, name]
        resource = self.store.write(to_bucket, to_name, content, kind)
        return _json({"kind": "storage#rewriteResponse", "done": True, "resource": resource})

    def _move(self, bucket: str, name: str, to_name: str) -> tuple[int, dict, bytes]:
        if (bucket, name) not in self.store.objects:
            return _error(404, f"No such object: {bucket}/{name}")
        content, _, kind = self.store.objects.pop((bucket, name))
        return _json(self.store.write(bucket, to_name, content, kind))

    def _object(self, verb: str, bucket: str, name: str, query: dict, headers: dict) -> tuple[int, dict, bytes]:
        if (bucket, name) not in self.store.objects:
            return _error(404, f"No such object: {bucket}/{name}")
        if failed := self._condition(bucket, name, query):
            return failed
        if verb == "DELETE":
            del self.store.objects[bucket, name]
            return 204, {}, b""
        content, generation, kind = self.store.objects[bucket, name]
        if query.get("alt") != "media":
            return _json(self.store.describe(bucket, name))
        about = {"x-goog-generation": str(generation), "x-goog-metageneration": "1", "Content-Type": kind}
        about["x-goog-stored-content-length"] = str(len(content))
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("Range", headers.get("range", "")))
        if not wanted or not content:
            return 200, about, content
        start, stop = wanted[1], wanted[2]
        first = int(start) if start else max(0, len(content) - int(stop))
        last = min(int(stop), len(content) - 1) if start and stop else len(content) - 1
        if first >= len(content):
            return _error(416, "the range begins after the end")
        about["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return 206, about, content[first : last + 1]

    def _condition(self, bucket: str, name: str, query: dict) -> tuple[int, dict, bytes] | None:
        """The answer if a condition on the object's generation does not hold; 0 stands for none there."""
        generation = str(self.store.objects.get((bucket, name), (b"", 0, ""))[1])
        if query.get("ifGenerationMatch", generation) != generation:
            return _error(412, "conditionNotMet")
        if query.get("ifGenerationNotMatch") == generation:
            return _error(304, "notModified")
        return None

    def _list(self, bucket: str, query: dict) -> tuple[int, dict, bytes]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, prefixes = [], []
        for name in sorted(name for where, name in self.store.objects if where == bucket):
            if not name.startswith(prefix) or name < query.get("startOffset", ""):
                continue
            if "endOffset" in query and name >= query["endOffset"]:
                continue
            inside = name[len(prefix) :]
            if delimiter and delimiter in inside:
                prefixes.append(prefix + inside.split(delimiter)[0] + delimiter)
            else:
                items.append(name)
        entries = sorted([(name, True) for name in items] + [(name, False) for name in dict.fromkeys(prefixes)])
        start, most = int(query.get("pageToken") or 0), min(PAGE, int(query.get("maxResults", PAGE)))
        page = entries[start : start + most]
        found: dict = {"kind": "storage#objects"}
        found["items"] = [self.store.describe(bucket, name) for name, is_object in page if is_object]
        found["prefixes"] = [name for name, is_object in page if not is_object]
        if start + most < len(entries):
            found["nextPageToken"] = str(start + most)
        return _json({key: value for key, value in found.items() if value})

    def _batch(self, body: bytes) -> None:
        """Several requests in one, as gcsfs deletes."""
        answers = []
        for number, part in enumerate(_parts(self.headers["Content-Type"], body)):
            request = part.lstrip().split(b"\n", 1)[0].decode().split()
            with self.store.lock:
                status, _, content = self.answer(request[0], request[1], {}, b"")
            head = (
                f"Content-Type: application/http\r\nContent-ID: <response-{number + 1}>\r\n\r\nHTTP/1.1 {status} -\r\n"
            )
            answers.append(f"--batch\r\n{head}Content-Length: {len(content)}\r\n\r\n".encode() + content + b"\r\n")
        kind = {"Content-Type": "multipart/mixed; boundary=batch"}
        self._send(200, kind, b"".join(answers) + b"--batch--\r\n")

    def _send(self, status: int, headers: dict, content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _parts(kind: str, body: bytes) -> list[bytes]:
    """The contents of a multipart body's parts."""
    boundary = email.message_from_string(f"Content-Type: {kind}\n\n").get_param("boundary")
    parts = re.split(rb"\r?\n?--" + re.escape(str(boundary).encode()) + rb"(?:--)?\r?\n?", body)
    return [re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in parts if re.search(rb"\r?\n\r?\n", part)]


def _json(content: dict) -> tuple[int, dict, bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _error(status: int, message: str) -> tuple[int, dict, bytes]:
    text = json.dumps({"error": {"code": status, "message": message, "errors": [{"message": message}]}})
    return status, {"Content-Type": "application/json"}, b"" if status == 304 else text.encode()


class Server(ThreadingHTTPServer):
    """Says nothing of clients that hang up."""

    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Anything else than a lost connection is worth a word."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*_)


def serve() -> ThreadingHTTPServer:
    """A server on a free port, not yet at work."""
    return Server(("127.0.0.1", 0), type("Bound", (Handler,), {"store": Store()}))


@contextlib.contextmanager
def running() -> Iterator[dict[str, str]]:
    """A server in a thread; yields the variables by which gcsfs and TensorStore find it, without credentials."""
    server = serve()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    try:
        yield {
            "STORAGE_EMULATOR_HOST": here,
            "TENSORSTORE_GCS_HTTP_URL": here,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # that asks another service what kind a bucket is of
        }
    finally:
        server.shutdown()


if __name__ == "__main__":
    made = serve()
    print(made.server_port, flush=True)
    made.serve_forever()
