import pytest

from feddpa_jax.hf.names import GGUF, LLAMA, check_shape, map_names
from feddpa_jax.models.decoder import parameter_shapes
from feddpa_jax.testing import tiny_config
from feddpa_jax.types import UserError

SHAPES = {"norm.scale": (4,), "layers.3.attention.q_proj.kernel": (4, 6), "embed.embedding": (9, 4)}
NAMES = [
    "model.norm.weight",
    "model.layers.3.self_attn.q_proj.weight",
    "model.embed_tokens.weight",
]


def test_names_map_and_the_largest_comes_first():
    assert list(map_names(NAMES, SHAPES, LLAMA, "file").items()) == [
        ("model.embed_tokens.weight", ("embed.embedding", False)),
        ("model.layers.3.self_attn.q_proj.weight", ("layers.3.attention.q_proj.kernel", True)),
        ("model.norm.weight", ("norm.scale", False)),
    ]


def test_bare_decoder_and_old_rotary_buffers():
    names = [name.removeprefix("model.") for name in NAMES]
    names.append("model.layers.3.self_attn.rotary_emb.inv_freq")
    assert set(map_names(names, SHAPES, LLAMA, "file")) == set(names[:3])


@pytest.mark.parametrize("tied", [True, False])
def test_gguf_names_cover_every_parameter(tied: bool):
    shapes = parameter_shapes(tiny_config(tied=tied, layers=1))
    layer = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output"]
    layer += ["ffn_norm", "ffn_gate", "ffn_up", "ffn_down"]
    names = ["token_embd.weight", "output_norm.weight", *(f"blk.0.{n}.weight" for n in layer)]
    if not tied:
        names.append("output.weight")
    mapped = map_names(names, shapes, GGUF, "file")
    assert {path for path, _ in mapped.values()} == set(shapes)
    assert mapped["blk.0.attn_output.weight"] == ("layers.0.attention.o_proj.kernel", True)


def test_a_tied_models_spare_head_is_left_out():
    assert "lm_head.weight" not in map_names([*NAMES, "lm_head.weight"], SHAPES, LLAMA, "file")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            [*NAMES, "model.layers.3.self_attn.q_proj.qscale"],
            "file: unknown tensor .*q_proj.qscale",
        ),
        ([*NAMES, "model.layers.7.mlp.up_proj.weight"], "layers.7.* has no place"),
        (NAMES[:2], "file: no tensor for embed.embedding"),
        ([*NAMES, "norm.weight"], "set twice, by 'model.norm.weight' and 'norm.weight'"),
    ],
    ids=["unknown", "surplus", "missing", "twice"],
)
def test_errors(names: list[str], message: str):
    with pytest.raises(UserError, match=message):
        map_names(names, SHAPES, LLAMA, "file")


def test_shapes_are_named_on_both_sides():
    with pytest.raises(UserError, match=r"'a.weight' \(a.kernel\) has shape \[2, 3\].* \[3, 2\]"):
        check_shape("a.weight", (2, 3), "a.kernel", (3, 2), "file")
