"""Make small errors in the code, one at a time, and run the tests on each: which errors does no test notice?

    python -m tools.mutate > results/mutation.json        python -m tools.mutate dualmd.py:DualMD

The errors are common ones: a wrong sign, an off-by-one, t - 1 for t, a missing root or square, A for B, members for
non-members, a negated condition. For an error that no test notices, write a test, or a reason into
tools/mutants.json: why nobody could notice it ("equivalent"), or why no test has to ("accepted").
"""

import argparse
import ast
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import matplotlib  # noqa: F401  these take long to import, so they are imported once, before the forks
import numpy  # noqa: F401
import PIL.Image  # noqa: F401
import pytest
import torch._dynamo  # noqa: F401
from tqdm import tqdm

from tools import forked

ROOT = Path(__file__).resolve().parent.parent
REASONS = json.loads((ROOT / "tools" / "mutants.json").read_text())
COURSE = "tests/test_course.py::test_the_stored_outcomes_are_right"
TARGETS = {  # what is mutated (a whole file, or these functions and classes in it), and the tests to run
    "dualmd.py": f"{COURSE} tests/test_dualmd.py tests/test_attacks.py",
    "attacks.py": f"{COURSE} tests/test_attacks.py",
    "data.py:Split index_split": f"{COURSE} tests/test_data.py",
    "lab/datasets.py:published_split": "tests/test_data.py",
    "metrics.py": f"{COURSE} tests/test_metrics.py tests/test_memorization.py",
    "unet.py": "tests/test_unet.py",
    "train.py:main new_model train learning_rate update_average": "tests/test_scripts.py",
}
TESTS = {target.partition(":")[0]: tests.split() for target, tests in TARGETS.items()}

PAIRS = """model_a model_b, teacher_a teacher_b, members nonmembers, pool nonmembers, where elsewhere, x0 eps, t t_next,
signal noise, signal_next noise_next, model_where model_elsewhere, scores reference, up back, now then, x others,
low high, first second, mine other, x_t eps, model ema, hits false_alarms, tpr fpr, q k"""
SWAPS = {one: other for pair in PAIRS.split(",") for one, other in (pair.split(), pair.split()[::-1])}
OTHERS = [(ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.FloorDiv, ast.Mod), (ast.Lt, ast.LtE), (ast.Gt, ast.GtE)]
OTHERS += [(ast.Eq, ast.NotEq), (ast.In, ast.NotIn), (ast.Is, ast.IsNot)]
OPERATORS = {one: other for pair in OTHERS for one, other in (pair, pair[::-1])} | {ast.Pow: ast.Mult}
METHODS = {"mean": "sum", "sum": "mean", "amax": "amin", "zeros": "ones", "ones": "zeros", "zeros_like": "ones_like"}
DROPPED = {"sqrt", "square", "abs", "log", "clamp", "round", "flatten", "pow", "cumprod"}


class Mutant(NamedTuple):
    file: str
    name: str  # unique
    source: str  # of the whole file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=list(TARGETS), help="FILE or FILE:NAME (default: all files)")
    targets = parser.parse_args().targets
    sys.dont_write_bytecode = True
    if unknown := [target for target in targets if target.partition(":")[0] not in TESTS]:
        parser.error(f"{unknown[0]}: FILE must be one of {' '.join(TESTS)}")
    todo = [mutant for target in targets for mutant in mutants(target)]
    if not todo:
        parser.error(f"nothing to change in {' '.join(targets)}")
    seconds = {}
    for file in {mutant.file for mutant in todo}:
        began = time.monotonic()
        if not survives(Mutant(file, "", (ROOT / file).read_text()), 600):
            parser.error(f"the tests of {file} fail on the file as it is: {' '.join(TESTS[file])}")
        seconds[file] = 10 + round(4 * (time.monotonic() - began))  # a mutant that takes longer is noticed
    # processes, not threads: a test that starts a process fails in a fork of a thread
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork")) as pool:
        survived = pool.map(survives, todo, [seconds[mutant.file] for mutant in todo])
        survived = list(tqdm(survived, total=len(todo), unit="mutant", smoothing=0))
    alive = {mutant.name for mutant, it_survived in zip(todo, survived, strict=True) if it_survived}
    equivalent = alive & REASONS["equivalent"].keys()

    def count(names: set[str]) -> dict[str, int]:
        return {"mutants": len(names), "equivalent": len(names & equivalent), "killed": len(names - alive)}

    report = count({mutant.name for mutant in todo})
    report["score"] = round(report["killed"] / max(report["mutants"] - report["equivalent"], 1), 4)
    for target in targets:
        report[target] = count({mutant.name for mutant in todo if mutant.file == target.partition(":")[0]})
    report["survivors"] = {name: REASONS["accepted"].get(name) for name in sorted(alive - equivalent)}
    report["equivalents"] = {name: REASONS["equivalent"][name] for name in sorted(equivalent)}
    print(json.dumps(report, indent=1))


