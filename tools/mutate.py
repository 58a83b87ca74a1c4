"""How many small errors in the code do the tests notice? Each is made, one at a time, and the tests are run on it.

    python tests/mutate.py > results/mutation.json        python tests/mutate.py dualmd.py:DualMD

Errors are of the kinds that are made in such code: a sign, an off-by-one, t - 1 for t, a root or a square left out, A
for B, members for non-members, a condition turned round. One that no test notices is named, and either gets a test or
an entry in EQUIVALENT, which says why nobody could notice it.
"""

import ast
import json
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import matplotlib  # noqa: F401  what takes long to import is imported once, and then forked
import numpy  # noqa: F401
import PIL.Image  # noqa: F401
import pytest
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent

# what is mutated (all of a file, or some of what is in it), and the tests that are run on it
TARGETS = {
    "dualmd.py": ["test_grading.py", "test_dualmd.py", "test_attacks.py"],
    "attacks.py": ["test_grading.py", "test_attacks.py"],
    "data.py:Split index_split _read_published_split": ["test_grading.py", "test_data.py"],
    "metrics.py": ["test_grading.py", "test_metrics.py"],
    "unet.py": ["test_unet.py"],
    "train.py:main wanted train": ["test_scripts.py"],
}

ALIKE = "both have the same shape, type and device, and nothing else is asked of it"
COLUMN = "there is one column"
TENSOR = "only asked whether it is a tensor, of how many dimensions"
GPU = "only a GPU goes there"
EQUIVALENT = {
    "dualmd.py:NoiseSchedule.__init__: 0 -> -1": "there is one dimension",
    "dualmd.py:NoiseSchedule.add_noise: x0 -> eps": ALIKE,
    "dualmd.py:NoiseSchedule.predict_x0: x_t -> eps": ALIKE,
    "dualmd.py:NoiseSchedule._signal_and_noise: t -> t - 1": TENSOR,
    "dualmd.py:NoiseSchedule._signal_and_noise: t -> t - 1 (2)": TENSOR,
    "dualmd.py:NoiseSchedule._tables: 1 -> 2": "the last one is the one that is found",
    "dualmd.py:route: 0 -> -1": COLUMN,
    "dualmd.py:route: True -> False": "a GPU waits, and answers the same",
    "dualmd.py:route: x_t -> eps (2)": ALIKE,
    "attacks.py:secmi_nn: x -> others": ALIKE,
    "attacks.py:secmi_nn: x -> others (2)": ALIKE,
    "attacks.py:secmi_nn: x -> others (4)": ALIKE,
    "attacks.py:secmi_nn: x -> others (6)": ALIKE,
    "attacks.py:secmi_nn: 0 -> -1 (3)": COLUMN,
    "attacks.py:secmi_nn: 0 -> -1 (4)": COLUMN,
    "attacks.py:gradient: 16 -> 15": "how many gradients are in memory, not what they are",
    "attacks.py:gradient: 16 -> 17": "how many gradients are in memory, not what they are",
    "attacks.py:calibrated: scores -> reference (2)": ALIKE,
    "data.py:index_split: 0 -> 1": "count is even: above 0 is above 1",
    "metrics.py:: 1000 -> 1001": "one resample more is as good",
    "metrics.py:: 1000 -> 999": "one resample less is as good",
    "unet.py:Attention.forward: q -> k (2)": ALIKE,
    "unet.py:Dropout.forward: round(self.p * 2 ** 16) - 2 ** 15 -> round(self.p * 2 ** 16) + 2 ** 15": "16 bits wrap",
    "unet.py:Dropout.forward: 4 -> 3": "more bits than needed are drawn, and the first are the same",
    "unet.py:Dropout.forward: x.is_cpu -> True": GPU,
    "unet.py:Dropout.forward: torch.rand(shape, device=x.device) >= self.p"
    " -> torch.rand(shape, device=x.device) > self.p": GPU,
}

