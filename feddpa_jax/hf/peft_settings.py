"""`adapter_config.json`: the settings of `peft` under which an adapter is plain LoRA.

Plain means that the model computes `x W + (alpha / R) x A B` with the base's own W; rank and alpha
may differ by module (`rank_pattern`, `alpha_pattern`). The table
`_FIELDS` names every field of `peft` that may stand in the file and the values that keep this true.
Any other field or value is refused, so what a later `peft` adds is refused too.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import regex

from feddpa_jax.adapters.lora import TARGETS, kernel_path
from feddpa_jax.files.escape import short
from feddpa_jax.hf.family import FAMILIES
from feddpa_jax.hf.names import file_name
from feddpa_jax.models.model_config import ModelConfig
from feddpa_jax.types import UserError

# A pattern from a file that backtracks for longer than this, in seconds a name, is refused.
_PATTERN_SECONDS = 0.5
_MERGE = (
    "merge it into its base (peft: model.merge_and_unload().save_pretrained(FOLDER)) and name that "
    "folder as model.path, or train it again"
)
_CONVERT = (
    "peft changes the base's weights when it loads such an adapter, so its tensors alone are not "
    "the adapter; convert it (peft: model.save_pretrained(FOLDER, "
    "path_initial_model_for_weight_conversion=ITS_INITIAL_ADAPTER)), or "
)


class LoraSettings(NamedTuple):
    """What an `adapter_config.json` says.

    Attributes:
      rank: R, where no pattern gives another.
      alpha: LoRA alpha there, such that the scale is alpha / R.
      of: rank and alpha of a module, by its name in the model of `transformers`.
      base: what the adapter was trained on; empty if the file does not say.
      selects: whether `peft` adapts a module, by its name in the model of `transformers`.
    """

    rank: int
    alpha: float
    of: Callable[[str], tuple[int, float]]
    base: str
    selects: Callable[[str], bool]


_Accepts = Callable[[Any], bool]


def _only(*values: Any) -> _Accepts:
    """These values, of these types: 1 is not True."""
    return lambda found: any(type(found) is type(value) and found == value for value in values)


def _of(*types: type) -> _Accepts:
    """Any value of these types, or null."""
    return lambda found: found is None or type(found) in types


def _texts(found: Any) -> bool:
    return type(found) is list and all(type(text) is str for text in found)


def _mapping(found: Any) -> bool:
    return type(found) is dict


def _number(found: Any) -> bool:
    return type(found) in (int, float) and abs(found) < 1e30


_OFF = _only(False, None)
_NONE_LISTED = _only([], None)

# By field: the values under which an adapter is plain LoRA, and what to do about another.
_FIELDS: dict[str, tuple[_Accepts, str]] = {
    "peft_type": (_only("LORA"), "only LORA is read"),
    # How much, and where: checked further by `read_settings`, and against the tensors.
    "r": (lambda r: type(r) is int and 0 < r < 2**31, "it must be a positive integer"),
    "lora_alpha": (lambda a: _number(a) and a > 0, "it must be a positive number"),
    "use_rslora": (_only(True, False, None), "it must be true or false"),
    "target_modules": (
        lambda found: type(found) is str or (_texts(found) and found != []),
        "list the adapted modules, as in [q_proj, v_proj]",
    ),
    "exclude_modules": (
        lambda found: found is None or type(found) is str or _texts(found),
        "it must be text or a list of text",
    ),
    "layers_to_transform": (
        lambda found: (
            found is None
            or type(found) is int
            or (type(found) is list and all(type(layer) is int for layer in found))
        ),
        "it must be a list of layers",
    ),
    "layers_pattern": (
        lambda found: found is None or type(found) is str or _texts(found),
        "it must be text or a list of text",
    ),
    # By module, what r and lora_alpha say of the others; `read_settings` checks the values.
    "rank_pattern": (_mapping, "give modules ranks, as in {q_proj: 4}"),
    "alpha_pattern": (_mapping, "give modules alphas, as in {q_proj: 8}"),
    # What the file tells of itself.
    "task_type": (_only("CAUSAL_LM", None), "only adapters of CAUSAL_LM models are read"),
    "auto_mapping": (_of(dict), "it must be a mapping"),
    "base_model_name_or_path": (_of(str), "it must be text"),
    "revision": (_of(str), "it must be text"),
    "peft_version": (_of(str), "it must be text"),
    "inference_mode": (_only(True, False, None), "it must be true or false"),
    # Training and its start, which the tensors have behind them.
    "lora_dropout": (
        lambda found: _number(found) and 0 <= found <= 1,
        "it must be a number from 0 to 1",
    ),
    "init_lora_weights": (
        _only(True, False, None, "gaussian", "eva", "orthogonal", "mica"),
        _CONVERT + _MERGE,
    ),
    "loftq_config": (_of(dict), "it must be a mapping"),
    "eva_config": (_of(dict), "it must be a mapping"),
    "corda_config": (_of(dict), "it must be a mapping"),
    "lora_ga_config": (_of(dict), "it must be a mapping"),
    "megatron_config": (_only(None), _MERGE + " without Megatron"),
    "megatron_core": (_of(str), "it must be text"),
    "qalora_group_size": (_of(int), "it must be an integer"),
    "runtime_config": (_of(dict), "it must be a mapping"),
    "ensure_weight_tying": (_only(True, False, None), "it must be true or false"),
    # More than LoRA.
    "bias": (_only("none"), _MERGE + ' with bias = "none"'),
    "fan_in_fan_out": (_OFF, _MERGE + " with fan_in_fan_out = false"),
    "modules_to_save": (_NONE_LISTED, _MERGE + " without modules_to_save"),
    "trainable_token_indices": (_only(None), _MERGE + " without trainable_token_indices"),
    "target_parameters": (_NONE_LISTED, _MERGE + " with target_modules alone"),
    "layer_replication": (_NONE_LISTED, _MERGE + " without layer_replication"),
    "use_dora": (_OFF, _MERGE + " with use_dora = false"),
    "lora_bias": (_OFF, _MERGE + " with lora_bias = false"),
    "use_qalora": (_OFF, _MERGE + " with use_qalora = false"),
    "use_bdlora": (_only(None), _MERGE + " without use_bdlora"),
    "alora_invocation_tokens": (_only(None), "train it again without alora_invocation_tokens"),
    "velora_config": (_only(None), _MERGE + " without velora_config"),
    "monteclora_config": (_only(None), _MERGE + " without monteclora_config"),
    "arrow_config": (_only(None), "name one of the adapters that it chooses from"),
    "kasa_config": (_only(None), _MERGE + " without kasa_config"),
    # Of peft before 0.3.
    "enable_lora": (_only(None), _MERGE + " without enable_lora"),
    "merge_weights": (_OFF, _MERGE + " with merge_weights = false"),
}
KNOWN_FIELDS = frozenset(_FIELDS)
_REQUIRED = ("peft_type", "r", "lora_alpha", "target_modules")


def read_settings(settings: Mapping[str, Any], source: str) -> LoraSettings:
    """What a parsed `adapter_config.json` says, if it is one of a plain LoRA adapter.

    Args:
      settings: the file's content.
      source: its name, for messages.

    Raises:
      UserError: a field or value that is not known to be plain LoRA, by name; what to do about it.

    >>> found = read_settings(
    ...     {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}, "here"
    ... )
    >>> found.rank, found.alpha, found.selects("model.layers.0.self_attn.q_proj")
    (4, 8.0, True)
    """
    # Of several faults the kind comes first: another one has fields of its own.
    for name in (*_REQUIRED, *settings):
        if name not in _FIELDS:
            raise UserError(
                f"{source}: {_named(name)} is {_shown(settings[name])}, and no known field of "
                f"a plain LoRA adapter; {_MERGE} without {_named(name)}"
            )
        accepts, remedy = _FIELDS[name]
        if not accepts(settings.get(name)) and (name in settings or name in _REQUIRED):
            raise UserError(
                f"{source}: {name} is {_shown(settings.get(name))}, which is not supported; "
                f"{remedy}"
            )
    rank, alpha = settings["r"], float(settings["lora_alpha"])
    ranks = _by_module("rank_pattern", "r", rank, settings, source)
    alphas = _by_module("alpha_pattern", "lora_alpha", alpha, settings, source)
    odd = [own for own in (rank, *settings.get("rank_pattern", {}).values()) if own % 2]
    if settings.get("init_lora_weights") == "orthogonal" and odd:
        raise UserError(
            f"{source}: init_lora_weights is 'orthogonal' and r is {odd[0]}, which is odd: peft "
            "does not load that; set init_lora_weights to true, which changes nothing of trained "
            "weights"
        )

    def of(module: str) -> tuple[int, float]:
        own_rank, own_alpha = int(ranks(module)), float(alphas(module))
        if settings.get("use_rslora"):
            own_alpha *= math.sqrt(own_rank)  # Its scale is lora_alpha / sqrt(R).
        return own_rank, own_alpha

    if settings.get("use_rslora"):
        alpha *= math.sqrt(rank)
    base = settings.get("base_model_name_or_path") or ""
    return LoraSettings(rank, alpha, of, base, _selection(settings, source))


def _by_module(
    field: str, of: str, usual: float, settings: Mapping[str, Any], source: str
) -> Callable[[str], float]:
    """What a pattern gives a module, or else the usual value: `peft`'s `get_pattern_key`."""
    given: Mapping[str, Any] = settings.get(field, {})
    for module, value in given.items():
        # What says the same as `of` is one more way to write it.
        if not _number(value) or (value != usual and not _FIELDS[of][0](value)):
            raise UserError(
                f"{source}: {field} gives {_named(module)} {_shown(value)}; {_FIELDS[of][1]}"
            )
    matchers = [
        (_matcher(field, f"(.*\\.)?({module})", source), own) for module, own in given.items()
    ]
    return lambda module: next((own for matches, own in matchers if matches(module)), usual)


