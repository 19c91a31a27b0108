"""Parts by name, with their options: what makes a YAML key of an outside package work."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from crbp_d2.core.errors import ConfigurationError, choices, did_you_mean

Part = TypeVar("Part")


class Registry(Mapping[str, Callable[..., Part]], Generic[Part]):
    """Classes by name. The options of a part are the keyword arguments of its class.

        @SOLVERS.register("halves")
        @dataclass(frozen=True)
        class Halves:
            fraction: float = 0.5

        SOLVERS.build("halves", fraction=0.25)

    Args:
        kind: what the parts are, for messages: `solver`.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, Callable[..., Part]] = {}

    def register(self, name: str) -> Callable[[Callable[..., Part]], Callable[..., Part]]:
        """A decorator that enters a class under a name.

        Raises:
            ConfigurationError: the name is taken, or no word of a YAML key.
        """
        if not name.isidentifier() or name != name.lower():
            raise ConfigurationError(
                f"a {self.kind} can't be called {name!r}: use small letters, digits and _"
            )

        def enter(part: Callable[..., Part]) -> Callable[..., Part]:
            if self._classes.setdefault(name, part) is not part:
                raise ConfigurationError(
                    f"the {self.kind} {name!r} is registered already, as "
                    f"{self._classes[name].__name__}; choose another name"
                )
            return part

        return enter

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """The options of a part, by name; its defaults are those of the class.

        Raises:
            ConfigurationError: see `__getitem__`.
        """
        return dict(inspect.signature(self[name]).parameters)

    def build(self, name: str, /, **options: Any) -> Part:
        """The part of a name, with options in place of its defaults.

        Raises:
            ConfigurationError: the name or an option is unknown, the message lists what there is;
                or a value is out of range.
        """
        known = self.options(name)
        for option in options:
            if option not in known:
                meant = did_you_mean(option, known)
                taken = f"it takes {choices(known)}" if known else "it takes none"
                raise ConfigurationError(
                    f"the {self.kind} {name!r} has no option {option!r}; {meant or taken}",
                    option=f"{self.kind}.{option}",
                )
        try:
            part = self[name](**options)
        except ConfigurationError as error:
            if error.option in known:
                error.option = f"{self.kind}.{error.option}"
            raise
        except TypeError as error:
            raise ConfigurationError(f"the {self.kind} {name!r} can't be made: {error}") from error
        for option, value in options.items():
            self._require_like(known[option].default, value, name, option)
        return part

    def _require_like(self, default: object, value: object, name: str, option: str) -> None:
        """Refuse what the part has taken without a look: a value that can't be meant for a switch,
        a number or a word as its default is."""
        kinds = {bool: "True or False", int: "an integer", float: "a number", str: "a name"}
        expected = kinds.get(type(default))
        if expected is None or type(value) not in kinds or type(value) is type(default):
            return
        if type(default) is float and type(value) is int:
            return
        raise ConfigurationError(
            f"the {self.kind} {name!r}: {option} must be {expected}, got {value!r}",
            option=f"{self.kind}.{option}",
        )

    def __getitem__(self, name: str) -> Callable[..., Part]:
        """The class of a name.

        Raises:
            ConfigurationError: the name is unknown; the message lists the known ones.
        """
        if name not in self._classes:
            meant = did_you_mean(str(name), self._classes)
            raise ConfigurationError(
                f"unknown {self.kind} {name!r}; {meant or 'choose from ' + choices(self)}",
                option=f"{self.kind}.name",
            )
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def __contains__(self, name: object) -> bool:
        return name in self._classes