PAIRS = """model_a model_b, teacher_a teacher_b, members nonmembers, pool nonmembers, where elsewhere, x0 eps, t t_next,
signal noise, signal_next noise_next, model_where model_elsewhere, scores reference, up back, now then, x others,
low high, first second, mine other, x_t eps, model ema, hits false_alarms, tpr fpr, q k"""
SWAPS = {one: other for pair in PAIRS.split(",") for one, other in (pair.split(), pair.split()[::-1])}
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
OPERATORS |= {ast.FloorDiv: ast.Mod, ast.Mod: ast.FloorDiv}
COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
COMPARISONS |= {ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is}
METHODS = {"mean": "sum", "sum": "mean", "amax": "amin", "zeros": "ones", "ones": "zeros", "zeros_like": "ones_like"}
DROPPED = {"sqrt", "square", "abs", "log", "clamp", "round", "flatten", "pow", "cumprod"}


@dataclass(frozen=True)
class Mutant:
    file: str
    function: str
    line: int
    old: str
    new: str
    source: str  # of the whole file
    number: int = 1  # among those that read alike

    def __str__(self) -> str:
        return f"{self.file}:{self.function}: {self.old} -> {self.new}" + f" ({self.number})" * (self.number > 1)


# --- making them --------------------------------------------------------------------------------


def mutants(file: str, names: list[str]) -> list[Mutant]:
    source = (ROOT / file).read_text()
    lines = source.splitlines(keepends=True)
    starts = [sum(map(len, lines[:i])) for i in range(len(lines))]
    found = []

    def place(line: int, column: int) -> int:  # ast counts columns in bytes
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    def visit(node: ast.AST, function: str, known: frozenset[str]) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            function = f"{function}.{node.name}".lstrip(".")
            known |= {child.arg for child in ast.walk(node) if isinstance(child, ast.arg)}
            known |= {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
            for decorator in node.decorator_list:
                if ast.unparse(decorator) in ("torch.no_grad()", "_full_precision"):
                    begin, end = starts[decorator.lineno - 1], starts[decorator.lineno]
                    without = source[:begin] + source[end:]
                    found.append(Mutant(file, function, decorator.lineno, f"@{ast.unparse(decorator)}", "", without))
            for child in [*node.body, *(node.args.defaults + node.args.kw_defaults if hasattr(node, "args") else [])]:
                if child is not None and not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
                    visit(child, function, known)
            return
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Raise | ast.JoinedStr):
            return
        for part, new in changes(node, known):
            old = ast.unparse(part)
            begin, end = place(part.lineno, part.col_offset), place(part.end_lineno, part.end_col_offset)
            text = f"{source[:begin]}({new}){source[end:]}"
            ast.parse(text)  # what isn't Python would be noticed by anybody
            number = 1 + sum((mutant.function, mutant.old, mutant.new) == (function, old, new) for mutant in found)
            found.append(Mutant(file, function, part.lineno, old, new, text, number))
        for child in ast.iter_child_nodes(node):
            annotation = isinstance(node, ast.AnnAssign) and child is node.annotation
            if not annotation and not (isinstance(child, ast.keyword) and child.arg == "strict"):
                visit(child, function, known)

    for node in ast.parse(source).body:
        if not names or getattr(node, "name", None) in names:
            visit(node, "", frozenset())
    return found


def changes(node: ast.AST, known: frozenset[str]) -> list[tuple[ast.AST, str]]:
    """What this could be by mistake, where these names are `known`: (a part of it, what stands there instead)."""
    found = []

    def to(new: str, part: ast.AST = node) -> None:
        found.append((part, new))

    match node:
        case ast.BinOp(left, op, right):
            if type(op) in OPERATORS:
                to(ast.unparse(ast.BinOp(left, OPERATORS[type(op)](), right)))
            if isinstance(op, ast.Pow):
                to(ast.unparse(left))
        case ast.UnaryOp(ast.USub() | ast.Invert() | ast.Not(), operand):
            to(ast.unparse(operand))
        case ast.Compare(left, ops, right):
            for i, op in enumerate(ops):
                to(ast.unparse(ast.Compare(left, [*ops[:i], COMPARISONS[type(op)](), *ops[i + 1 :]], right)))
        case ast.BoolOp(op, values):
            to((" or " if isinstance(op, ast.And) else " and ").join(f"({ast.unparse(value)})" for value in values))
        case ast.Constant(bool() as value):
            to(str(not value))
        case ast.Constant(int() | float() as value):
            to(repr(value + 1) if isinstance(value, int) else repr(2 * value or 1.0))
            if isinstance(value, int):
                to(repr(value - 1))
        case ast.Constant("A" | "B" as value):
            to(repr("AB".replace(value, "")))
        case ast.Name(name, ast.Load()):
            if SWAPS.get(name) in known:
                to(SWAPS[name])
            if name in ("t", "now", "s", "t_next"):
                to(f"{name} - 1")
        case ast.Attribute(value, "model_a" | "model_b" as name):
            to(f"{ast.unparse(value)}.{SWAPS[name]}")
        case ast.Call(ast.Attribute(value, name), arguments, keywords):
            if name in METHODS:
                to(ast.unparse(ast.Call(ast.Attribute(value, METHODS[name]), arguments, keywords)))
            if name in DROPPED:
                to(ast.unparse(arguments[0] if ast.unparse(value) in ("torch", "np") else value))
        case ast.IfExp(test, body, orelse):
            to(f"{ast.unparse(orelse)} if {ast.unparse(test)} else {ast.unparse(body)}")
        case ast.If(test):
            to("True", test)
            to("False", test)
    return found