def survives(mutant: Mutant, seconds: int) -> bool:
    """Do all tests of its file pass, and in time, on a copy of the project with this mutant?"""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        for path in (ROOT / "pyproject.toml", *ROOT.glob("*.py"), *ROOT.glob("*/*.py"), *ROOT.glob("*/*.json")):
            (copy / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy / path.relative_to(ROOT))
        (copy.parent / "shared").symlink_to(ROOT.parent / "shared")
        (copy / mutant.file).write_text(mutant.source)

        def run_tests() -> int:
            sys.path[0] = str(copy)
            return pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *TESTS[mutant.file]])

        return forked(run_tests, copy, seconds)[0] == 0


def mutants(target: str) -> list[Mutant]:
    """All mutants of a file, or of some functions and classes in it, as TARGETS names them."""
    file, _, names = target.partition(":")
    source = (ROOT / file).read_bytes()  # ast counts columns in bytes
    starts = [0, *accumulate(map(len, source.splitlines(keepends=True)))]
    found, alike = [], Counter()

    def add(function: str, old: str, new: str, begin: int, end: int) -> None:
        text = (source[:begin] + (f"({new})" if new else "").encode() + source[end:]).decode()
        ast.parse(text)  # anybody would notice what is not Python
        name = f"{file}:{function}: {old} -> {new}"
        alike[name] += 1
        found.append(Mutant(file, name + (f" ({alike[name]})" if alike[name] > 1 else ""), text))

    def visit(node: ast.AST, function: str, known: frozenset[str]) -> None:
        children = ast.iter_child_nodes(node)
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Raise | ast.JoinedStr):
            return
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            function = f"{function}.{node.name}".lstrip(".")
            known |= {child.arg for child in ast.walk(node) if isinstance(child, ast.arg)}
            known |= {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
            for decorator in node.decorator_list:
                if (what := ast.unparse(decorator)) in ("torch.no_grad()", "_full_precision"):
                    add(function, f"@{what}", "", *starts[decorator.lineno - 1 : decorator.lineno + 1])
            defaults = node.args.defaults + node.args.kw_defaults if isinstance(node, ast.FunctionDef) else []
            children = [*node.body, *filter(None, defaults)]
        for part, new in changes(node, known):
            begin = starts[part.lineno - 1] + part.col_offset
            add(function, ast.unparse(part), new, begin, starts[part.end_lineno - 1] + part.end_col_offset)
        for child in children:
            docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            annotation = isinstance(node, ast.AnnAssign) and child is node.annotation
            if not (docstring or annotation or (isinstance(child, ast.keyword) and child.arg == "strict")):
                visit(child, function, known)

    for node in ast.parse(source).body:
        if not names or getattr(node, "name", None) in names.split():
            visit(node, "", frozenset())
    return found


def changes(node: ast.AST, known: frozenset[str]) -> Iterator[tuple[ast.AST, str]]:
    """Possible mistakes in this node, where these names are `known`: (a part of it, the wrong code in its place)."""
    match node:
        case ast.BinOp(left, op, right):
            if type(op) in OPERATORS:
                yield node, ast.unparse(ast.BinOp(left, OPERATORS[type(op)](), right))
            if isinstance(op, ast.Pow):
                yield node, ast.unparse(left)
        case ast.UnaryOp(ast.USub() | ast.Invert() | ast.Not(), operand):
            yield node, ast.unparse(operand)
        case ast.Compare(left, ops, right):
            for i, op in enumerate(ops):
                yield node, ast.unparse(ast.Compare(left, [*ops[:i], OPERATORS[type(op)](), *ops[i + 1 :]], right))
        case ast.BoolOp(op, values):
            other = " or " if isinstance(op, ast.And) else " and "
            yield node, other.join(f"({ast.unparse(value)})" for value in values)
        case ast.Constant(bool() as value):
            yield node, str(not value)
        case ast.Constant(int() as value):
            yield node, repr(value + 1)
            yield node, repr(value - 1)
        case ast.Constant(float() as value):
            yield node, repr(2 * value or 1.0)
        case ast.Constant("A" | "B" as value):
            yield node, repr("AB".replace(value, ""))
        case ast.Name(name, ast.Load()):
            if SWAPS.get(name) in known:
                yield node, SWAPS[name]
            if name in ("t", "now", "s", "t_next"):
                yield node, f"{name} - 1"
        case ast.Attribute(value, "model_a" | "model_b" as name):
            yield node, f"{ast.unparse(value)}.{SWAPS[name]}"
        case ast.Call(ast.Attribute(value, name), arguments, keywords):
            if name in METHODS:
                yield node, ast.unparse(ast.Call(ast.Attribute(value, METHODS[name]), arguments, keywords))
            if name in DROPPED:
                yield node, ast.unparse(arguments[0] if ast.unparse(value) in ("torch", "np") else value)
        case ast.IfExp(test, body, orelse):
            yield node, f"{ast.unparse(orelse)} if {ast.unparse(test)} else {ast.unparse(body)}"
        case ast.If(test):
            yield test, "True"
            yield test, "False"


if __name__ == "__main__":
    main()
