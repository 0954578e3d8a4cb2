"""Mutants of decoding."""

from tests.mutation.mutant import edits

ENTRIES = [
    *edits(
        "inference/decode.py",
        "inference/test_decode.py",
        ("hidden_BTD[jnp.arange(B), length_B - 1]", "hidden_BTD[:, -1]"),
        ("hidden_BTD[jnp.arange(B), length_B - 1]", "hidden_BTD[jnp.arange(B), length_B - 2]"),
        ("jnp.argmax(logits_BV, axis=-1)", "jnp.argmin(logits_BV, axis=-1)"),
        ("ended_B | (is_stop(token_B, stop_ids))", "is_stop(token_B, stop_ids)"),
        ("ended_B | (is_stop(token_B, stop_ids))", "ended_B"),
        ("jnp.where(ended_B, pad_id, token_B)", "token_B"),
        ("jnp.where(ended_B, 0, 1)", "1"),
        ("length_B + index)", "length_B + index + 1)"),
        ("index < max_new_tokens", "index < max_new_tokens - 1"),
        ("& ~ended_B.all()", ""),
        ("& ~ended_B.all()", "& ~ended_B.any()"),
        (
            "jax.random.fold_in(key, index)",
            "key",
            "inference/test_decode.py::test_tokens_are_drawn_from_the_key_anew_at_every_step",
        ),
    ),
    *edits(
        "inference/beam.py",
        "inference/test_beam.py",
        ("count**length_penalty\n        # Only", "1.0\n        # Only"),
        ("next_.score_BW[:, 0] / count**length_penalty", "next_.score_BW[:, 0]"),
        ("reshape(B, W * V), Y)", "reshape(B, W * V), Y - 1)"),
        ("| (now.index == T - 1)", ""),
        ("(jnp.arange(Y) < W)[None]", "(jnp.arange(Y) < Y)[None]"),
        ("& now.open_B[:, None]", ""),
        ("best_running_B > worst_B", "best_running_B > ended_score_BW[:, 0]"),
        ("jnp.where(is_stop(token_BY, stop_ids), now.index, count)", "count"),
        ("jnp.arange(B)[:, None] * W", "jnp.arange(B)[:, None] * 0"),
        ("[0.0] + [_NEVER] * (W - 1)", "[0.0] * W"),
        ("end.ended_tokens_BWT[:, 0]", "end.ended_tokens_BWT[:, -1]"),
        ("flat_BY // V, (flat_BY % V)", "flat_BY % W, (flat_BY % V)"),
        ("count = now.index + 1", "count = now.index + 2"),
        ("length_X + now.index\n", "length_X + now.index + 1\n"),
        (
            "client_B=jnp.repeat(branch.client_B, beams)",
            "client_B=jnp.tile(branch.client_B, beams)",
        ),
        ("jnp.repeat(w, beams, axis=0)", "jnp.tile(w, beams)"),
    ),
]