# --- killing them -------------------------------------------------------------------------------


def survives(mutant: Mutant, tests: list[str], copy: Path, seconds: float) -> bool:
    """Do all the tests pass, and in time? They are run in a fork, on a copy of the project that holds the mutant."""
    path = copy / mutant.file
    original = path.read_text()
    path.write_text(mutant.source)
    try:
        child = os.fork()
        if child == 0:
            os.chdir(copy)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1), os.dup2(null, 2)
            options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
            os._exit(int(pytest.main([*options, *(f"tests/{test}" for test in tests)]) != 0))
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return status == 0
            time.sleep(0.02)
        os.kill(child, 9)
        os.waitpid(child, 0)
        return False
    finally:
        path.write_text(original)


def main() -> None:
    sys.dont_write_bytecode = True
    torch.set_num_threads(1)
    targets = {
        word: next(tests for target, tests in TARGETS.items() if target.split(":")[0] == word.split(":")[0])
        for word in sys.argv[1:] or TARGETS
    }
    todo = []
    for target, tests in targets.items():
        file, _, names = target.partition(":")
        todo += [(mutant, tests) for mutant in mutants(file, names.split())]
    lanes = os.cpu_count()
    with tempfile.TemporaryDirectory() as folder:
        copies = [Path(folder) / f"lane-{i}" for i in range(lanes)]
        for copy in copies:
            (copy / "tests").mkdir(parents=True)
            for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml", *ROOT.glob("tests/*.py")):
                shutil.copy(path, copy / path.relative_to(ROOT))
        if (ROOT.parent / "shared").exists():
            (Path(folder) / "shared").symlink_to(ROOT.parent / "shared")
        seconds = {}  # whoever takes several times as long as the file as it is, has been noticed
        for file, tests in {mutant.file: tests for mutant, tests in todo}.items():
            began = time.monotonic()
            whole = Mutant(file, "", 0, "", "", (ROOT / file).read_text())
            assert survives(whole, tests, copies[0], 600), f"the tests of {file} fail on the file as it is"
            seconds[file] = 10 + 4 * (time.monotonic() - began)
        alive = []
        with tqdm(total=len(todo), unit="mutant", smoothing=0) as bar:

            def lane(i: int) -> None:
                for mutant, tests in todo[i::lanes]:
                    if survives(mutant, tests, copies[i], seconds[mutant.file]):
                        alive.append(mutant)
                        if str(mutant) not in EQUIVALENT:
                            bar.write(f"{mutant.file}:{mutant.line} {mutant}", file=sys.stderr)
                    bar.update()

            with ThreadPoolExecutor(lanes) as pool:
                list(pool.map(lane, range(lanes)))
    equivalent = [mutant for mutant in alive if str(mutant) in EQUIVALENT]
    killed, real = len(todo) - len(alive), len(todo) - len(equivalent)
    report = {"mutants": len(todo), "equivalent": len(equivalent), "killed": killed, "score": round(killed / real, 4)}
    for target in targets:
        file = target.partition(":")[0]
        its = [mutant for mutant, _ in todo if mutant.file == file]
        lived = [mutant for mutant in alive if mutant.file == file]
        same = [mutant for mutant in lived if mutant in equivalent]
        report[target] = {"mutants": len(its), "equivalent": len(same), "killed": len(its) - len(lived)}
    report["survivors"] = sorted(str(mutant) for mutant in alive if mutant not in equivalent)
    report["equivalents"] = {str(mutant): EQUIVALENT[str(mutant)] for mutant in equivalent}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
