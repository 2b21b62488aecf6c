from __future__ import annotations

from pathlib import Path

from vmimage.stages.bake.packer import packer
from vmimage.util.render import hcl_string

AWKWARD = ['"', "\\", "a\\nb", "two\nlines", "\t", "${x}", "$${x}", "%{if}", "$", "#", "größe ✔", "'", "//", "a,b"]


def test_packer_reads_exactly_these_characters(tmp_path: Path) -> None:
    """By the real Packer: what it hands to a script."""
    names = [f"V{number}" for number in range(len(AWKWARD))]
    variables = ", ".join(hcl_string(f"{name}={value}") for name, value in zip(names, AWKWARD, strict=True))
    show = "; ".join(f'printf "%s\\0" "${name}"' for name in names)
    (tmp_path / "a.pkr.hcl").write_text(f"""
        source "null" "x" {{ communicator = "none" }}
        build {{
          sources = ["source.null.x"]
          provisioner "shell-local" {{
            environment_vars = [{variables}]
            inline = [{hcl_string(f"({show}) > {tmp_path}/shown")}]
          }}
        }}""")
    done = packer("build", tmp_path, timeout=60)
    assert done.returncode == 0, done.output
    assert (tmp_path / "shown").read_text().split("\0")[:-1] == AWKWARD
