"""Export of checkpoints: safetensors, a state dict, a TransformerLens model, or a folder for the Hugging Face hub.

A state dict or safetensors file has the parameters under the names of the run file. A TransformerLens model is what
`HookedTransformer` of TransformerLens 3 loads:

    saved = torch.load("step.tl.pt", weights_only=True)
    model = HookedTransformer(HookedTransformerConfig.from_dict(saved["cfg"]))
    model.load_state_dict(saved["state_dict"])
"""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mechinterp.errors import MechinterpError, unknown_name
from mechinterp.files import make_folder, replace_bytes, require_writable
from mechinterp.models.hooked_config import settings
from mechinterp.models.network import Network

if TYPE_CHECKING:
    from mechinterp.run import Run

ENDINGS = (".safetensors", ".pt", ".pth")
"""Endings of files whose format they say."""
_BY_SUFFIX = {".safetensors": "safetensors", ".pt": "state_dict", ".pth": "state_dict", "": "hub"}


def export(
    run: "Run",
    steps: int | str | Sequence[int | str] | None,
    path: str | Path,
    *,
    format: str | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write checkpoints of a run, each to a file of its own; returns the paths.

    `steps` is a stored step (also ``first`` or ``last``), several, or None for all; the path of several has a place for
    the step, ``"steps/{step}.safetensors"``. `format` is ``safetensors``, ``state_dict``, ``transformer_lens`` or
    ``hub`` (a folder); by default, the name's ending says which.
    """
    chosen = run.chosen_steps(steps)
    if not chosen:
        raise MechinterpError(f"{run.path}: name at least one step to export")
    for step in chosen:
        run.digest(step)  # raises for a step that is not stored
    several = steps is None or not isinstance(steps, int | str)
    if several and "{step}" not in str(path):
        raise MechinterpError(
            f"{path}: several steps need a place for the step in the name, as 'step_{{step}}.safetensors'"
        )
    kind = format or _BY_SUFFIX.get(Path(path).suffix.lower())
    if kind is None:
        raise MechinterpError(
            f"{path}: its ending is none of .safetensors, .pt and .pth; give a format, {', '.join(_FORMATS)}"
        )
    if kind not in _FORMATS:
        raise unknown_name("format", kind, _FORMATS)
    paths = [Path(str(path).replace("{step}", str(step))) for step in chosen]
    first = _FORMATS[kind](run, chosen[0])  # raises for a run without this form
    for place in [target / name if name else target for target in paths for name in first]:
        if place.resolve() in (run.path.resolve(), run.dense_path):
            raise MechinterpError(f"{place}: is the run itself, which is never replaced; choose another name")
        require_writable(place, overwrite)
    for step, target in zip(chosen, paths, strict=True):
        for name, content in (first if step == chosen[0] else _FORMATS[kind](run, step)).items():
            place = target / name if name else target
            make_folder(place.parent)
            replace_bytes(place, content)
    return paths


def _safetensors(run: "Run", step: int) -> dict[str, bytes]:
    from safetensors.torch import save

    about = {"format": "pt", "run": run.file.header.id, "step": str(step), "digest": run.digest(step)}
    return {"": save({name: value.contiguous() for name, value in run.weights(step).items()}, about)}


def _state_dict(run: "Run", step: int) -> dict[str, bytes]:
    return {"": _torch_bytes(run.weights(step))}


def _transformer_lens(run: "Run", step: int) -> dict[str, bytes]:
    """The settings and state dict of a HookedTransformer of TransformerLens 3."""
    cfg, state = hooked_transformer(run.network(step))
    return {"": _torch_bytes({"cfg": cfg, "state_dict": state})}


def hooked_transformer(network: Network) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and the state dict with which TransformerLens' HookedTransformer computes a network.

    MechinterpError for a network that it cannot: of vectors, or with a classifier, or with sinusoidal or bucketed
    positions.
    """
    model, task = network.model, network.config.task
    odd = [
        what
        for what, is_so in (
            (f"model.input = {model.input!r}", model.input != "tokens"),
            (f"model.output = {model.output!r}", model.output == "classifier"),
            (
                f"model.positional_embedding_type = {model.positional_embedding_type!r}",
                model.positional_embedding_type in ("sinusoidal", "relative_positional_bias", None),
            ),
            ("model.final_norm = False", bool(model.normalization_type) and not model.final_norm),
        )
        if is_so
    ]
    if odd:
        raise MechinterpError(
            f"a HookedTransformer has no {odd[0]}; export the weights as safetensors, or take run.model(step)"
        )
    W_Q = network.matrix(0, "Q")
    n_heads, d_model, d_head = W_Q.shape
    cfg = settings(network) | {"init_weights": False}
    del cfg["dtype"]
    state = dict(network.parameters)
    for layer in range(network.n_layers):
        attn = f"blocks.{layer}.attn"
        biases = {"b_Q": (n_heads, d_head), "b_K": (n_heads, d_head), "b_V": (n_heads, d_head), "b_O": (d_model,)}
        for name, shape in biases.items():
            state.setdefault(f"{attn}.{name}", W_Q.new_zeros(shape))
        if f"{attn}.W_O" not in state:
            state[f"{attn}.W_O"] = torch.eye(d_head, d_model).expand(n_heads, -1, -1).to(W_Q)
        state[f"{attn}.mask"] = torch.ones(task.n_pos, task.n_pos).tril().bool()
        state[f"{attn}.IGNORE"] = torch.tensor(-torch.inf)
        if model.d_mlp is not None:
            for name, width in (("b_in", model.d_mlp), ("b_out", d_model)):
                state.setdefault(f"blocks.{layer}.mlp.{name}", W_Q.new_zeros(width))
    state.setdefault("unembed.b_U", W_Q.new_zeros(task.n_labels))
    return cfg, {name: value.detach().contiguous() for name, value in state.items()}


def _hub(run: "Run", step: int) -> dict[str, bytes]:
    """A folder for the Hugging Face hub: weights, settings and a model card."""
    described = run.origin or run.config
    about = {
        "library_name": "mechinterp",
        "step": step,
        "digest": run.digest(step),
        "run": run.file.header.id,
        "trained_here": run.origin is None,
        "settings": described.model_dump(mode="json"),
    }
    numbers = {name: value for name, value in run.metrics.loc[step].items() if value == value}
    listed = "\n".join(f"| {name} | {value:.6g} |" for name, value in numbers.items())
    shapes = "\n".join(f"| `{name}` | {tuple(value.shape)} |" for name, value in run.weights(step).items())
    card = f"""---
library_name: mechinterp
tags: [mechanistic-interpretability, training-dynamics]
---

# {run.path.stem}, step {step:,}

A checkpoint of a training run, exported by mechinterp. {_provenance(run)}

```python
from safetensors.torch import load_file

weights = load_file("model.safetensors")
```

SHA-256 of the weights (names, shapes and bytes in the order of the table, as `Run.digest` has it): `{run.digest(step)}`

| number at this step | |
|---|---|
{listed}

| parameter | shape |
|---|---|
{shapes}
"""
    return {
        "model.safetensors": _safetensors(run, step)[""],
        "config.json": (json.dumps(about, indent=2) + "\n").encode(),
        "README.md": card.encode(),
    }


def _provenance(run: "Run") -> str:
    if run.origin is not None:
        return f"It was {run.origin.how} from a network that was trained elsewhere."
    return f"Its training is determined by the settings in `config.json`, with seed {run.config.seed}."


def _torch_bytes(values: Any) -> bytes:
    content = io.BytesIO()
    torch.save(values, content)
    return content.getvalue()


_FORMATS: dict[str, Callable[["Run", int], dict[str, bytes]]] = {
    "safetensors": _safetensors,
    "state_dict": _state_dict,
    "transformer_lens": _transformer_lens,
    "hub": _hub,
}
"""The files of a checkpoint, by their name in the folder, or "" for a single file."""
