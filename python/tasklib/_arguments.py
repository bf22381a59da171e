"""How a function's arguments and result become JSON, and how they are read back."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NotRequired, Required, cast, get_type_hints

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json
from typing_extensions import TypedDict

from tasklib.errors import ConfigurationError, InvalidArguments, InvalidResult

# The parameters of submit_task: a task whose function has one of them could never be given both.
SUBMIT_OPTIONS = frozenset(
    {
        "delay_seconds",
        "scheduled_at",
        "priority",
        "queue",
        "tags",
        "unique_key",
        "concurrency_key",
        "connection",
    }
)
MASK = "***"
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
# What to do about a value that no annotation helps, by a word of what is wrong with it.
_REMEDIES = {
    "NUL": "Take the NUL characters out, or send the value as base64 text.",
    "surrogates": "Text with half a character in it, as names of files can have, is not UTF-8: "
    "send the bytes (of a name: os.fsencode) as base64 text.",
    "invalid utf-8": "Send bytes that are not UTF-8 as base64 text.",
}


class Arguments:
    """The parameters of one task's function.

    Args:
        func: The function that was decorated.
        label: The task's name, for messages.
        localns: Names of the function that the decorated one was defined in.

    Raises:
        ConfigurationError: The function cannot be called by names and JSON values alone.
    """

    def __init__(
        self, func: Callable[..., Any], label: str, localns: Mapping[str, Any] | None = None
    ) -> None:
        self._func = func
        self._label = label
        self._localns = dict(localns) if localns else None
        self._signature = inspect.signature(func)
        self._is_open = False
        self._masked: frozenset[str] = frozenset()
        for parameter in self._signature.parameters.values():
            self._check(parameter)
        self._adapters: tuple[TypeAdapter[Any], TypeAdapter[Any] | None] | None = None
        self._validate: Callable[..., dict[str, Any]] | None = None
        # A type that is defined further down in the module is looked up at first use.
        with contextlib.suppress(NameError):
            self._adapters = self._built()

    def mask(self, names: Collection[str]) -> None:
        """Keep the values of these arguments out of messages.

        Raises:
            ConfigurationError: There is no such argument.
        """
        unknown = sorted(set(names) - self._signature.parameters.keys())
        if unknown and not self._is_open:
            raise ConfigurationError(f"{self._label}: there is no argument {unknown[0]!r}")
        self._masked = frozenset(names)

    def dump(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """Check arguments strictly and write them as JSON text.

        Raises:
            InvalidArguments: One is missing, unknown or of the wrong type, or what it says would be
                lost in JSON.
        """
        named = self._named(args, kwargs)
        try:
            return _round_trip(self._arguments, named).decode()
        except ValidationError as error:
            message = f"{self._label}: {_explained(error, self._masked)}"
            raise InvalidArguments(message) from self._cause(error)
        except _Lost as error:
            visible = {name: MASK if name in self._masked else named[name] for name in named}
            why = "one of them" if self._masked else error
            raise InvalidArguments(
                f"{self._label}: JSON cannot hold {shown(visible)}: {why}",
                hint=_remedy(error)
                or "Annotate the parameter with the type that it shall be read back as.",
            ) from self._cause(error)

    def load(self, text: str) -> dict[str, Any]:
        """Read stored arguments.

        Raises:
            InvalidArguments: They do not fit the function, as rows written by SQL or for another
                release may.
        """
        if self._validate is None:
            # What TypeAdapter.validate_json calls, without its detours: this is done for each run.
            self._validate = self._arguments.validator.validate_json
        try:
            return self._validate(text, strict=True)
        except ValidationError as error:
            message = f"{self._label}: {_explained(error, self._masked)}"
            raise InvalidArguments(message) from self._cause(error)

    def dump_result(self, value: object) -> str:
        """Write a result as JSON text.

        Raises:
            InvalidResult: JSON cannot hold it.
        """
        if value is None:
            return "null"
        if self._returned is not None:
            try:
                return _round_trip(self._returned, value).decode()
            except (ValidationError, _Lost):
                pass  # not what the annotation says: anything that JSON can hold is stored
        try:
            text = to_json(value, inf_nan_mode="constants", by_alias=True)
            from_json(text, allow_inf_nan=False)
            _refuse_nul(text)
        except (ValueError, RecursionError, _Lost) as error:
            raise InvalidResult(
                f"{self._label} returned {shown(value)}, which JSON cannot hold: {error}",
                hint=_remedy(error),
            ) from error
        return text.decode()

    def load_result(self, value: Any) -> Any:
        """Read a stored result by the return annotation; as it is when it does not fit."""
        if self._returned is None:
            return value
        try:
            return self._returned.validate_json(to_json(value), strict=True)
        except (ValidationError, ValueError):
            return value

    def _cause(self, error: Exception) -> Exception | None:
        """Return what a traceback shall show besides; pydantic's own errors quote values."""
        return None if self._masked else error

    @property
    def _arguments(self) -> TypeAdapter[Any]:
        return self._both()[0]

    @property
    def _returned(self) -> TypeAdapter[Any] | None:
        return self._both()[1]

    def _both(self) -> tuple[TypeAdapter[Any], TypeAdapter[Any] | None]:
        if self._adapters is None:
            try:
                self._adapters = self._built()
            except NameError as error:
                raise ConfigurationError(
                    f"{self._label}: an annotation names something unknown: {error}"
                ) from error
        return self._adapters

    def _check(self, parameter: inspect.Parameter) -> None:
        name, kind = parameter.name, parameter.kind
        if kind is parameter.POSITIONAL_ONLY or kind is parameter.VAR_POSITIONAL:
            raise ConfigurationError(
                f"{self._label}: parameter {name!r} has no name to call it by",
                hint="Arguments are stored by name: make it a named parameter, or one list.",
            )
        if kind is parameter.VAR_KEYWORD:
            if parameter.annotation not in (parameter.empty, Any, "Any", "object", object):
                raise ConfigurationError(
                    f"{self._label}: the annotation of **{name} cannot be checked",
                    hint="Take one parameter of type dict[str, ...] instead.",
                )
            self._is_open = True
        elif name in SUBMIT_OPTIONS:
            raise ConfigurationError(
                f"{self._label}: parameter {name!r} is also an option of submit_task",
                hint=f"Rename the parameter. The option is given by .options({name}=...).",
            )

    def _built(self) -> tuple[TypeAdapter[Any], TypeAdapter[Any] | None]:
        hints = get_type_hints(self._func, localns=self._localns, include_extras=True)
        self._localns = None
        fields: dict[str, Any] = {}
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                continue
            hint = hints.get(name, Any)
            is_required = parameter.default is parameter.empty
            fields[name] = Required[hint] if is_required else NotRequired[hint]
        shape: Any = TypedDict(self._func.__name__, fields)  # pyright: ignore
        shape.__pydantic_config__ = ConfigDict(
            strict=True, extra="allow" if self._is_open else "forbid", allow_inf_nan=False
        )
        return self._adapter(shape), self._adapter(hints["return"]) if "return" in hints else None

    def _adapter(self, shape: Any) -> TypeAdapter[Any]:
        try:
            return TypeAdapter(shape)
        except PydanticUserError as error:
            raise ConfigurationError(
                f"{self._label}: {str(error).splitlines()[0]}",
                hint="Arguments and results are stored as JSON: annotate them with data types.",
            ) from error

    def _named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if not args:
            return dict(kwargs)
        try:
            bound = self._signature.bind_partial(*args, **kwargs).arguments
        except TypeError as error:
            raise InvalidArguments(f"{self._label}: {error}") from None
        if self._is_open:
            for name, parameter in self._signature.parameters.items():
                if parameter.kind is parameter.VAR_KEYWORD:
                    bound.update(bound.pop(name, {}))
        return dict(bound)


