"""How a command ends that could not do its work."""


class UsageError(Exception):
    """What was asked can not be done, and why: exit code 2."""


class CommandError(Exception):
    """What was asked failed: exit code 1."""
