"""The header of a file of checkpoints that this package has not trained, and what is known of their network."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal
from uuid import uuid4

from torch import Tensor, nn

from mechinterp.errors import printable
from mechinterp.models.foreign import recognise, require_same_answers, settings_of
from mechinterp.models.network import Network
from mechinterp.store import Contents, Header, Origin
from mechinterp.torch_state import unwrapped
from mechinterp.training.recording import environment


def new_header(contents: Contents, origin: Origin, capacity: int) -> Header:
    """The header of a new file with room for so many checkpoints."""
    return Header(
        id=uuid4().hex,
        created=datetime.now(UTC).isoformat(timespec="microseconds"),
        config=None,
        origin=origin,
        environments={"0": environment()},
        capacity=capacity,
        contents=contents,
    )


def origin_of(
    how: Literal["recorded", "imported"],
    values: Mapping[str, Tensor],
    left_out: tuple[str, ...],
    *,
    module: nn.Module | None,
    settings: object | None,
    given: bool,
) -> Origin:
    """Where checkpoints come from, with the network if it is one that is known and computes what the module does.

    UnrecognisedNetwork if it is none, and the user has `given` the settings.
    """
    if settings is None and module is not None:
        settings = settings_of(unwrapped(module))
    try:
        known = recognise({name: tuple(value.shape) for name, value in values.items()}, settings)
        network = Network(known.config, known.parameters(values))
        if module is not None:
            require_same_answers(network, unwrapped(module))
    except Exception as error:  # whatever a module of a user does, its checkpoints are recorded
        if given:
            raise
        return Origin(how=how, unknown=printable(str(error))[:1000], left_out=left_out)
    return Origin(how=how, network=known.to_json(), left_out=left_out)
