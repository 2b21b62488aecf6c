"""The certificate authorities that downloads trust: those of this host, as curl and apt do."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import certifi

from vmimage.util.errors import InputError
from vmimage.util.files import expanded

INSTEAD = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Name a file or folder of what is trusted instead of this host's, as requests and curl have it."""


def trusted() -> ssl.SSLContext:
    """Return the authorities that this host trusts (SSL_CERT_FILE and SSL_CERT_DIR count), or those of INSTEAD.

    Raises:
        InputError: What the environment names cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    given = [name for name in (*INSTEAD, "SSL_CERT_FILE") if os.environ.get(name)]
    for name in given:
        _load(context, name, expanded(os.environ[name], name))
    if not set(given) & set(INSTEAD):
        known = ssl.get_default_verify_paths()
        context.load_default_certs()
        if not known.cafile and not (known.capath and any(Path(known.capath).iterdir())):
            context.load_verify_locations(certifi.where())
    # Python 3.13 wants more of an authority than OpenSSL, curl and apt do, and more than many a company's has.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _load(context: ssl.SSLContext, name: str, path: Path) -> None:
    try:
        folder = path.is_dir()
        context.load_verify_locations(None if folder else path, path if folder else None)
    except OSError as error:  # SSLError is one
        raise InputError(
            f"{name}={path}: no certificates can be read there: {error.strerror or error}",
            hint="name a file of certificates in PEM form, or unset the variable",
        ) from error
