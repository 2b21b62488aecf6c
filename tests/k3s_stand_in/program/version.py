"""What this stand-in says it is; `build` writes another one into the program."""

VERSION = "v1.36.4+k3s1"
COMES_UP = True
