"""The certificates of the API: an authority that is made once, and what it signs at every start."""

from __future__ import annotations

import ipaddress
import secrets
import subprocess
from pathlib import Path


def certificates(folder: Path, names: list[str]) -> tuple[Path, Path]:
    """Return the server's certificate and key, and leave those of the client; the CA is made once."""
    ca, ca_key = folder / "server-ca.crt", folder / "server-ca.key"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    if not ca.exists():
        usage = "keyUsage=critical,digitalSignature,keyEncipherment,keyCertSign"
        subject = f"/CN=k3s-server-ca@{secrets.token_hex(4)}"
        openssl(
            "req", "-x509", *curve, "-keyout", ca_key, "-out", ca, "-days", "3650", "-subj", subject, "-addext", usage
        )
    alternatives = ",".join(f"{'IP' if is_address(name) else 'DNS'}:{name}" for name in dict.fromkeys(names))
    for name, subject, more in (
        ("serving-kube-apiserver", "/CN=k3s", ["-addext", f"subjectAltName={alternatives}"]),
        ("client-admin", "/O=system:masters/CN=system:admin", ["-addext", "extendedKeyUsage=clientAuth"]),
    ):
        key, certificate = folder / f"{name}.key", folder / f"{name}.crt"
        signed = ["-CA", ca, "-CAkey", ca_key, "-keyout", key, "-out", certificate, "-days", "365"]
        openssl(
            "req", "-x509", *curve, *signed, "-subj", subject, "-addext", "basicConstraints=critical,CA:FALSE", *more
        )
    return folder / "serving-kube-apiserver.crt", folder / "serving-kube-apiserver.key"


def is_address(name: str) -> bool:
    """Tell addresses from names."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def openssl(*arguments: object) -> None:
    """Run openssl."""
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