def _selection(settings: Mapping[str, Any], source: str) -> Callable[[str], bool]:
    """Which modules `peft` adapts: its `check_target_module_exists`."""
    targets, excluded = settings["target_modules"], settings.get("exclude_modules")
    layers, at = settings.get("layers_to_transform"), settings.get("layers_pattern")
    if layers is not None and isinstance(targets, str):
        raise UserError(
            f"{source}: layers_to_transform is {_shown(layers)} beside a target_modules that is "
            "one pattern, which peft refuses; list the target_modules"
        )
    if at and layers is None:
        raise UserError(
            f"{source}: layers_pattern is {_shown(at)} without layers_to_transform, which peft "
            "refuses; delete layers_pattern"
        )
    matches = _matcher("target_modules", targets, source)
    leaves_out = _matcher("exclude_modules", excluded or [], source)
    chosen = [layers] if isinstance(layers, int) else layers
    places = [re.escape(place) for place in ([at] if isinstance(at, str) and at else at or [])]
    around = "|".join(places) or r"[^.]*"

    def selects(module: str) -> bool:
        if leaves_out(module) or not matches(module):
            return False
        # A module that is named in full is adapted whatever its layer.
        if not chosen or module in targets:
            return True
        layer = re.match(rf"(?:^|.*?\.)(?:{around})\.(\d+)\.", module)
        return layer is not None and int(layer[1]) in chosen

    return selects


