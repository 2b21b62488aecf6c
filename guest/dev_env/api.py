"""The Kubernetes API itself, for what is only looked at, and for what has to be quick.

A process of kubectl takes a tenth of a second, and some seconds where the machine is emulated.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import yaml

from dev_env import KUBECONFIG, OURS, Failure
from dev_env.bounds import API_BYTES, API_SECONDS, EVENT_BYTES, WATCH_SECONDS, chunks, read_text, size

PATHS = {
    "ConfigMap": "/api/v1/{}configmaps",
    "Service": "/api/v1/{}services",
    "Pod": "/api/v1/{}pods",
    "EndpointSlice": "/apis/discovery.k8s.io/v1/{}endpointslices",
    "Ingress": "/apis/networking.k8s.io/v1/{}ingresses",
    "Node": "/api/v1/{}nodes",
    "Deployment": "/apis/apps/v1/{}deployments",
}
MOST_REASON = 300
"""Characters of what the cluster says against a request."""


class Refused(Failure):
    """The cluster answered, and what it said is an error."""


class NotBegun(Failure):
    """k3s has not written its kubeconfig yet."""


class Api:
    """A way to the cluster of the kubeconfig; each request has a connection of its own."""

    def __init__(self) -> None:
        """Read the kubeconfig.

        Raises:
            NotBegun: There is none yet.
            Failure: It is not one of k3s.
        """
        text = read_text(KUBECONFIG) if KUBECONFIG.exists() else ""
        if not text.strip():
            raise NotBegun(f"{KUBECONFIG} is not there yet", "the cluster may still be starting: `dev-env status`")
        try:
            self._read(yaml.safe_load(text))
        except (LookupError, TypeError, ValueError, OSError, RecursionError, yaml.YAMLError) as error:
            raise Failure(f"{KUBECONFIG} is not a kubeconfig of k3s: {error!r}", "`journalctl -u k3s`") from error

    def _read(self, config: dict[str, Any]) -> None:
        context = _named(config["contexts"], config["current-context"])["context"]
        cluster = _named(config["clusters"], context["cluster"])["cluster"]
        user = _named(config["users"], context["user"])["user"]
        self._server = urlsplit(cluster["server"])
        self._context = ssl.create_default_context(cadata=_decoded(cluster["certificate-authority-data"]))
        # No stricter than kubectl on the form of the cluster's own certificates (Python 3.13 is).
        self._context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        self._headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
        if "client-certificate-data" in user:
            # Python takes certificates from files only; this one nobody else may read.
            with tempfile.NamedTemporaryFile("w") as pair:
                pair.write(_decoded(user["client-certificate-data"]) + _decoded(user["client-key-data"]))
                pair.flush()
                self._context.load_cert_chain(pair.name)

    def request(self, method: str, path: str, body: object = None, kind: str = "application/json") -> Any:
        """Make a request and return what is answered; None for what is not there.

        Raises:
            Refused: The cluster refuses.
            Failure: It does not answer.
        """
        status, text = self.answer(method, path, body, kind)
        if status == http.HTTPStatus.NOT_FOUND:
            return None
        if status >= http.HTTPStatus.BAD_REQUEST:
            raise Refused(f"{method} {path}: {status} {text[:MOST_REASON]}")
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Failure(f"{method} {path}: the answer is no JSON: {error}", "`dev-env doctor`") from error

    def answer(self, method: str, path: str, body: object = None, kind: str = "application/json") -> tuple[int, str]:
        """Make a request and return the status and the text that is answered.

        Raises:
            Failure: The cluster does not answer.
        """
        connection, answer = self._send(method, path, body, kind, API_SECONDS)
        try:
            data = b"".join(chunks(answer, API_BYTES, API_SECONDS, f"the answer to {method} {path}"))
            return answer.status, data.decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise Failure(f"the cluster does not answer: {error}") from error
        finally:
            connection.close()

    def items(self, kind: str, namespace: str = "", selector: str = "") -> list[dict[str, Any]]:
        """Return the objects of a kind that have some labels, in one namespace or in all."""
        path = PATHS[kind].format(f"namespaces/{namespace}/" if namespace else "")
        path += f"?labelSelector={quote(selector)}" if selector else ""
        found = self.request("GET", path)
        if found is None:
            raise Refused(f"GET {path}: there is no such thing")
        # What is listed does not repeat its kind.
        return [{"kind": kind, **each} for each in found["items"]]

    def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """Return an object; None where there is none of this name."""
        found: dict[str, Any] | None = self.request("GET", PATHS[kind].format(f"namespaces/{namespace}/") + f"/{name}")
        return found

    def create(self, wanted: dict[str, Any]) -> None:
        """Create an object.

        Raises:
            Refused: One of that name is there, whose ever it is.
        """
        self.request("POST", f"{self._folder(wanted)}?fieldManager={OURS}", wanted)

    def apply(self, wanted: dict[str, Any]) -> None:
        """Make an object as it is wanted, whoever changed it before.

        Raises:
            Refused: The cluster refuses, or has no such namespace.
        """
        path = f"{self._path(wanted)}?fieldManager={OURS}&force=true"
        if self.request("PATCH", path, wanted, "application/apply-patch+yaml") is None:
            raise Refused(f"PATCH {path}: there is no such namespace")

    def replace(self, wanted: dict[str, Any]) -> None:
        """Change an object that was read; it holds the version that was read.

        Raises:
            Refused: It is another one by now.
        """
        self.request("PUT", f"{self._path(wanted)}?fieldManager={OURS}", wanted)

    def delete(self, found: dict[str, Any]) -> None:
        """Delete an object that was read, if it is still there.

        Raises:
            Refused: It is another one by now.
        """
        held = {key: found["metadata"][key] for key in ("uid", "resourceVersion")}
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": held}
        self.request("DELETE", self._path(found), options)

    def changes(self, kind: str) -> Iterator[None]:
        """Yield at every change of an object of a kind, and once at the start; ends when the cluster ends it.

        Raises:
            Refused: The cluster refuses, as it does while it starts.
            Failure: It does not answer.
        """
        query = f"?watch=true&timeoutSeconds={WATCH_SECONDS}"
        path = PATHS[kind].format("") + query
        connection, answer = self._send("GET", path, None, "application/json", WATCH_SECONDS + API_SECONDS)
        try:
            if answer.status >= http.HTTPStatus.BAD_REQUEST:
                raise Refused(f"GET {path}: {answer.status}")
            yield
            while line := answer.readline(EVENT_BYTES):
                if not line.endswith(b"\n") and len(line) == EVENT_BYTES:
                    raise Failure(f"GET {path}: one event has more than {size(EVENT_BYTES)}")
                yield
        except (OSError, http.client.HTTPException) as error:
            raise Failure(f"the cluster does not answer: {error}") from error
        finally:
            connection.close()

    def _send(
        self, method: str, path: str, body: object, kind: str, seconds: float
    ) -> tuple[http.client.HTTPSConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPSConnection(
            self._server.hostname or "", self._server.port or 443, context=self._context, timeout=seconds
        )
        data = json.dumps(body) if body is not None else None
        try:
            connection.request(method, path, data, {**self._headers, "Content-Type": kind})
            return connection, connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Failure(f"the cluster does not answer: {error}") from error

    @staticmethod
    def _folder(found: dict[str, Any]) -> str:
        return PATHS[found["kind"]].format(f"namespaces/{found['metadata']['namespace']}/")

    @classmethod
    def _path(cls, found: dict[str, Any]) -> str:
        return f"{cls._folder(found)}/{found['metadata']['name']}"


def _named(entries: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    found = next((each for each in entries if each["name"] == name), None)
    if found is None:
        raise LookupError(f"it has no {name}")
    return found


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode()
