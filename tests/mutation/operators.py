"""Mutants made mechanically: every place in a file where an operator of this list applies."""

import ast
import copy
from collections.abc import Iterator

_COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_BINARY: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
# Nothing that is computed hangs on these calls: what they are given are texts for people.
_TEXTS = {"UserError", "ValueError", "TypeError", "RuntimeError", "say", "warn", "add_argument"}


def mutations(source: str) -> Iterator[tuple[str, str]]:
    """What was changed, and the changed source, of every mutant of a file.

    Comparisons and `and`/`or` flipped, arithmetic swapped, numbers off by one, True and False, the
    branches of a conditional, `not` left out, two arguments of a call swapped, a keyword argument
    left out, a statement left out, another value returned.

    >>> [name for name, _ in mutations("x = a < 1")]
    ['1: a < 1 -> a <= 1', '1: 1 -> 2']
    """
    tree = ast.parse(source)
    for node in _nodes(tree):
        for new in _changed(node):
            old_text = ast.get_source_segment(source, node) or ""
            new_text = new if isinstance(new, str) else ast.unparse(new)
            if isinstance(node, ast.expr):
                # A part of a larger expression keeps its place in it.
                new_text = new_text if new_text.isidentifier() else _bracketed(node, new_text)
            mutated = _replaced(source, node, new_text)
            if mutated is None:
                continue
            old, new_ = (" ".join(text.split())[:60] for text in (old_text, new_text))
            yield f"{node.lineno}: {old} -> {new_}", mutated


def _nodes(tree: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """Expressions and statements, without annotations, decorators, messages and docstrings."""
    if isinstance(tree, ast.Raise | ast.Import | ast.ImportFrom | ast.Assert):
        return
    if isinstance(tree, ast.Call) and _called(tree) in _TEXTS:
        return
    if isinstance(tree, ast.JoinedStr):
        return
    if isinstance(tree, ast.expr | ast.stmt) and hasattr(tree, "lineno"):
        yield tree
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "decorator_list", "bases", "ctx"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _nodes(child)


def _changed(node: ast.expr | ast.stmt) -> Iterator[ast.AST | str]:
    """Other forms of a node."""
    match node:
        case ast.Compare():
            for place, operator in enumerate(node.ops):
                new = copy.deepcopy(node)
                new.ops[place] = _COMPARE[type(operator)]()
                yield new
        case ast.BoolOp():
            new = copy.deepcopy(node)
            new.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield new
        case ast.BinOp() if type(node.op) in _BINARY:
            new = copy.deepcopy(node)
            new.op = _BINARY[type(node.op)]()
            yield new
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield node.operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(value * 2 if value else 1.0)
        case ast.IfExp():
            yield ast.IfExp(node.test, node.orelse, node.body)
        case ast.Call():
            yield from _other_calls(node)
        case ast.Return(value=ast.expr()) if not isinstance(node.value, ast.Constant):
            yield "return None"
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Continue() | ast.Break():
            yield "pass"
        case ast.If(orelse=[]):
            new = copy.deepcopy(node)
            new.test = ast.Constant(False)
            yield new
        case _:
            pass


def _other_calls(node: ast.Call) -> Iterator[ast.AST]:
    if len(node.args) == 2 and not any(isinstance(arg, ast.Starred) for arg in node.args):
        new = copy.deepcopy(node)
        new.args.reverse()
        yield new
    for place in range(len(node.keywords)):
        new = copy.deepcopy(node)
        del new.keywords[place]
        yield new


def _called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _bracketed(node: ast.expr, text: str) -> str:
    return f"({text})" if isinstance(node, ast.BinOp | ast.BoolOp | ast.IfExp) else text


def _replaced(source: str, node: ast.expr | ast.stmt, text: str) -> str | None:
    """The source with a node's text replaced; None where that is no Python any more."""
    lines = source.encode().splitlines(keepends=True)
    assert node.end_lineno is not None and node.end_col_offset is not None
    start = sum(map(len, lines[: node.lineno - 1])) + node.col_offset
    end = sum(map(len, lines[: node.end_lineno - 1])) + node.end_col_offset
    if isinstance(node, ast.stmt):
        text = text.replace("\n", "\n" + " " * node.col_offset)
    mutated = (source.encode()[:start] + text.encode() + source.encode()[end:]).decode()
    try:
        ast.parse(mutated)
    except SyntaxError:
        return None
    return mutated
