"""Errors of the project: one tree, and what to do about each leaf.

* TidegraphError
  * UserError        - the user's mistake: print the message, exit with code 2
    * BadRules       - a rule set that must not be used: mend the file that the message names
    * BadSettings    - a setting outside of what makes sense: change it
    * BadData        - a log or folder that cannot be read as asked: mend it, or ask otherwise
    * BadSnapshot    - torn, tampered, or of another version or log: use the one before
    * BadOutput      - results cannot be written there: choose another place
  * BadEvent         - the producer's fault: send to the dead letters, never retry
  * BadPosition      - the log does not have what was asked for: begin elsewhere, or anew
  * BadAccounting    - events were lost or counted twice: a defect of ours, stop
  * TableError       - a published table cannot answer: retry, or serve without it
    * TableLost      - it no longer holds what was published: begin a new epoch, publish every row
    * TableTaken     - another learner publishes there now: stop
  * LogError         - the broker does not answer as wanted: end, and be started again
  * ServiceFailed    - a program that we started ended or does not answer: read its log

Messages say what was wanted, what came, where, and what to do.
"""

# ruff: noqa: N818 - "Error" at the end of each name would say nothing that the tree does not

from __future__ import annotations


class TidegraphError(Exception):
    """Base of every error this project raises on purpose."""


class UserError(TidegraphError):
    """Something the user asked for cannot be done; the message says what to change."""


class BadRules(UserError):
    """A rule set that must not be used."""


class BadSettings(UserError):
    """A setting outside of what makes sense."""


class BadData(UserError):
    """A log or folder that cannot be read as asked."""


class BadSnapshot(UserError):
    """A snapshot that must not be resumed from."""


class BadOutput(UserError):
    """A place where results cannot be written."""


class BadEvent(TidegraphError):
    """An event that can never be processed.

    Parameters
    ----------
    reason
        What was wanted and what came. The word before the first colon is the class of the fault
        (``undecodable``, ``invalid``, ``version`` or ``key``), for counting.
    where
        The place in the event, as in ``$.ts_ms``; ``$`` is the event as a whole.

    Examples
    --------
    >>> str(BadEvent("invalid: want text that is not empty", "$.user_id"))
    '$.user_id: invalid: want text that is not empty'

    """

    def __init__(self, reason: str, where: str = "$") -> None:
        super().__init__(f"{where}: {reason}")
        self.reason = reason
        self.where = where


class BadPosition(TidegraphError):
    """A place in the log that it no longer has, or never had."""


class BadAccounting(TidegraphError):
    """What came in is not what went out."""


class TableError(TidegraphError):
    """A published table cannot answer."""


class TableLost(TableError):
    """A published table no longer holds what was written into it."""


class TableTaken(TableError):
    """Another learner that began later has taken the table over."""


class LogError(TidegraphError):
    """The broker does not answer as wanted."""


class ServiceFailed(TidegraphError):
    """A program that was started ended or does not answer."""
