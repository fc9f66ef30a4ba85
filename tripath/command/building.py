"""Objects of plain values: what a node of a configuration says becomes the dataclass that its place in the configuration takes.

No configuration names code: the class follows from the place. Files of before may say `_target_` still, and then name that class.
"""

import dataclasses
import pickle
import types
import typing
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from omegaconf import OmegaConf

from npu.choices import TYPE_NAMES, is_a
from npu.errors import TripathError
from npu.units import read_quantity

TARGET = "_target_"
NUMBERS = (int, float)
Kind = TypeVar("Kind")


def build(kind: type[Kind], key: str, node: object) -> Kind:
    """The object of class `kind` that the configuration node `key` describes, its values checked against the fields' types.

    Raises:
        TripathError: an unknown or missing key, a value of the wrong type, or a rule of the class is broken.
    """
    values = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return _built(kind, key, pickle.dumps(values))


@lru_cache(maxsize=256)
def _built(kind: type[Kind], key: str, packed: bytes) -> Kind:
    """As `build`, once for the same values: most groups are the same in all jobs of a sweep, and nobody changes what is built."""
    return _object(kind, key, pickle.loads(packed))  # noqa: S301  made above, in this process


def _object(kind: type[Kind], key: str, values: object) -> Kind:
    if not isinstance(values, Mapping):
        file = f"; a file is chosen by {key.replace('.', '/')}={values}" if isinstance(values, str) else ""
        raise TripathError(f"{key}: needs a mapping, got {values!r}{file}")
    named = values.get(TARGET, kind.__name__)
    if str(named).rpartition(".")[2] != kind.__name__:
        raise TripathError(f"{key}.{TARGET}: is {kind.__name__} here, got {named!r}")
    types_of = typing.get_type_hints(kind)
    given: dict[str, Any] = {}
    for name, value in values.items():
        if name == TARGET:
            continue
        if name not in types_of:
            raise TripathError(f"{key}.{name}: no such key, one of {', '.join(types_of)}")
        given[str(name)] = _value(f"{key}.{name}", value, types_of[name])
    for field in dataclasses.fields(typing.cast("Any", kind)):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in given:
            raise TripathError(f"{key}.{field.name}: is missing")
    try:
        return kind(**given)
    except TripathError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise TripathError(f"{key}: {' '.join(str(error).split())}") from None


def _quantity(key: str, text: str, kind: type[float]) -> float:
    """A number that is written with its unit.

    Raises:
        TripathError: it has no such unit, or is no integer where one is needed.
    """
    try:
        found = read_quantity(key, text)
    except ValueError as error:
        raise TripathError(f"{key}: {error}") from None
    if kind is int and found.denominator != 1:
        raise TripathError(f"{key}: must be an integer, got {text!r}, {float(found):g}")
    return kind(found)


def _value(key: str, value: object, kind: Any) -> object:  # noqa: ANN401  a type or a generic alias
    """The value of a field of type `kind`.

    Raises:
        TripathError: it is of another type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        plain = [argument for argument in arguments if argument is not type(None)]
        if any(is_a(value, argument) for argument in plain):
            return value
        kind = plain[0]
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Sequence and isinstance(value, Sequence) and not isinstance(value, str):
        return [_value(f"{key}[{number}]", item, arguments[0]) for number, item in enumerate(value)]
    if origin is Mapping and isinstance(value, Mapping):
        return {name: _value(f"{key}.{name}", item, arguments[1]) for name, item in value.items() if name != TARGET}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _object(kind, key, value)
    if isinstance(value, str) and kind in NUMBERS and value.strip()[:1].isdigit():
        return _quantity(key, value, kind)
    if not is_a(value, origin or kind):
        raise TripathError(f"{key}: must be {TYPE_NAMES.get(kind, 'a list or mapping')}, got {value!r}")
    return value
