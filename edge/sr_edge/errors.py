"""The named errors, and the exit code that each one means on the command line.

    EdgeError                     what a user of the library may catch
    ├── UsageError          2     an option or an argument cannot be meant
    ├── ModelError          4     a model file is missing or unusable
    │   └── MarkerError     4     its markers are not what its metadata says
    ├── RemoteError         3     the large model failed where no fallback was allowed
    │   └── CompletionError 3     (`remote.chatting`) a question got no reply
    ├── HubError            3     (`hub`) the hub cannot be reached
    ├── HistoryError        1     (`store`) the history cannot be read or written
    ├── StateError          1     (`states`) a cache cannot be kept on disk, or had back from there
    └── GenerationError     1     the local model could not go on
        ├── ContextFullError 1    the context has no room left
        └── StoppedError     1    its user stopped it in the middle of a step

Every message says what happened and what mends it. Standard library only.
"""

from __future__ import annotations

from typing import ClassVar


class EdgeError(Exception):
    exit_code: ClassVar[int] = 1


class UsageError(EdgeError):
    exit_code = 2


class ModelError(EdgeError):
    exit_code = 4


class MarkerError(ModelError):
    pass


class RemoteError(EdgeError):
    exit_code = 3


class GenerationError(EdgeError):
    exit_code = 1


class ContextFullError(GenerationError):
    pass


class StoppedError(GenerationError):
    pass
