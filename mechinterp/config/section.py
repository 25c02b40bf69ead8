"""The base classes of configs: frozen sections, and families of sections with a `kind`.

To add a task or a model to what a config may name, derive a class from its family and give it a `kind`:

    class Mine(TaskConfig):
        kind: Literal["mine"] = "mine"
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Union

from pydantic import BaseModel, ConfigDict, Discriminator, GetCoreSchemaHandler, Tag
from pydantic_core import CoreSchema

from mechinterp.errors import ConfigError


class Section(BaseModel):
    """A frozen group of settings; an unknown key or a wrong type is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """The settings that are not the defaults, so that a config is read in a line and can be typed as it is read."""
        fields = type(self).model_fields
        return ((name, value) for name, value in self if value != fields[name].get_default(call_default_factory=True))


class Family(Section):
    """A section with several kinds: the derived classes that have a `kind`."""

    _registry: ClassVar[dict[str, type["Family"]]]

    if TYPE_CHECKING:
        kind: ClassVar[str]  # the name by which a config chooses the class

    @classmethod
    def kinds(cls) -> dict[str, type["Family"]]:
        """The classes of this family by their `kind`, in the order of their definition."""
        return dict(cls._registry)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        if Family in cls.__bases__:
            cls._registry = {}
        elif "kind" in cls.model_fields:
            kind = cls.model_fields["kind"].default
            known = cls._registry.get(kind, cls)
            if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ConfigError(f"kind {kind!r} is that of {known.__module__}.{known.__qualname__}; choose another")
            cls._registry[kind] = cls


@dataclass(frozen=True)
class OneOf:
    """Annotation of a field for any class of a family, chosen by `kind`, or by `default` where the kind is missing."""

    default: str | None = None

    def __get_pydantic_core_schema__(self, family: type[Family], handler: GetCoreSchemaHandler) -> CoreSchema:
        classes = tuple(Annotated[section, Tag(kind)] for kind, section in family.kinds().items())
        by_kind = Discriminator(self._kind_of if self.default else "kind")
        return handler.generate_schema(Annotated[Union[classes], by_kind])  # noqa: UP007  (made at run time)

    def _kind_of(self, value: Any) -> str:
        """The kind of a table or of a section; for another value the default, whose class reports the error."""
        if isinstance(value, dict):
            return str(value.get("kind", self.default))
        return str(getattr(value, "kind", self.default))
