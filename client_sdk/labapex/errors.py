"""Every error that a user of Lab Apex can meet, and the exit code by which a script recognises it.

    LabApexError                        1   anything else that went wrong
    ├── UsageError                      2   the input is wrong: a flag, the YAML, a file
    ├── NotLoggedIn                     3   no token, or one that the platform does not accept
    │   └── MissingScope                3   the token may not do this
    ├── NotFound                        4   no such job, or not yours
    ├── NotEnoughCredit                 5   the balance or the budget does not cover the job
    ├── PlatformUnreachable             6   no answer from the platform
    ├── TrainingFailed                100   the script ended with an error (preflight included)
    ├── NotFinished                   101   the job has no result yet
    ├── Cancelled                     103   the job was stopped by its owner
    ├── VerificationRejected          104   the verdict is "rejected"
    ├── NotJudgeable                  105   there is no verdict: this host is of another class, and no line is on record
    ├── MalformedInput                  1   bytes from the other side do not follow the protocol
    │   └── Tampered                    1   a digest, tag or signature does not match
    └── SandboxUnavailable              1   foreign code may not run on this host

The message of an error says what to do. 130 (interrupted) is the shell's own convention.
"""

from __future__ import annotations


class LabApexError(Exception):
    """Base of all errors raised on purpose by this project. `code` is the problem's, where the platform sent one."""

    exit_code = 1
    code = ""


class UsageError(LabApexError):
    exit_code = 2


class NotLoggedIn(LabApexError):
    exit_code = 3


class MissingScope(NotLoggedIn):
    """The token is good, and was made for other things."""


class NotFound(LabApexError):
    exit_code = 4


class NotEnoughCredit(LabApexError):
    exit_code = 5


class PlatformUnreachable(LabApexError):
    exit_code = 6


class TrainingFailed(LabApexError):
    exit_code = 100


class NotFinished(LabApexError):
    exit_code = 101


class Cancelled(LabApexError):
    exit_code = 103


class VerificationRejected(LabApexError):
    exit_code = 104


class NotJudgeable(LabApexError):
    """Honest work differs between the worker's class of hosts and the verifier's, by how much nobody has measured."""

    exit_code = 105


class MalformedInput(LabApexError):
    """Bytes from a worker, a client or a job that do not follow the protocol."""


class Tampered(MalformedInput):
    """A digest, an authentication tag or a signature does not match."""


class SandboxUnavailable(LabApexError):
    """Foreign code may not run here; the message names what is missing and the setting that overrides it."""
