"""What a shell says of a command that a signal ends: 128 and the signal's number."""

INTERRUPTED = 128 + 2
"""By Control-C, SIGINT."""
UNREAD = 128 + 13
"""As nobody reads its output any more, SIGPIPE, which Windows has not."""
