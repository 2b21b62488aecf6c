"""The Kubernetes API over HTTPS, as far as kubectl and helm ask for it."""

from __future__ import annotations

import json
import ssl
import time
from base64 import b64encode
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.k3s_stand_in.program import protobuf
from tests.k3s_stand_in.program.admission import admit
from tests.k3s_stand_in.program.controllers import settle, settle_owners
from tests.k3s_stand_in.program.discovery import described
from tests.k3s_stand_in.program.objects import (
    GROUP_OF,
    RESOURCES,
    Key,
    Object,
    Objects,
    Refused,
    generated,
    qualified,
    suits,
)
from tests.k3s_stand_in.program.patches import json_patched, merged, pruned

# Some lines of what the real one answers at /readyz while it starts.
READYZ = """\
[+]ping ok
[+]log ok
[+]etcd ok
[+]poststarthook/start-apiserver-admission-initializer ok
[+]poststarthook/generic-apiserver-start-informers ok
[+]poststarthook/priority-and-fairness-config-consumer ok
[+]poststarthook/start-service-ip-repair-controllers ok
[-]poststarthook/rbac/bootstrap-roles failed: reason withheld
[-]poststarthook/scheduling/bootstrap-system-priority-classes failed: reason withheld
[+]poststarthook/start-cluster-authentication-info-controller ok
[+]poststarthook/apiservice-registration-controller ok
[+]autoregister-completion ok
readyz check failed
"""


class Server(ThreadingTCPServer):
    """The API of a cluster, whose logs of pods are in a folder.

    Attributes:
        ready_at: Until then, by the monotonic clock, it says that it is starting.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, end: tuple[str, int], cluster: Objects, logs: Path, ready_at: float) -> None:
        super().__init__(end, Api)
        self.cluster, self.logs, self.ready_at = cluster, logs, ready_at

    def trust(self, ca: Path, certificate: Path, key: Path) -> None:
        """Speak TLS: whoever shows a certificate of the CA may do everything."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(ca)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep the journal short: clients end watches when they like."""


