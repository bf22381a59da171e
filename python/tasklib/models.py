"""What the queue tells: tasks, their results, and the options that go in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, Strict

State = Literal["pending", "running", "completed", "failed", "cancelled"]
JSON = dict[str, Any] | list[Any] | str | int | float | bool | None

R = TypeVar("R")


class _States:
    """The predicates that a task and a result have in common."""

    if TYPE_CHECKING:
        state: State
        error: str | None

    @property
    def is_pending(self) -> bool:
        """Whether it waits: for its time, its turn, its key, or a worker that knows it."""
        return self.state == "pending"

    @property
    def is_running(self) -> bool:
        """Whether a worker holds it."""
        return self.state == "running"

    @property
    def is_completed(self) -> bool:
        """Whether it ended well."""
        return self.state == "completed"

    @property
    def is_failed(self) -> bool:
        """Whether its last attempt failed; ``is_terminal`` tells if it will be tried again."""
        return self.state == "failed"

    @property
    def is_cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self.state == "cancelled"

    @property
    def has_error(self) -> bool:
        """Whether the error of an attempt is stored."""
        return self.error is not None


class Task(_States, BaseModel):
    """One task as ``tasklib.tasks`` shows it, at the moment it was read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: UUID
    name: str
    queue: str
    state: State
    kwargs: JSON = None
    result: JSON = None
    error: str | None = None
    retry_count: int = 0
    max_retries: int | None = None
    next_retry_at: datetime | None = None
    worker_id: UUID | None = None
    locked_until: datetime | None = None
    scheduled_at: datetime | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    timeout_seconds: float | None = None
    priority: int = 0
    tags: JSON = None
    attempt: int = 0
    cancel_requested_at: datetime | None = None
    headers: JSON = None
    unique_key: str | None = None
    concurrency_key: str | None = None
    enqueued_by: str | None = None
    progress: float | None = None
    progress_message: str | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether nothing more will happen to it by itself."""
        if self.state == "failed":
            return self.next_retry_at is None
        return self.state in ("completed", "cancelled")

    @property
    def has_result(self) -> bool:
        """Whether a result is stored; a Python task that returned None has one."""
        return self.result is not None


@dataclass(frozen=True, slots=True)
class TaskResult(_States, Generic[R]):
    """How a task ended.

    Attributes:
        id: The task's id.
        state: ``completed``, ``failed`` or ``cancelled``.
        value: What the function returned, read back by its return annotation where this process
            knows the task; None unless completed.
        error: The last attempt's traceback; None when completed.
    """

    id: UUID
    state: State
    value: R
    error: str | None


class Backoff(BaseModel):
    """How long a failed task waits: ``base * multiplier ** (attempts - 1)``, at most the cap.

    Attributes:
        base_seconds: The first pause.
        multiplier: How much longer each further pause is.
        cap_seconds: The longest pause.
        jitter: The share of a pause that is left to chance, 0 to 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_seconds: float = Field(default=5.0, ge=0, le=31_536_000)
    multiplier: float = Field(default=2.0, ge=0, le=100)
    cap_seconds: float = Field(default=3600.0, ge=0, le=31_536_000)
    jitter: float = Field(default=0.0, ge=0, le=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is asked of one task beside its arguments; None leaves it to the task type."""

    queue: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000, strict=True)] | None = None
    delay_seconds: Annotated[float, Field(ge=0, strict=True)] | None = None
    scheduled_at: Annotated[AwareDatetime, Strict()] | None = None
    max_retries: Annotated[int, Field(ge=0, le=1000, strict=True)] | None = None
    timeout_seconds: Annotated[float, Field(ge=0.001, le=604_800, strict=True)] | None = None
    backoff: Backoff | None = None
    tags: dict[str, Any] | None = None
    headers: dict[str, Any] | None = None
    unique_key: str | None = None
    unique_until: Literal["finished", "started"] | None = None
    concurrency_key: str | None = None


NO_OPTIONS = Options()


@dataclass(frozen=True, slots=True)
class NewTask:
    """One task on its way in, checked: its name, its arguments as JSON text, its options."""

    name: str
    kwargs: str
    options: Options = NO_OPTIONS


class Claimed(NamedTuple):
    """One task that was handed out; what users wrote is still text, and so is its id."""

    id: str
    attempt: int
    name: str
    queue: str
    kwargs: str
    retry_count: int
    max_retries: int
    timeout_seconds: float | None
    tags: str | None
    headers: str | None


@dataclass(frozen=True, slots=True)
class Ticked:
    """What one round of housekeeping did."""

    promoted: int
    reclaimed: int
    timed_out: int
    purged: int
    more: bool
