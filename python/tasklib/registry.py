"""Tasks: functions with a name, checked arguments and options, and the registry that knows them."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import (
    Any,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypedDict,
    TypeVar,
    cast,
    get_args,
    overload,
)
from uuid import UUID
from weakref import WeakSet

from typing_extensions import Unpack

from tasklib._arguments import Arguments, json_object, shown
from tasklib._functions import check_function, origin, task_name
from tasklib._hooks import Around, Hook, as_hook
from tasklib._options import checked, merged
from tasklib.errors import ConfigurationError, InvalidArguments, TaskNotRegistered
from tasklib.models import NO_OPTIONS, Backoff, NewTask, Options

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A", bound=Around)

Exceptions = type[BaseException] | tuple[type[BaseException], ...]
Isolation = Literal["thread", "process"]


class TaskOptions(TypedDict, total=False):
    """What ``@task`` takes; ``None`` leaves an option to the configuration of the worker.

    ``max_retries`` are attempts after the first; ``timeout_seconds`` ends an attempt; ``retry_for``
    names the only exceptions that are retried, ``give_up_on`` those that never are;
    ``isolation="process"`` runs the task in a child process, which can be killed;
    ``transactional`` gives the task a connection whose transaction also completes it;
    ``sensitive`` names arguments that nobody but the task gets to see (see `TaskFunction`).
    """

    name: str | None
    queue: str | None
    priority: int | None
    max_retries: int | None
    timeout_seconds: float | None
    backoff: Backoff | Mapping[str, float] | None
    max_crashes: int | None
    retry_for: Exceptions | None
    give_up_on: Exceptions | None
    isolation: Isolation | None
    transactional: bool
    sensitive: Sequence[str] | None


class Submitter(Protocol):
    """Who puts the tasks of a registry into a database."""

    def submit(self, new: NewTask, connection: object | None) -> UUID:
        """Enqueue, blocking."""
        ...

    async def asubmit(self, new: NewTask, connection: object | None) -> UUID:
        """Enqueue without blocking the event loop."""
        ...


class TaskFunction(Generic[P, R]):
    """A function that can be called here and now, or handed to a worker.

    Attributes:
        name: The text that rows carry to find this function.
        defaults: The decorator's options, which every worker stores in the database.
        retry_for: When given, the only exceptions that are retried.
        give_up_on: Exceptions that fail the task for good.
        isolation: ``process`` when it runs in a child process of the worker.
        is_transactional: Whether the task's own transaction completes it.
        sensitive: Names of arguments that are shown as ``***`` by views, commands and messages,
            and whose texts are masked in stored errors; an empty list uncovers them again, None
            leaves them as they are.
    """

    __name__: str

    def __init__(
        self,
        registry: Registry,
        func: Callable[P, R],
        name: str,
        defaults: Options,
        localns: Mapping[str, Any] | None = None,
    ) -> None:
        functools.update_wrapper(self, func)
        self.registry = registry
        self.func = func
        self.name = name
        self.defaults = defaults
        self.max_crashes: int | None = None
        self.retry_for: tuple[type[BaseException], ...] = (BaseException,)
        self.give_up_on: tuple[type[BaseException], ...] = ()
        self.isolation: Isolation = "thread"
        self.is_transactional = False
        self.sensitive: list[str] | None = None
        self.is_async = inspect.iscoroutinefunction(func)
        self.arguments = Arguments(func, name, localns)
        self._call = NO_OPTIONS
        self._connection: object | None = None

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now; nothing is stored."""
        return self.func(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<task {self.name}>"

    def delay(self, /, *args: P.args, **kwargs: P.kwargs) -> UUID:
        """Enqueue the task, blocking.

        Returns:
            The task's id; that of the holder when its ``unique_key`` is taken.

        Raises:
            InvalidArguments: The arguments do not fit, or JSON cannot hold them.
        """
        return self.registry.submitter.submit(self.new(args, kwargs), self._connection)

    async def adelay(self, /, *args: P.args, **kwargs: P.kwargs) -> UUID:
        """Enqueue the task; see `delay`."""
        return await self.registry.submitter.asubmit(self.new(args, kwargs), self._connection)

    def options(
        self, *, connection: object | None = None, **options: Unpack[CallOptions]
    ) -> TaskFunction[P, R]:
        """Return this task with options for `delay`, `adelay` and ``enqueue``.

        Args:
            connection: Enqueue in the transaction of this connection or session.
            **options: See `tasklib.models.Options`; they go before the decorator's.

        Raises:
            InvalidArguments: An option is unknown, or its value is wrong.
        """
        other: TaskFunction[P, R] = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._call = merged(self._call, checked(self.name, dict(options)))
        other._connection = self._connection if connection is None else connection
        return other

    @property
    def connection(self) -> object | None:
        """The connection that `options` bound."""
        return self._connection

    def new(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], call: Options | None = None
    ) -> NewTask:
        """Check arguments and options, and make what goes into the database."""
        text = self.arguments.dump(args, kwargs)
        options = merged(self.defaults, self._call)
        return NewTask(self.name, text, merged(options, call) if call else options)

    def may_retry(self, error: BaseException) -> bool:
        """Tell whether an attempt that ended with this error may be followed by another."""
        return isinstance(error, self.retry_for) and not isinstance(error, self.give_up_on)


