"""One error tree for everything a user can cause; `vgid.pipeline.cli.main` turns each into one line and an exit code.

Messages say what is wrong, the value seen, where, and what to do. `assert` is kept for our own mistakes.
"""


class VgidError(Exception):
    """Anything vgid refuses to go on with. Exit code 1 unless a child says otherwise."""

    exit_code = 1


class ConfigError(VgidError, ValueError):
    """A recipe or option is wrong: unknown key, bad value, file missing, impossible combination."""

    exit_code = 2


class DataError(VgidError, ValueError):
    """The user's data is wrong: corrupt or missing image, unknown columns, a subject in two splits, an empty split."""

    exit_code = 65


class CacheError(VgidError):
    """A cache is unreadable, damaged, of another format, or made by another teacher than the one asked for."""


class TeacherError(VgidError):
    """Stage one cannot go on: the model does not load, a request is malformed, the engine answered short."""


class DistillError(VgidError):
    """Stage two cannot go on: cache and student do not fit, nothing is supervised, the loss is not finite."""


class Stopped(VgidError):
    """A clean stop was asked for (SIGTERM or Ctrl-C); what was finished is on disk and a rerun continues."""

    exit_code = 75
