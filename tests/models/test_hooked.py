"""The hooked transformer of our own modules, which TransformerLens 4 needs, also with TransformerLens 3.9.

Known answers are the forward pass of the library and, where it exists, HookedTransformer.
"""

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechinterp.errors import MechinterpError, UnknownNameError
from mechinterp.models.forward import forward, run_with_cache
from mechinterp.models.hooked import HookedNetwork, NetworkView
from mechinterp.models.hooked_config import HookedConfig
from mechinterp.models.hooked_lens import MAJOR
from mechinterp.models.hooked_transformer import Transformer
from mechinterp.models.network import Network
from tests.helpers import by_hooked_transformer
from tests.models.drawn import config_of, inputs_of, models, random_network

VECTORS = {"input": "projected", "d_model": 8, "n_layers": 2, "n_heads": 2, "d_head": 4, "output_matrix": "trained"}
VECTORS |= {"output": "classifier", "classifier_depth": 1, "classifier_width": 6}
LANGUAGE = VECTORS | {"input": "tokens", "output": "unembedding", "biases": True, "use_attn_scale": True, "d_mlp": 12}
LANGUAGE = {name: value for name, value in LANGUAGE.items() if not name.startswith("classifier_")}
LANGUAGE |= {"normalization_type": "LN", "positional_embedding_type": "standard"}
ON_REQUEST = {
    "set_use_attn_result": ("attn.hook_result",),
    "set_use_attn_in": ("hook_attn_in",),
    "set_use_split_qkv_input": ("hook_q_input", "hook_k_input", "hook_v_input"),
    "set_use_hook_mlp_in": ("hook_mlp_in",),
}


class OwnNetwork(NetworkView, Transformer):
    """The hooked view that TransformerLens 4 gets."""


KINDS = [OwnNetwork, *([HookedNetwork] if MAJOR < 4 else [])]


def drawn(model: dict) -> tuple[Network, Tensor]:
    config = config_of(model)
    return random_network(config), inputs_of(config)


def requested(view: NetworkView, attn_only: bool) -> NetworkView:
    """The view with all hooks that fire on request only."""
    for setter in ON_REQUEST:
        if not (attn_only and setter == "set_use_hook_mlp_in"):
            getattr(view, setter)(True)
    return view


def assert_equal(found: Tensor, expected: Tensor, name: str) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11, msg=lambda text: f"{name}: {text}")


def test_the_view_is_of_our_own_modules_where_transformer_lens_has_none():
    assert issubclass(HookedNetwork, Transformer) == (MAJOR > 3)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(models(), st.booleans())
def test_every_activation_is_that_of_the_forward_pass(model, on_request):
    network, inputs = drawn(model)
    view = requested(OwnNetwork(network), "d_mlp" not in model) if on_request else OwnNetwork(network)
    logits, cache = view.run_with_cache(inputs)
    ours = run_with_cache(network, inputs)
    for name in network.hook_names:
        of_heads = on_request and ".ln1." in name  # of every head, of which all are alike
        assert_equal(cache[name][:, :, 0] if of_heads else cache[name], ours[name], name)
    assert torch.equal(logits, cache[network.hook_names[-1]])
    assert all(torch.equal(value, network.parameters[name]) for name, value in view.network().parameters.items())


@by_hooked_transformer
@settings(max_examples=60, deadline=None, derandomize=True)
@given(models(), st.booleans())
def test_hooks_weights_and_settings_are_those_of_hooked_transformer(model, on_request):
    network, inputs = drawn(model)
    own, theirs = OwnNetwork(network), HookedNetwork(network)
    assert own.hook_dict.keys() == theirs.hook_dict.keys()
    compared = {field.name for field in fields(HookedConfig)} - {"d_mlp"}  # which theirs has without an MLP, too
    for name in compared:
        assert getattr(own.cfg, name) == getattr(theirs.cfg, name), name
    weights = dict(theirs.named_parameters())
    assert {name for name, _ in own.named_parameters()} == weights.keys()
    for name, value in own.named_parameters():
        assert torch.equal(value, weights[name]), name
        assert value.requires_grad == weights[name].requires_grad, name
    if on_request:
        requested(own, "d_mlp" not in model)
        requested(theirs, "d_mlp" not in model)
    (_, cache), (_, expected) = own.run_with_cache(inputs), theirs.run_with_cache(inputs)
    assert cache.keys() == expected.keys()
    for name, value in cache.items():
        assert_equal(value, expected[name], name)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(models(), st.randoms(use_true_random=False))
def test_every_edit_acts_as_in_the_forward_pass(model, random):
    network, inputs = drawn(model)
    view, noise = OwnNetwork(network), torch.Generator().manual_seed(0)
    scores = [name for name in network.hook_names if name.endswith(("hook_attn_scores", "hook_pattern"))]
    for name in {*random.sample(network.hook_names, 4), random.choice(scores)}:

        def edit(value, hook=None):
            return value * torch.rand(value.shape, generator=noise.manual_seed(1), dtype=value.dtype)

        expected = forward(network, inputs, {name: edit})
        logits = view.run_with_hooks(inputs, fwd_hooks=[(name, edit)])
        assert_equal(logits if logits.ndim == expected.ndim else logits[:, -1], expected, name)