class Api(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Server
    connection: ssl.SSLSocket

    def setup(self) -> None:
        """Note the cluster."""
        super().setup()
        self.cluster = self.server.cluster

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the base class
        """Keep the journal short."""

    def do_any(self) -> None:
        """Answer a request."""
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        try:
            if url.path == "/readyz" and time.monotonic() < self.server.ready_at:
                return self.send(500, READYZ.encode(), "text/plain")
            if url.path in ("/readyz", "/livez", "/healthz", "/ping"):
                return self.text("ok")
            if not self.connection.getpeercert():
                raise Refused(401, "Unauthorized", "Unauthorized")
            parts = url.path.strip("/").split("/")
            found = described(parts)
            if found is not None:
                return self.answer(200, found)
            return self.resource(parts, query, self.understood(body))
        except Refused as error:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": str(error)}
            self.answer(error.code, {**status, "reason": error.reason, "code": error.code})
        except (ValueError, KeyError, TypeError) as error:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": repr(error)}
            self.answer(400, {**status, "reason": "BadRequest", "code": 400})

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_any  # noqa: N815

    def understood(self, body: bytes) -> Any:
        """Return what a client sent; of options for a deletion, only those in JSON."""
        if not body or (self.command == "DELETE" and body.startswith(protobuf.MAGIC)):
            return {}
        return decoded(body)

    def text(self, text: str) -> None:
        """Answer with plain text."""
        self.send(200, text.encode(), "text/plain")

    def answer(self, code: int, found: Any) -> None:
        """Answer with JSON."""
        self.send(code, json.dumps(found).encode(), "application/json")

    def send(self, code: int, data: bytes, kind: str) -> None:
        """Answer."""
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def resource(self, parts: list[str], query: dict[str, str], body: Any) -> None:
        """Answer for resources: [api, v1] or [apis, GROUP, VERSION], [namespaces, NS], RESOURCE, [NAME, [PART]]."""
        head, rest = (parts[1], parts[2:]) if parts[0] == "api" else ("/".join(parts[1:3]), parts[3:])
        namespace = ""
        if len(rest) > 2 and rest[0] == "namespaces" and rest[2] not in ("status", "finalize"):
            namespace, rest = rest[1], rest[2:]
        if parts[0] not in ("api", "apis") or not rest or rest[0] not in RESOURCES.get(head, {}):
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        resource, name, part = (*rest, "", "")[:3]
        key = (resource, namespace, name)
        if self.command == "GET":
            return self.read(key, part, query)
        with self.cluster.changed:
            return self.write(key, part, query, body)

    def read(self, key: Key, part: str, query: dict[str, str]) -> None:
        """Answer get, list and watch."""
        resource, namespace, name = key
        labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
        if name:
            found = self.cluster.get(key)
            if part == "log":
                return self.log(found, query.get("container", ""))
            return self.answer(200, scale_of(found) if part == "scale" else found)
        if query.get("watch") in ("true", "1"):
            return self.watch(key, query)
        kind = RESOURCES[GROUP_OF[resource]][resource][0]
        with self.cluster.changed:
            items = self.cluster.find(resource, namespace, labels, fields)
            meta = {"resourceVersion": str(self.cluster.revision)}
        return self.answer(
            200, {"apiVersion": GROUP_OF[resource], "kind": f"{kind}List", "metadata": meta, "items": items}
        )

    def log(self, pod: Object, container: str) -> None:
        """Answer with what a container wrote."""
        name = container or pod["spec"]["containers"][0]["name"]
        file = self.server.logs / pod["metadata"]["uid"] / f"{name}.log"
        self.text(file.read_text(errors="replace") if file.exists() else "the stand-in runs no process in this pod\n")

    def watch(self, key: Key, query: dict[str, str]) -> None:
        """Stream changes."""
        resource, namespace, _ = key
        labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        since = query.get("resourceVersion", "")
        initial = query.get("sendInitialEvents") == "true"
        with self.cluster.changed:
            revision = self.cluster.revision
            first = self.cluster.find(resource, namespace, labels, fields) if initial or since in ("", "0") else []
            start = revision if initial or since in ("", "0") else int(since)
        for found in first:
            self.event("ADDED", found)
        if initial:
            kind = RESOURCES[GROUP_OF[resource]][resource][0]
            mark = {"resourceVersion": str(revision), "annotations": {"k8s.io/initial-events-end": "true"}}
            self.event("BOOKMARK", {"apiVersion": GROUP_OF[resource], "kind": kind, "metadata": mark})
        for news in self.cluster.watch(resource, start, float(query.get("timeoutSeconds", 1800))):
            for kind, found in news:
                if namespace in ("", found["metadata"].get("namespace", "")) and suits(found, labels, fields):
                    self.event(kind, found)
        self.wfile.write(b"0\r\n\r\n")

    def event(self, kind: str, found: Object) -> None:
        """Send one change."""
        data = json.dumps({"type": kind, "object": found}).encode() + b"\n"
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def write(self, key: Key, part: str, query: dict[str, str], body: Any) -> None:
        """Answer create, update, patch and delete."""
        if self.command == "POST":
            return self.create(key, query, body)
        if self.command == "DELETE":
            return self.delete(key, query, body)
        kind = self.headers.get("Content-Type", "").split(";")[0]
        applied = kind == "application/apply-patch+yaml"
        if applied and key not in self.cluster.objects:
            return self.create(key, query, body)
        old = self.cluster.get(key)
        new = body if self.command == "PUT" else self.patched(key, old, body, kind, query)
        if part == "scale":
            new = {**old, "spec": {**old["spec"], "replicas": new["spec"]["replicas"]}}
        elif part == "status":
            new = {**old, "status": new.get("status")}
        elif "status" in old:
            new = {**new, "status": old["status"]}
        wanted = body.get("metadata", {}).get("resourceVersion") if isinstance(body, dict) else None
        if wanted and wanted != old["metadata"]["resourceVersion"]:
            text = f'Operation cannot be fulfilled on {qualified(key[0])} "{key[2]}": the object has been modified'
            raise Refused(409, "Conflict", f"{text}; please apply your changes to the latest version and try again")
        found = self.store(key, new, query)
        return self.answer(200, scale_of(found) if part == "scale" else found)

    def patched(self, key: Key, old: Object, body: Any, kind: str, query: dict[str, str]) -> Object:
        """Return an object with a patch of some kind laid over it."""
        if kind == "application/json-patch+json":
            return json_patched(old, body)
        if kind == "application/apply-patch+yaml":
            owner = f"{query.get('fieldManager', '')}/{'/'.join(key)}"
            old = pruned(old, self.cluster.applied.get(owner, {}), body)
            self.cluster.applied[owner] = body
            return dict(merged(old, body))
        return dict(merged(old, body, by_name=kind == "application/strategic-merge-patch+json"))

    def create(self, key: Key, query: dict[str, str], body: Object) -> None:
        """Answer create."""
        resource, namespace, name = key
        meta = body.setdefault("metadata", {})
        name = name or meta.get("name") or generated(meta["generateName"])
        if resource == "namespaces":
            meta.setdefault("labels", {})["kubernetes.io/metadata.name"] = name
        elif RESOURCES[GROUP_OF[resource]][resource][1]:
            meta["namespace"] = namespace
        meta["name"] = name
        key = (resource, namespace, name)
        if key in self.cluster.objects:
            raise Refused(409, "AlreadyExists", f'{qualified(resource)} "{name}" already exists')
        if self.command == "PATCH":
            self.cluster.applied[f"{query.get('fieldManager', '')}/{'/'.join(key)}"] = json.loads(json.dumps(body))
        self.answer(201, self.store(key, body, query))

    def store(self, key: Key, wanted: Object, query: dict[str, str]) -> Object:
        """Let the control plane see an object, and store it unless it is a dry run."""
        meta = wanted["metadata"]
        meta.pop("managedFields", None)
        if key[0] == "secrets" and wanted.get("stringData"):
            texts = {name: b64encode(text.encode()).decode() for name, text in wanted.pop("stringData").items()}
            wanted["data"] = {**wanted.get("data", {}), **texts}
        admit(self.cluster, key, wanted)
        if query.get("dryRun"):
            old = self.cluster.objects.get(key, {"metadata": {"uid": "dry-run", "creationTimestamp": None}})
            meta["uid"], meta["creationTimestamp"] = old["metadata"]["uid"], old["metadata"]["creationTimestamp"]
            return wanted
        self.cluster.put(key, wanted)
        settle(self.cluster, key)
        return self.cluster.get(key)

    def delete(self, key: Key, query: dict[str, str], options: Object) -> None:
        """Answer delete, of one object or of all that are selected."""
        resource, namespace, name = key
        if name:
            meta = self.cluster.get(key)["metadata"]
            if any(meta[field] != value for field, value in options.get("preconditions", {}).items()):
                raise Refused(409, "Conflict", f"Precondition failed: {options['preconditions']} is not that of {name}")
            gone = self.cluster.get(key) if query.get("dryRun") else self.cluster.remove(key)
            settle(self.cluster, key)
            if resource == "pods":
                settle_owners(self.cluster, gone)
            return self.answer(200, gone)
        chosen = self.cluster.find(resource, namespace, query.get("labelSelector", ""), query.get("fieldSelector", ""))
        for found in chosen:
            one = (resource, found["metadata"].get("namespace", ""), found["metadata"]["name"])
            if one in self.cluster.objects:
                self.cluster.remove(one)
        return self.answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})


def decoded(body: bytes) -> Any:
    """Return what a client sent, in JSON or in protobuf.

    Raises:
        Refused: It is a kind in protobuf that is not known here.
    """
    if not body.startswith(protobuf.MAGIC):
        return json.loads(body)
    try:
        return protobuf.decode(body)
    except KeyError as error:
        raise Refused(415, "UnsupportedMediaType", f"the stand-in takes {error} in JSON only") from error


def scale_of(found: Object) -> Object:
    """Return the subresource `scale`."""
    meta, count = found["metadata"], found["spec"].get("replicas", 1)
    kept = {key: meta[key] for key in ("name", "namespace", "uid", "resourceVersion")}
    return {
        "apiVersion": "autoscaling/v1",
        "kind": "Scale",
        "metadata": kept,
        "spec": {"replicas": count},
        "status": {"replicas": count},
    }
