"""`invoke share --sync`: a directory of this host, copied into the machine's own disk, and its changes after it."""
