"""What interventions do (`mechinterp.interventions` says what they are).

Those on parameters act between the engine's steps, so they work at every engine's full speed: a state after s updates
has what begins at s already set. Those on activations are hooks of the forward pass, under TransformerLens' names; the
engine then is autograd's.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.config import RunConfig
from mechinterp.errors import ConfigError, unknown_name
from mechinterp.interventions import Activation, Clamp, Copy, Fix, Freeze, Graft, Silence
from mechinterp.models.parameters import parameter_shapes
from mechinterp.store.run import open_run
from mechinterp.tasks.base import Batch


def noted(config: RunConfig) -> RunConfig:
    """The config with the digests of the weights that it grafts; all that it names must exist.

    An unknown parameter; a run that lacks the step, or has other weights there than noted before, or of other shapes;
    and a parameter that is set while another intervention holds it, or twice at once, raise.
    """
    parameters, interventions = _Parameters(config), []
    parameters.require_consistent()
    for each in config.interventions:
        if isinstance(each, Graft):
            each = each.model_copy(update={"digest": _source_digest(each)})
            _require_same_shapes(each, parameters.matching(each), config)
        interventions.append(each)
    return config.model_copy(update={"interventions": tuple(interventions)})


def acts_on_activations(config: RunConfig) -> bool:
    """Whether some intervention changes the forward pass."""
    return bool(_acting(config))


def only_clamps_patterns(config: RunConfig) -> bool:
    """Whether no intervention changes more than whole patterns of layer 1 and the target's row of layer 2.

    The fused engine computes those (two layers with one head); it is asked for `Under.clamped`.
    """
    return all(
        isinstance(each, Clamp) and (each.layer == 1 or each.pattern in ("previous_token", "uniform"))
        for each in _acting(config)
    )


def _acting(config: RunConfig) -> list[Activation]:
    return [each for each in config.interventions if isinstance(each, Activation) and each.acts]


class Interventions:
    """The interventions of a run, applied to parameters and forward passes."""

    def __init__(self, config: RunConfig):
        self._parameters = _Parameters(config)
        self._activations = _acting(config)
        self._last = config.model.n_layers - 1

    def require(self, batch: Batch) -> None:
        """A role or label that an intervention needs and the task's batches lack is an error."""
        Under(self._activations, batch, self._last).hooks()

    def settle(self, step: int, parameters: Mapping[str, Tensor]) -> None:
        """Set, in place, what begins at the state after `step` updates. Doing it twice is doing it once."""
        with torch.no_grad():
            for name, value in self._parameters.set_at(step):
                parameters[name].copy_(value) if isinstance(value, Tensor) else parameters[name].fill_(value)

    @contextmanager
    def held(self, step: int, parameters: Mapping[str, Tensor]) -> Iterator[None]:
        """Around the update from `step`: parameters that are held have the same bits after it."""
        before = {name: parameters[name].detach().clone() for name in self._parameters.held_at(step)}
        yield
        with torch.no_grad():
            for name, value in before.items():
                parameters[name].copy_(value)

    def at(self, step: int, batch: Batch) -> "Under | None":
        """What changes the forward pass of the update from `step` on these sequences; None if nothing does."""
        here = [each for each in self._activations if each.is_on(step)]
        return Under(here, batch, self._last) if here else None


