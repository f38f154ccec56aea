"""Every error of the engine.

EngineError
  ConfigError           ValueError     a setting is wrong
  DataError             ValueError     input rows or files are wrong
    DataQualityError                   too many bad rows
    EmptySourceError                   nothing to import
    EmptyExamError                     nothing to examine
  ArtifactError         RuntimeError   a stage's output cannot be trusted
    ChecksumError                      bytes differ from the manifest
  ReleaseError          RuntimeError   a release cannot be used
    ReleaseNotFoundError  LookupError  no complete release has this id
    ReleaseFormatError                 written by an engine that this one cannot read
  PromptError           ValueError     a prompt cannot be built or scored
  NightRunningError     RuntimeError   another night has the lease
  UnknownItemError      LookupError    no item has this id
  UnknownUserError      LookupError    no user has this id
  RequestError          ValueError     an HTTP request asks for something that is not allowed
  UnknownKeyError       PermissionError  an HTTP request needs a key that the service knows
  ForbiddenError        PermissionError  an HTTP request's key is not good for what it asks
"""


class EngineError(Exception):
    """Base of all errors that the engine raises on purpose."""


class ConfigError(EngineError, ValueError):
    """A setting is missing, unknown or out of range."""


class DataError(EngineError, ValueError):
    """An input file or row does not have the declared form."""


class DataQualityError(DataError):
    """The share of quarantined rows exceeds the configured limit."""


class EmptySourceError(DataError):
    """A source holds no event, or none but of deleted users."""


class EmptyExamError(DataError):
    """A period holds no row that releases can be examined by."""


class ArtifactError(EngineError, RuntimeError):
    """A stage's output is missing, incomplete or does not fit its reader."""


class ChecksumError(ArtifactError):
    """A file's bytes differ from its manifest."""


class ReleaseError(EngineError, RuntimeError):
    """A release cannot be built, verified or served."""


class ReleaseNotFoundError(ReleaseError, LookupError):
    """No complete release has this id."""


class ReleaseFormatError(ReleaseError):
    """The release was written in a format that this engine does not read."""


class PromptError(EngineError, ValueError):
    """A prompt cannot be built within its limits, or its labels are not single tokens."""


class NightRunningError(EngineError, RuntimeError):
    """Another night has the lease, or has taken it over."""


class UnknownItemError(EngineError, LookupError):
    """No item of the catalogue has this id."""


class UnknownUserError(EngineError, LookupError):
    """No user has this id."""


class RequestError(EngineError, ValueError):
    """A request asks for something that is not allowed."""


class UnknownKeyError(EngineError, PermissionError):
    """A request has no key, or one that the service does not know."""


class ForbiddenError(EngineError, PermissionError):
    """A request's key is not good for what it asks."""