class CallOptions(TypedDict, total=False):
    """What `TaskFunction.options` takes."""

    queue: str | None
    priority: int | None
    delay_seconds: float | None
    scheduled_at: Any
    max_retries: int | None
    timeout_seconds: float | None
    backoff: Backoff | Mapping[str, float] | None
    tags: Mapping[str, Any] | None
    headers: Mapping[str, Any] | None
    unique_key: str | None
    unique_until: Literal["finished", "started"] | None
    concurrency_key: str | None


class Registry:
    """Tasks by name, and what goes around them.

    Attributes:
        tasks: The tasks.
        hooks: What goes around every attempt.
        modules: What a child process imports before the module of a task: modules that set up
            what the others need.
    """

    def __init__(self, submitter: Submitter | None = None) -> None:
        self.tasks: dict[str, TaskFunction[..., Any]] = {}
        self.hooks: list[Hook] = []
        self.modules: list[str] = []
        self._submitter = submitter
        _registries.add(self)

    @property
    def submitter(self) -> Submitter:
        """Who puts this registry's tasks into a database."""
        if self._submitter is None:
            raise ConfigurationError("this registry belongs to no queue")
        return self._submitter

    @submitter.setter
    def submitter(self, submitter: Submitter) -> None:
        self._submitter = submitter

    @overload
    def task(self, func: Callable[P, R], /) -> TaskFunction[P, R]: ...
    @overload
    def task(
        self, /, **options: Unpack[TaskOptions]
    ) -> Callable[[Callable[P, R]], TaskFunction[P, R]]: ...
    def task(
        self, func: Callable[..., Any] | None = None, /, **options: Any
    ) -> TaskFunction[..., Any] | Callable[[Callable[..., Any]], TaskFunction[..., Any]]:
        """Make a function a task; bare or with options.

        Args:
            func: A function, sync or ``async``, that can be called by names.
            **options: See `TaskOptions`.

        Raises:
            ConfigurationError: The function or an option cannot work, or the name is taken.
        """
        caller = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
        localns = None if caller.f_code.co_name == "<module>" else caller.f_locals

        def decorate(func: Callable[..., Any]) -> TaskFunction[..., Any]:
            made = _made(self, func, dict(options), localns)
            self._add(made)
            return made

        return decorate if func is None else decorate(func)

    def around(self, hook: A, /) -> A:
        """Put a context manager around every attempt of every task here; as a decorator.

        It is entered in the thread and context of the task, just before the function is called,
        and left when that has ended; several are nested in the order they were given in. It sees
        the exception that the function raised. One that it raises itself ends the attempt as the
        task's own would.

        Args:
            hook: A function that takes the `tasklib.CurrentTask`: a generator function with one
                ``yield``, or one that returns a context manager. An async one goes around async
                tasks only.

        Raises:
            ConfigurationError: It cannot make a context manager.
        """
        self.hooks.append(as_hook(hook))
        return hook

    def resolve(self, task: object) -> TaskFunction[..., Any]:
        """Return the task for a task or the name of one.

        Raises:
            TaskNotRegistered: It is a plain function, or a name that was never registered.
        """
        if isinstance(task, TaskFunction):
            return task  # pyright: ignore[reportUnknownVariableType]
        if isinstance(task, str) and task in self.tasks:
            return self.tasks[task]
        name = getattr(task, "__qualname__", None) or shown(task)
        raise TaskNotRegistered(
            f"{name} is not a task", hint="Decorate the function with @task before submitting it."
        )

    def new(
        self,
        task: object,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        call: Options | None = None,
    ) -> NewTask:
        """Check a call of a task, or of a name that only other processes know."""
        if isinstance(task, str) and task not in self.tasks:
            if args:
                raise InvalidArguments(
                    f"{task}: arguments of a task that is not registered here need names"
                )
            return NewTask(task, json_object(kwargs, task), call or NO_OPTIONS)
        return self.resolve(task).new(args, kwargs, call)

    def queues(self) -> list[str]:
        """Return every queue that a task here names, and the default one."""
        return sorted(
            {task.defaults.queue or "default" for task in self.tasks.values()} | {"default"}
        )

    def _add(self, task: TaskFunction[..., Any]) -> None:
        known = self.tasks.get(task.name)
        if known is not None and origin(known.func) != origin(task.func):
            raise ConfigurationError(
                f"two functions want to be task {task.name!r}: "
                f"{'.'.join(origin(known.func))} and {'.'.join(origin(task.func))}",
                hint="Give one of them another name: @task(name=...).",
            )
        self.tasks[task.name] = task


