"""Every element of every trained parameter belongs to one component."""

import pytest
import torch

import mechinterp as mi
from mechinterp.comparison.components import Kind, chosen_components, components_of
from mechinterp.config import PRESETS
from mechinterp.errors import MechinterpError, UnknownNameError
from mechinterp.models.registry import parameter_shapes

PARTS = {"model.normalization_type": "LN", "model.biases": True, "model.d_mlp": 8, "model.n_heads": 2}
FURTHER = [
    {**PARTS, "model.output_matrix": "trained", "model.positional_embedding_type": "relative_positional_bias"},
    {**PARTS, "model.positional_embedding_type": "standard", "model.parallel_attn_mlp": True},
    {"task.kind": "paired_items", "model.trained_layer_norm": True, "model.n_layers": 1},
    {"model.output_matrix": "trained", "model.n_heads": 3, "model.classifier_bias": "shared"},
]
CONFIGS = [mi.RunConfig.preset(name) for name in PRESETS]
CONFIGS += [mi.RunConfig().updated(changes) for changes in FURTHER]


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("config", CONFIGS, ids=[*PRESETS, *map(str, range(len(FURTHER)))])
def test_every_number_belongs_to_one_component(config, apart):
    counts = {name: torch.zeros(shape) for name, shape in parameter_shapes(config).items()}
    components = components_of(config, heads_apart=apart)
    for component in components:
        for name in component.parameters:
            part = component.part(name, counts[name])
            part += 1  # a view
    assert all(bool((count == 1).all()) for count in counts.values())
    names = [component.name for component in components]
    assert len(set(names)) == len(names)
    assert apart or all(component.head is None for component in components)


def test_names_are_those_that_people_read():
    default = ["layer 1 QK", "layer 1 values", "layer 2 QK", "layer 2 values", "classifier"]
    assert [str(component) for component in components_of(mi.RunConfig.preset("reddy2023"))] == default
    assert [c.name for c in components_of(mi.RunConfig.preset("reddy2023-minimal"))] == [*default[::2]]
    additive = components_of(mi.RunConfig.preset("nguyen2024-minimal"))
    assert [component.name for component in additive] == ["layer 1 QK", "layer 1 values", "classifier"]
    tokens = components_of(mi.RunConfig.preset("singh2024"))
    assert {"embedding", "layer 2 head 8 QK", "layer 1 head 1 OV", "layer 1 norms", "final norm", "unembedding"} <= {
        component.name for component in tokens
    }
    head = next(component for component in tokens if component.name == "layer 2 head 8 QK")
    assert (head.layer, head.head, head.kind) == (1, 7, Kind.queries_keys)
    together = [component.name for component in components_of(mi.RunConfig.preset("singh2024"), heads_apart=False)]
    assert "layer 2 OV" in together


def test_a_misspelt_component_is_named():
    known = components_of(mi.RunConfig.preset("reddy2023"))
    assert chosen_components(known, "classifier") == known[-1:]
    with pytest.raises(UnknownNameError, match="did you mean 'layer 2 QK'"):
        chosen_components(known, ["layer 2 QQ"])
    with pytest.raises(MechinterpError, match="components is empty"):
        chosen_components(known, [])