def json_object(value: Any, what: str) -> str:
    """Write an object of plain JSON values as text.

    Raises:
        InvalidArguments: Something in it would not come back as it is.
    """
    try:
        return _round_trip(_OBJECT, _plain(value)).decode()
    except ValidationError as error:
        raise InvalidArguments(f"{what}: {_explained(error)}") from error
    except _Lost as error:
        raise InvalidArguments(
            f"{what}: JSON cannot hold {shown(value)}: {error}", hint=_remedy(error)
        ) from error


def _plain(value: Any) -> Any:
    return dict(cast("Mapping[str, Any]", value)) if isinstance(value, Mapping) else value


class _Lost(Exception):
    """A value would not come back from JSON as it went in."""


_OBJECT = TypeAdapter(dict[str, Any])


def _round_trip(adapter: TypeAdapter[Any], value: object) -> bytes:
    checked = adapter.validate_python(value, strict=True)
    try:
        text = adapter.dump_json(checked, round_trip=True, by_alias=True, warnings="error")
        back = adapter.validate_json(text, strict=True)
        is_same = back == checked or _dumped(adapter, back) == _dumped(adapter, checked)
    except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
        raise _Lost(str(error).partition("\n")[0]) from error
    if not is_same:
        raise _Lost("it would not be read back as it is")
    _refuse_nul(text)
    return text


def _dumped(adapter: TypeAdapter[Any], value: object) -> Any:
    # For classes that do not define ==; by their own class, so that what a subclass adds counts.
    return adapter.dump_python(value, serialize_as_any=True, warnings="none")


def _refuse_nul(text: bytes) -> None:
    if _NUL.search(text):
        raise _Lost("PostgreSQL stores no NUL characters")


def _remedy(error: Exception) -> str | None:
    return next((hint for word, hint in _REMEDIES.items() if word in str(error)), None)


def _explained(error: ValidationError, masked: Collection[str] = ()) -> str:
    faults: list[str] = []
    for fault in error.errors(include_url=False, include_context=False):
        where = ".".join(map(str, fault["loc"])) or "all"
        if fault["type"] == "missing":
            faults.append(f"argument {where!r} is missing")
        elif fault["type"] == "extra_forbidden":
            faults.append(f"there is no argument {where!r}")
        else:
            is_masked = where.partition(".")[0] in masked
            # Messages of the user's own validators may quote the value.
            what = fault["type"] if is_masked else fault["msg"]
            got = MASK if is_masked else shown(fault["input"])
            faults.append(f"argument {where!r}: {what}, got {got}")
    return "; ".join(faults)


def shown(value: object) -> str:
    """Return a value as an error message quotes it, whatever it is, in 80 characters."""
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 80 else f"{text[:80]}…"