_registries: WeakSet[Registry] = WeakSet()

default_registry = Registry()
"""What ``@tasklib.task`` adds to."""


def registries() -> list[Registry]:
    """Return every registry of this process: the default one, and those of queues."""
    return list(_registries)


def _made(
    registry: Registry,
    func: Callable[..., Any],
    options: dict[str, Any],
    localns: Mapping[str, Any] | None,
) -> TaskFunction[..., Any]:
    name = task_name(check_function(func), options.pop("name", None))
    retry_for = _exceptions(name, options.pop("retry_for", None))
    give_up_on = _exceptions(name, options.pop("give_up_on", None))
    max_crashes = _crashes(name, options.pop("max_crashes", None))
    transactional = _transactional(name, options)
    isolation = _isolation(name, options.pop("isolation", None))
    sensitive = options.pop("sensitive", None)
    made = TaskFunction(registry, func, name, _defaults(name, options), localns)
    made.max_crashes = max_crashes
    made.retry_for = retry_for or made.retry_for
    made.give_up_on = give_up_on or ()
    made.isolation = isolation
    made.is_transactional = transactional
    if sensitive is not None:
        made.sensitive = _names(name, sensitive)
        made.arguments.mask(made.sensitive)
    return made


def _names(name: str, given: object) -> list[str]:
    names: list[Any] = list(cast("Sequence[Any]", given)) if _is_list(given) else [None]
    if not all(isinstance(each, str) for each in names):
        raise ConfigurationError(
            f"{name}: sensitive={given!r} is no list of names", hint='Write sensitive=["token"].'
        )
    return names


def _is_list(given: object) -> bool:
    return isinstance(given, (list, tuple, set, frozenset))


def _exceptions(name: str, given: object) -> tuple[type[BaseException], ...] | None:
    if given is None:
        return None
    many = isinstance(given, (tuple, list))
    kinds: tuple[Any, ...] = tuple(cast("list[Any]", given)) if many else (given,)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise ConfigurationError(f"{name}: {kind!r} is not a class of exceptions")
    return kinds


def _crashes(name: str, given: Any) -> int | None:
    if given is not None and (type(given) is not int or not 1 <= given <= 1000):
        raise ConfigurationError(f"{name}: max_crashes={given!r} is not 1 to 1000")
    return given


def _isolation(name: str, given: object) -> Isolation:
    if given not in (None, *get_args(Isolation)):
        raise ConfigurationError(
            f"{name}: isolation={given!r} is not known",
            hint='Write isolation="process" for a child process that can be killed, or leave it '
            "out: then async functions run on the worker's loop, others in a thread of it.",
        )
    return cast("Isolation", given or "thread")


def _transactional(name: str, options: dict[str, Any]) -> bool:
    given = options.pop("transactional", False)
    if type(given) is not bool:
        raise ConfigurationError(f"{name}: transactional={given!r} is not True or False")
    if given and options.get("isolation") == "process":
        raise ConfigurationError(
            f"{name}: a task in a process of its own cannot be transactional",
            hint="A connection does not go over to another process: leave out one of the two.",
        )
    return given


def _defaults(name: str, options: dict[str, Any]) -> Options:
    if unknown := options.keys() - set(TaskOptions.__annotations__):
        raise ConfigurationError(
            f"{name}: @task has no option {', '.join(sorted(unknown))}",
            hint=f"The options are {', '.join(sorted(TaskOptions.__annotations__))}.",
        )
    try:
        return checked(name, options)
    except InvalidArguments as error:
        raise ConfigurationError(str(error.args[0]), hint=error.hint) from None