@pytest.mark.parametrize("kind", KINDS)
def test_edited_scores_are_what_attention_follows(kind):
    """A score 500 larger than the others takes all attention; a query whose keys are all masked attends to none."""
    network, inputs = drawn(VECTORS)
    view = kind(network)

    def to_the_first(scores, hook):
        scores[:, :, :, 0] += 500
        return scores

    with view.hooks([("blocks.0.attn.hook_attn_scores", to_the_first)]):
        _, cache = view.run_with_cache(inputs)
    torch.testing.assert_close(cache["pattern", 0][..., 0], torch.ones_like(cache["pattern", 0][..., 0]))
    expected = cache["v", 0][:, :1].expand_as(cache["z", 0])
    torch.testing.assert_close(cache["z", 0], expected)
    with view.hooks([("blocks.1.attn.hook_attn_scores", lambda scores, hook: torch.full_like(scores, -torch.inf))]):
        _, cache = view.run_with_cache(inputs)
    assert not cache["pattern", 1].any()
    assert not torch.allclose(view(inputs), cache["classifier.hook_logits"])


@pytest.mark.parametrize("kind", KINDS)
def test_changed_scales_and_output_matrices_are_used(kind):
    network, inputs = drawn(VECTORS)
    view = kind(network)
    view.blocks[0].attn.attn_scale = 3.0
    view.blocks[0].attn.b_O.data.fill_(0.5)
    _, cache = view.run_with_cache(inputs)
    scores = torch.einsum("bqhk,bphk->bhqp", cache["q", 0], cache["k", 0]) / 3
    later = torch.ones(scores.shape[-2:]).triu(1).bool()
    assert_equal(cache["pattern", 0], scores.masked_fill(later, -torch.inf).softmax(-1), "pattern")
    written = torch.einsum("bphk,hkd->bpd", cache["z", 0], view.W_O[0]) + 0.5
    assert_equal(cache["attn_out", 0], written, "attn_out")


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_on_request_fire_after_the_request(kind):
    network, inputs = drawn(LANGUAGE | {"positional_embedding_type": "shortformer"})
    view, before = kind(network), forward(network, inputs)
    for setter, names in ON_REQUEST.items():
        name = f"blocks.1.{names[0]}"
        with pytest.raises(MechinterpError, match="did not fire"):
            view.run_with_cache(inputs, names_filter=name)
        with pytest.raises((MechinterpError, AssertionError), match="hook_"):
            view.add_hook(name, lambda value, hook: value)
        getattr(view, setter)(True)
        for each in names:
            changed = view.run_with_hooks(inputs, fwd_hooks=[(f"blocks.1.{each}", lambda value, hook: 2 * value + 1)])
            assert not torch.allclose(changed[:, -1], before) or setter != "set_use_attn_result", each
            _, cache = view.run_with_cache(inputs, names_filter=f"blocks.1.{each}")
            assert cache[f"blocks.1.{each}"].shape[-1] == 8
        assert_equal(view(inputs)[:, -1], before, setter)
        getattr(view, setter)(False)
    if kind is OwnNetwork:
        with pytest.raises(MechinterpError, match="has no MLP"):
            kind(drawn(VECTORS)[0]).set_use_hook_mlp_in(True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_misspelt_name_and_a_hook_that_does_not_fire_raise(kind):
    network, inputs = drawn(VECTORS)
    view, nearest = kind(network), r"did you mean 'blocks\.0\.attn\.hook_pattern'"
    for names in ("blocks.0.attn.hook_patern", ["hook_embed", "blocks.0.attn.hook_patern"]):
        with pytest.raises(UnknownNameError, match=nearest):
            view.run_with_cache(inputs, names_filter=names)
    with pytest.raises(UnknownNameError, match=nearest):
        view.run_with_hooks(inputs, fwd_hooks=[("blocks.0.attn.hook_patern", lambda x, hook: x)])
    with pytest.raises(MechinterpError, match="matches no hook"):
        view.run_with_cache(inputs, names_filter=lambda name: "patern" in name)
    with pytest.raises(MechinterpError, match="did not fire"):
        view.run_with_hooks(inputs, fwd_hooks=[("blocks.0.attn.hook_result", lambda x, hook: x)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{}, {"normalization_type": "RMSPre"}, {"d_mlp": None}])
def test_the_cache_takes_the_residual_stream_apart(kind, changes):
    network, inputs = drawn(LANGUAGE | changes)
    view = kind(network)
    logits, cache = view.run_with_cache(inputs)
    assert torch.equal(cache["pattern", 1], cache["blocks.1.attn.hook_pattern"])
    assert torch.equal(cache["pattern", -1], cache["pattern", 1])
    last = cache["resid_post", 1]
    assert_equal(cache.accumulated_resid()[-1], last, "accumulated_resid")
    assert_equal(cache.decompose_resid().sum(dim=0), last, "decompose_resid")
    heads, labels = cache.stack_head_results(return_labels=True)
    assert labels == view.all_head_labels() == ["L0H0", "L0H1", "L1H0", "L1H1"]
    for layer in range(2):
        written = heads[2 * layer : 2 * layer + 2].sum(dim=0) + view.b_O[layer]
        assert_equal(written, cache["attn_out", layer], "stack_head_results")
    normalised = cache.apply_ln_to_stack(last[None])[0]
    assert_equal(normalised, cache["ln_final.hook_normalized"], "apply_ln_to_stack")
    if changes != {"d_mlp": None}:
        whole = cache.get_full_resid_decomposition(expand_neurons=True)
        torch.testing.assert_close(whole.sum(dim=0), last, rtol=1e-6, atol=1e-6)
    if changes == {"normalization_type": "RMSPre"}:
        attributed = cache.logit_attrs(cache.decompose_resid(), tokens=torch.tensor([[2]]))
        assert_equal(attributed.sum(dim=0), logits[..., 2] - view.b_U[2], "logit_attrs")
    plain = view.run_with_cache(inputs, return_cache_object=False)[1]
    assert isinstance(plain, dict)
    _, one = view.run_with_cache(inputs[:1], remove_batch_dim=True)
    assert_equal(one["resid_post", 1], last[0], "remove_batch_dim")


@pytest.mark.parametrize("kind", KINDS)
def test_weights_have_their_names(kind):
    network, _ = drawn(LANGUAGE)
    view, parameters = kind(network), network.parameters
    for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
        of_layers = torch.stack([parameters[f"blocks.{layer}.attn.{name}"] for layer in range(2)])
        assert torch.equal(getattr(view, name), of_layers), name
    for name in ("W_in", "W_out", "b_in", "b_out"):
        of_layers = torch.stack([parameters[f"blocks.{layer}.mlp.{name}"] for layer in range(2)])
        assert torch.equal(getattr(view, name), of_layers), name
    for part, name in (("embed", "W_E"), ("pos_embed", "W_pos"), ("unembed", "W_U"), ("unembed", "b_U")):
        assert torch.equal(getattr(view, name), parameters[f"{part}.{name}"]), name
    assert torch.equal(view.W_E_pos, torch.cat([view.W_E, view.W_pos]))
    W_Q, W_K, W_V, W_O = view.W_Q, view.W_K, view.W_V, view.W_O
    assert_equal(view.QK.AB, W_Q @ W_K.transpose(-2, -1), "QK")
    assert_equal(view.OV.AB, W_V @ W_O, "OV")
    assert_equal(view.blocks[1].attn.OV.AB, (W_V @ W_O)[1], "OV of a layer")
    assert_equal(view.blocks[1].attn.QK.AB, view.QK.AB[1], "QK of a layer")
    assert torch.equal(view.tokens_to_residual_directions(torch.tensor([1, 2])), view.W_U.T[[1, 2]])
    expected = view.b_O.sum(dim=0) + view.b_out[0]
    torch.testing.assert_close(view.accumulated_bias(1, mlp_input=True).to(expected), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", "QKV")
def test_composition_scores_are_quotients_of_norms(kind, mode):
    view = kind(drawn(LANGUAGE)[0])
    scores = view.all_composition_scores(mode)
    assert scores.shape == (2, 2, 2, 2)
    written, read = view.OV.AB[0, 1], {"Q": view.QK, "K": view.QK.T, "V": view.OV}[mode].AB[1, 0]
    expected = (written @ read).norm() / written.norm() / read.norm()
    assert_equal(scores[0, 1, 1, 0], expected, mode)
    assert not scores[1].any()
    assert not scores[0, :, 0].any()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_activations_are_kept(kind):
    network, inputs = drawn(VECTORS)
    view = kind(network)
    kept = {}
    with view.hooks(bwd_hooks=[("blocks.1.hook_resid_pre", lambda grad, hook: kept.update(grad=grad))]):
        view(inputs).sum().backward()
    base = run_with_cache(network, inputs)
    state = base["blocks.1.hook_resid_pre"].clone().requires_grad_()
    base.forward_from("blocks.1.hook_resid_pre", state).sum().backward()
    assert state.grad is not None
    assert_equal(kept["grad"], state.grad, "gradient")


def test_patching_tools_of_transformer_lens_take_the_view():
    """Its table of all layers and positions is what a loop of hooks gives."""
    from transformer_lens.patching import get_act_patch_resid_pre

    network, clean = drawn(LANGUAGE)
    corrupt, view = clean.roll(1, 0), HookedNetwork(network)
    with torch.no_grad():
        _, cache = view.run_with_cache(clean)
        table = get_act_patch_resid_pre(view, corrupt, cache, lambda logits: logits[:, -1, 0].mean())
        for layer, position in ((0, 3), (1, 6)):

            def patched(value, layer=layer, position=position):
                value[:, position] = cache["resid_pre", layer][:, position]

            expected = forward(network, corrupt, {f"blocks.{layer}.hook_resid_pre": patched})[:, 0].mean()
            torch.testing.assert_close(table[layer, position].to(expected), expected, rtol=1e-5, atol=1e-6)
