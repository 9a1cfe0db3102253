"""The errors a user can cause: each message is one sentence that says what is wrong, then the next step.

Commands turn a `UserError` into that message and its exit status (`condlora.commands.cli`); everything else is a
defect of ours and keeps its traceback.
"""


class UserError(Exception):
    """Base class; the message is shown as it is."""

    exit_status = 2


class ConfigError(UserError):
    """An unknown or contradictory setting."""


class MissingRates(ConfigError):
    """A protocol without a learning rate for a method on a task, as before the search of a profile."""


class DataError(UserError):
    """A data file that is missing, malformed or holds a wrong label; names file and line."""


class BackboneError(UserError):
    """Weights or tokenizer that are missing or cannot be read."""


class NetworkError(UserError):
    """The hub is needed and cannot be reached."""


class DeviceError(UserError):
    """A device is asked for that this machine does not have."""


class AdapterError(UserError, ValueError):
    """An adapter that does not fit its layer: rank, shape or form. A ValueError too, as in PEFT."""


class UndefinedScore(UserError):
    """A metric that has no value for these predictions, such as a correlation with a constant."""


class DivergedError(UserError):
    """Training gave a loss that is not finite."""


class RunFolderError(UserError):
    """A run folder that is damaged, unfinished or was written by another recipe."""


class UnreadableRun(RunFolderError):
    """A run folder whose files are there and cannot be read now: it is neither repeated nor renamed."""


class IncompleteGrid(UserError):
    """Some runs of a grid failed while the others went on."""

    exit_status = 1


class ClusterError(UserError):
    """A scheduler's command is missing, refused what was asked, or did not answer."""


class RunTaken(UserError):
    """Another process is doing this run."""


class NoFinishedRuns(UserError):
    """There is nothing to analyse yet."""


class Interrupted(KeyboardInterrupt):
    """SIGINT, SIGTERM, SIGUSR1 or SIGUSR2 came while training; a checkpoint was written."""

    @property
    def exit_status(self) -> int:
        """The shell's status for a command that a signal ended."""
        return 128 + self.args[0]


def raise_if_denied(error: BaseException) -> None:
    """Raise the PermissionError that a library's error comes from, if there is one: it names the file.

    Libraries wrap it in errors that speak of damaged or missing files.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PermissionError):
            raise cause
        cause = cause.__cause__ or cause.__context__


def first_line(error: Exception) -> str:
    """What a library's error says, fit for the middle of a sentence."""
    text = str(error).strip() or type(error).__name__
    return text.split("\n")[0].rstrip(".")
