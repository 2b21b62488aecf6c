"""The Kubernetes API itself, for what has to be quick: names of services follow their services within seconds."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import tempfile
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from dev_env import OURS, Failure
from dev_env.tools import ask

SECONDS = 30.0
WATCH_SECONDS = 240
PATHS = {
    "Service": "/api/v1/{}services",
    "Ingress": "/apis/networking.k8s.io/v1/{}ingresses",
    "Node": "/api/v1/{}nodes",
    "Deployment": "/apis/apps/v1/{}deployments",
}


class Refused(Failure):
    """The cluster answered, and what it said is an error."""


class Api:
    """A way to the cluster of the kubeconfig; each request has a connection of its own."""

    def __init__(self) -> None:
        config = ask(["kubectl", "config", "view", "--raw", "--minify", "--output=json"])
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
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
            raise Refused(f"{method} {path}: {status} {text[:300]}")
        return json.loads(text)

    def answer(self, method: str, path: str, body: object = None, kind: str = "application/json") -> tuple[int, str]:
        """Make a request and return the status and the text that is answered.

        Raises:
            Failure: The cluster does not answer.
        """
        connection, answer = self._send(method, path, body, kind, SECONDS)
        try:
            return answer.status, answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise Failure(f"the cluster does not answer: {error}") from error
        finally:
            connection.close()

    def items(self, kind: str, namespace: str = "") -> list[dict[str, Any]]:
        """Return all objects of a kind, in one namespace or in all."""
        path = PATHS[kind].format(f"namespaces/{namespace}/" if namespace else "")
        found = self.request("GET", path)
        if found is None:
            raise Refused(f"GET {path}: there is no such thing")
        # What is listed does not repeat its kind.
        return [{"kind": kind, **each} for each in found["items"]]

    def apply(self, wanted: dict[str, Any]) -> None:
        """Create or change an object; what others set on it stays."""
        query = f"?fieldManager={OURS}&force=true"
        self.request("PATCH", self._path(wanted) + query, wanted, "application/apply-patch+yaml")

    def delete(self, found: dict[str, Any]) -> None:
        """Delete an object, if it is there."""
        self.request("DELETE", self._path(found))

    def changes(self, kind: str) -> Iterator[None]:
        """Yield at every change of an object of a kind, and once at the start; ends when the cluster ends it.

        Raises:
            Refused: The cluster refuses, as it does while it starts.
            Failure: It does not answer.
        """
        query = f"?watch=true&timeoutSeconds={WATCH_SECONDS}"
        path = PATHS[kind].format("") + query
        connection, answer = self._send("GET", path, None, "application/json", WATCH_SECONDS + SECONDS)
        try:
            if answer.status >= http.HTTPStatus.BAD_REQUEST:
                raise Refused(f"GET {path}: {answer.status}")
            yield
            while answer.readline():
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
    def _path(found: dict[str, Any]) -> str:
        meta = found["metadata"]
        namespace = f"namespaces/{meta['namespace']}/"
        return f"{PATHS[found['kind']].format(namespace)}/{meta['name']}"


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode()
