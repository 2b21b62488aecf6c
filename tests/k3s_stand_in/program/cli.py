"""k3s by the names it is called: `k3s server`, `kubectl`, `crictl`, `ctr`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.k3s_stand_in.program.paths import DATA
from tests.k3s_stand_in.program.version import VERSION


def main() -> None:
    """Do what the name or the first argument says; what is not needed for it is not imported: it is compiled each time."""
    called, arguments = Path(sys.argv[0]).name, sys.argv[1:]
    tool = called if called in ("kubectl", "crictl", "ctr") else (arguments.pop(0) if arguments else "--help")
    data = Path(os.environ.get("K3S_DATA_DIR", DATA))
    if tool in ("--version", "-v"):
        print(f"k3s version {VERSION} (stand-in)\ngo version none")
    elif tool == "server":
        from tests.k3s_stand_in.program.server import server

        server(arguments)
    elif tool in ("crictl", "ctr"):
        from tests.k3s_stand_in.program import image_tools

        (image_tools.crictl if tool == "crictl" else image_tools.ctr)(data, arguments)
    elif tool == "completion":
        print("complete -W 'server kubectl crictl ctr' k3s")
    else:
        sys.exit(f"the stand-in for k3s does not know {tool}")
