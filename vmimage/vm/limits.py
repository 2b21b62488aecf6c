"""How much is taken from a machine, which may go on for ever: bytes, seconds, and what is held open for it.

docs/sharing-files.md says which of them its user may meet, and what to do then.
"""

from __future__ import annotations

# One ssh session. The identification line and what may stand before it (RFC 4253, 4.2), and a packet: RFC 4253, 6.1,
# asks for 35,000 bytes; OpenSSH takes 256 KiB.
BANNER_BYTES = 8 << 10
PACKET_BYTES = 1 << 20
LOGIN_SECONDS = 20.0
# What a channel holds that nobody has read yet. Our window is 2 MiB, which an honest server keeps to.
UNREAD_BYTES = 4 << 20
# It takes nothing of what is sent to it. An emulated machine that is busy may leave it lying for half a minute.
UNSENT_SECONDS = 90.0

# The answer of a command in the machine, output and errors each; and what of it is shown.
ANSWER_BYTES = 64 << 10
COMMAND_SECONDS = 90.0
KUBECONFIG_SECONDS = 30.0
SHOWN_LINES = 5

# One session of SFTP. A request, and what one answer brings of a file.
REQUEST_BYTES = 257 << 10
READ_BYTES = 256 << 10
# Names of one answer; no more of a directory is held.
NAMES = 128
# Open files, and of those directories that are being listed. Each is a file descriptor of this process, which needs
# some itself: `ulimit -n` bounds them as well.
OPEN_FILES = 4096
OPEN_DIRECTORIES = 256
OWN_DESCRIPTORS = 128

# A file of keys: see vmimage.access.known_hosts. What is told by a console: see vmimage.access.host_keys.
KEY_BYTES = 64 << 10
SSH_CONFIG_BYTES = 1 << 20
