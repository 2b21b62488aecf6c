"""What this stand-in says it is; `build` writes another one into the program."""

VERSION = "v0.0.0+k3s1"
COMES_UP = True