def _matcher(field: str, wanted: str | list[str], source: str) -> Callable[[str], bool]:
    if isinstance(wanted, list):
        names, ends = frozenset(wanted), tuple(f".{name}" for name in wanted)
        return lambda module: module in names or module.endswith(ends)
    if field == "target_modules" and wanted.lower() == "all-linear":
        return lambda module: module.rpartition(".")[2] in TARGETS
    # `regex` can be stopped; what means something else there than in `re` is refused.
    if re.search(r"\[\[|\{[^\d,]", wanted):
        raise UserError(f"{source}: {field} {_shown(wanted)} is not supported; list the modules")
    try:
        re.compile(wanted)
        pattern = regex.compile(wanted)
    except (re.error, regex.error, RecursionError, OverflowError) as error:
        raise UserError(
            f"{source}: {field} {_shown(wanted)} is no regular expression ({error}); list the "
            "modules"
        ) from None

    def matches(module: str) -> bool:
        try:
            return pattern.fullmatch(module, timeout=_PATTERN_SECONDS) is not None
        except TimeoutError:
            raise UserError(
                f"{source}: {field} {_shown(wanted)} takes too long to match; list the modules"
            ) from None

    return matches


def adapted_module(target: str, layer: int, config: ModelConfig) -> str:
    """The module of a map in the model of `transformers`.

    >>> from feddpa_jax.testing import tiny_config
    >>> adapted_module("q_proj", 3, tiny_config())
    'model.layers.3.self_attn.q_proj'
    """
    name, _ = file_name(kernel_path(target, layer), FAMILIES[config.family].names)
    return name.removesuffix(".weight")


def module_names(config: ModelConfig) -> Iterable[str]:
    """Every module of the model of `transformers`, adapted or not."""
    yield from ("model", "model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb")
    yield "lm_head"
    inner = ["self_attn", "mlp", "mlp.act_fn", "input_layernorm", "post_attention_layernorm"]
    if config.qk_norm:
        inner += ["self_attn.q_norm", "self_attn.k_norm"]
    if config.post_norms:
        inner += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    for layer in range(config.layers):
        yield f"model.layers.{layer}"
        yield from (f"model.layers.{layer}.{name}" for name in inner)
        yield from (adapted_module(target, layer, config) for target in TARGETS)


def _shown(value: Any) -> str:
    return short(json.dumps(value))


def _named(name: str) -> str:
    return name if name.isidentifier() and name.isascii() else _shown(name)