class Under:
    """The interventions that change one forward pass."""

    def __init__(self, interventions: list[Activation], batch: Batch, last_layer: int):
        self._interventions, self._batch, self._last = interventions, batch, last_layer

    def hooks(self) -> dict[str, Callable[..., Tensor]]:
        """As hooks of the forward pass, by name."""
        chains: dict[str, list[Callable[[Tensor], Tensor]]] = {}
        for each in self._interventions:
            if isinstance(each, Copy):
                continue
            attn = f"blocks.{each.layer}.attn"
            if isinstance(each, Clamp):
                hook, change = f"{attn}.hook_pattern", _clamp(each, self._batch)
            elif isinstance(each, Silence):
                hook, change = f"{attn}.hook_z", _silence(each)
            else:
                hook, change = f"{attn}.hook_attn_scores", _temper(each.tau, each.head)
            chains.setdefault(hook, []).append(change)
        for each in self._interventions:  # last, since it reads the pattern as clamped
            if isinstance(each, Copy):
                see, answer = _copy(each, self._batch)
                chains.setdefault(f"blocks.{self._last}.attn.hook_pattern", []).append(see)
                chains.setdefault("classifier.hook_logits", []).append(answer)
        return {hook: _one_after_another(chain) for hook, chain in chains.items()}

    def clamped(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Clamps as sums: what is left of layer 1's pattern [1] and what is added to it [query, key]; and the same of
        the target's row of layer 2, [batch] and [batch, key]. Together, (1−s)·p + s·c one after another."""
        n_pos = _n_pos(self._batch)
        free1, fixed1 = torch.ones(1, dtype=torch.float64), torch.zeros(n_pos, n_pos, dtype=torch.float64)
        free2 = torch.ones(len(self._batch), dtype=torch.float64)
        fixed2 = torch.zeros(len(self._batch), n_pos, dtype=torch.float64)
        for each in self._interventions:
            assert isinstance(each, Clamp)
            c, weight = _pattern(each, self._batch)
            if each.layer == 0:
                s = each.strength
                free1, fixed1 = (1 - s) * free1, (1 - s) * fixed1 + s * c[0]
            else:
                s = each.strength * weight[:, -1].double()
                free2, fixed2 = (1 - s) * free2, (1 - s)[:, None] * fixed2 + s[:, None] * c[:, -1]
        return free1, fixed1, free2, fixed2


class _Parameters:
    """Which parameters are set, and which are held, at a step."""

    def __init__(self, config: RunConfig):
        self._all = list(parameter_shapes(config))
        self._fix = [(each, self.matching(each)) for each in config.interventions if isinstance(each, Fix)]
        self._freeze = [(each, self.matching(each)) for each in config.interventions if isinstance(each, Freeze)]
        self._graft = [(each, self.matching(each)) for each in config.interventions if isinstance(each, Graft)]

    def require_consistent(self) -> None:
        """No parameter is set twice at a step, nor while another intervention holds it."""
        sets = [(each, name) for each, names in [*self._graft, *self._fix] for name in names]
        holds = [(each, name) for each, names in [*self._fix, *self._freeze] for name in names]
        for number, (each, name) in enumerate(sets):
            for other, same in sets[:number]:
                if name == same and each.start == other.start:
                    raise ConfigError(f"interventions: {name} is set twice at step {each.start}; remove one")
            for other, same in holds:
                if name == same and other.start < each.start and (other.stop is None or each.start < other.stop):
                    raise ConfigError(
                        f"interventions: {each.kind} sets {name} at step {each.start}, while {other.kind} holds it from"
                        f" {other.start} on; let that stop at {each.start}"
                    )

    def matching(self, each: Fix | Freeze | Graft) -> list[str]:
        """The parameters that an intervention names."""
        found = []
        for pattern in each.parameters:
            names = [name for name in self._all if fnmatchcase(name, pattern)]
            if not names:
                raise ConfigError(f"interventions: {each.kind}: {unknown_name('parameter', pattern, self._all)}")
            found += names
        return found

    def set_at(self, step: int) -> Iterator[tuple[str, Tensor | float]]:
        for each, names in self._graft:
            if each.start == step:
                source = _source_weights(each)
                yield from ((name, source[name]) for name in names)
        for each, names in self._fix:
            if each.start == step:
                yield from ((name, each.value) for name in names)

    def held_at(self, step: int) -> list[str]:
        return [name for each, names in [*self._fix, *self._freeze] if each.is_on(step) for name in names]


def _require_same_shapes(graft: Graft, names: list[str], config: RunConfig) -> None:
    theirs, ours = parameter_shapes(open_run(graft.run).config), parameter_shapes(config)
    for name in names:
        if theirs.get(name) != ours[name]:
            found = f"is {list(theirs[name])}" if name in theirs else "does not exist"
            raise ConfigError(f"{graft.run}: its {name} {found}, to graft it takes {list(ours[name])}")


def _source_digest(graft: Graft) -> str:
    """The digest of the weights that are grafted, which must be the one noted, if one is."""
    found = open_run(graft.run).digest(graft.step)
    if graft.digest not in (None, found):
        raise ConfigError(
            f"{graft.run}: its weights at step {graft.step} are not those that were grafted (their digest is"
            f" {found[:12]}…, noted was {str(graft.digest)[:12]}…); restore the run that was used"
        )
    return found


def _source_weights(graft: Graft) -> dict[str, Tensor]:
    _source_digest(graft)
    return open_run(graft.run).weights(graft.step)


def _clamp(clamp: Clamp, batch: Batch) -> Callable[[Tensor], Tensor]:
    """p ← (1−s)·p + s·c where there is something to attend to."""
    fixed, clamped = _pattern(clamp, batch)

    def change(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head query key"]:
        rows = slice(-pattern.shape[2], None)  # the last layer may have the target's query only
        c, weight = fixed.to(pattern)[:, None, rows], clamp.strength * clamped.to(pattern)[:, None, rows, None]
        return _at_head(pattern, clamp.head, torch.lerp(pattern, c.expand_as(pattern), weight), dim=1)

    return change


def _pattern(clamp: Clamp, batch: Batch) -> tuple[Float[Tensor, "some query key"], Float[Tensor, "some query"]]:
    """The pattern c of a clamp, [batch or 1, query, key], and 1 at the queries that it clamps, 0 at the others.

    A target that has no correct label to attend to, or no label, is not clamped.
    """
    if clamp.pattern in ("previous_token", "uniform"):
        n_pos = _n_pos(batch)
        return _whole_pattern(clamp.pattern, n_pos)[None], torch.ones(1, n_pos)
    role = batch.roles["correct_label" if clamp.pattern == "correct_label" else "label"]
    count, clamped = role.sum(dim=1, keepdim=True), torch.zeros(role.shape)
    clamped[:, -1] = count[:, 0] > 0
    return (role / count.clamp(min=1))[:, None, :].expand(-1, role.shape[1], -1), clamped


def _n_pos(batch: Batch) -> int:
    return batch.table.content.shape[1] if batch.table is not None else batch.inputs.shape[1]


def _whole_pattern(name: str, n_pos: int) -> Float[Tensor, "query key"]:
    if name == "uniform":
        allowed = torch.ones(n_pos, n_pos, dtype=torch.float64).tril()
        return allowed / allowed.sum(dim=1, keepdim=True)
    previous = torch.ones(n_pos - 1, dtype=torch.float64).diag(-1)
    previous[0, 0] = 1
    return previous


def _silence(silence: Silence) -> Callable[[Tensor], Tensor]:
    def change(z: Float[Tensor, "batch query head d_head"]) -> Float[Tensor, "batch query head d_head"]:
        return _at_head(z, silence.head, (1 - silence.strength) * z, dim=2)

    return change


def _temper(tau: float, head: int | None) -> Callable[[Tensor], Tensor]:
    def change(scores: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head query key"]:
        return _at_head(scores, head, scores / tau, dim=1)

    return change


def _copy(copy: Copy, batch: Batch) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """A hook that sees the pattern, and one that answers from it."""
    shown = batch.token_labels
    if shown is None:
        raise ConfigError("interventions: copy: the task's batches carry no token_labels; add them to its Batch")
    seen: dict[str, Tensor] = {}

    def see(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head query key"]:
        seen["attention"] = pattern[:, :, -1].mean(dim=1)
        return pattern

    def answer(logits: Float[Tensor, "batch n_labels"]) -> Float[Tensor, "batch n_labels"]:
        attention = seen["attention"]
        labels = torch.where(shown < 0, logits.shape[-1], shown).to(attention.device)
        copied = attention.new_zeros(len(logits), logits.shape[-1] + 1).scatter_add(1, labels, attention)[:, :-1]
        return torch.lerp(logits, copy.xi * copied, copy.strength)

    return see, answer


def _at_head(before: Tensor, head: int | None, after: Tensor, dim: int) -> Tensor:
    """`after` at one head, `before` at the others; of all heads without one."""
    if head is None:
        return after
    chosen = torch.arange(before.shape[dim], device=before.device) == head
    return torch.where(chosen.view([-1 if axis == dim else 1 for axis in range(before.ndim)]), after, before)


def _one_after_another(chain: list[Callable[[Tensor], Tensor]]) -> Callable[..., Tensor]:
    """One hook of several; TransformerLens also passes the hook point."""

    def change(value: Tensor, hook: object = None) -> Tensor:
        for each in chain:
            value = each(value)
        return value

    return change
