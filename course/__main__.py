"""Assignments on this project: functions cut out of it for a student to write, and a grade for what comes back.

    python exercises.py start 5 --out my-solution/        python exercises.py grade 5 --in my-solution/

EXERCISES.md says what each is about. `start` copies the project, with the body of the exercise's functions replaced
by a hint; `grade` runs its tests (tests/test_grading.py) on such a copy, and says what each point was for. It runs
what the student wrote: grade strangers where a program may do no harm.
"""

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import xml.etree.ElementTree
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lab import cli
from lab.files import BadInput

ROOT = Path(__file__).resolve().parent
GRADING = Path("tests") / "test_grading.py"
COPIED = ("*.py", "*.md", "requirements.txt", "LICENSE", str(GRADING))
SECONDS = 120  # for one exercise's tests, which take two


@dataclass(frozen=True)
class Exercise:
    title: str
    functions: tuple[str, ...]  # that are cut out: FILE.py:NAME
    hint: str


EXERCISES = {
    1: Exercise(
        "the noise schedule",
        ("dualmd.py:NoiseSchedule.__init__",),
        "Set self.T, self.beta and self.alpha_bar, the latter two float64 tensors (T,). beta rises linearly from "
        "beta_1 to beta_T; alpha_bar_t = (1 - beta_0) ... (1 - beta_t). torch.linspace and torch.cumprod.",
    ),
    2: Exercise(
        "noising an image, and back",
        ("dualmd.py:NoiseSchedule.add_noise", "dualmd.py:NoiseSchedule.predict_x0"),
        "self._signal_and_noise(t, x) gives sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), shaped to multiply images.",
    ),
    3: Exercise(
        "the training loss",
        ("dualmd.py:training_loss",),
        "Ask the model once; one number comes out, the mean over all pixels of all images.",
    ),
    4: Exercise(
        "a DDIM step",
        ("dualmd.py:NoiseSchedule.ddim_step",),
        "First the image that eps amounts to (clipped, if so wanted), then that image noised to t_next by the same "
        "eps. With eta > 0, sigma z comes in (DDIM eq. 16), and eps keeps sqrt(1 - alpha_bar_next - sigma^2).",
    ),
    5: Exercise(
        "an ancestral step",
        ("dualmd.py:NoiseSchedule.ddpm_step",),
        "mean = (x - beta_t / sqrt(1 - alpha_bar_t) eps) / sqrt(1 - beta_t), and sqrt(beta_t) z comes on top of it,"
        " but not at t = 0. For clip: predict_x0, clamp, predict_eps.",
    ),
    6: Exercise(
        "the index split",
        ("data.py:index_split",),
        "np.random.RandomState(seed).permutation, its first half for the members' pool; with `published`, each of "
        "the two pools of _read_published_split(published, n) permuted, members' first. A Split takes int64 "
        "tensors. BadInput for a number of members that is odd, not positive, or more than a pool has.",
    ),
    7: Exercise(
        "taking turns",
        ("dualmd.py:DualMD.__call__",),
        "Each image has a timestep of its own. route puts each row to one of two models.",
    ),
    8: Exercise(
        "soft targets",
        ("dualmd.py:distill_targets",),
        "in_a says which images teacher A was trained on. route puts each row to one of two models.",
    ),
    9: Exercise(
        "three membership scores",
        ("attacks.py:loss", "attacks.py:_pia", "attacks.py:round_trip"),
        "Higher means member, so errors get a minus. _eps(eps_model, x, t) asks the model at one t for all images; "
        "_noise(x0, generator) draws the noise; schedule.add_noise and schedule.ddim_step do the rest.",
    ),
    10: Exercise(
        "the AUC, with ties",
        ("metrics.py:auc",),
        "P(member's score > non-member's) + P(equal) / 2, over all pairs. np.searchsorted on the sorted scores, on "
        "the left and on the right, counts without making all pairs.",
    ),
    11: Exercise(
        "an attacker who adapts",
        ("metrics.py:adaptive",),
        "halves() cuts; _attacker learns on one half, and scores others; _judge_each_other pools both; _redraw and "
        "_interval are for the bootstrap. choices[0] is what the first half picked.",
    ),
    12: Exercise(
        "the Fréchet distance",
        ("fid.py:symmetric_root", "fid.py:distance"),
        "torch.linalg.eigh for the root; drop eigenvalues that are zero but for rounding. The trace of the "
        "product's root is the sum of the singular values of R1^T R2.",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: cli.fail(f"{message} (--help lists all flags)")
    what = parser.add_subparsers(dest="what", required=True)
    start_it = what.add_parser("start", help="copy the project, with the functions of these exercises left to write")
    start_it.add_argument("number", type=exercise, nargs="+", help="1 to 12")
    start_it.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to; not there yet, or empty")
    grade_it = what.add_parser("grade", help="say how many points a solution has")
    grade_it.add_argument("number", type=exercise, nargs="*", help="1 to 12 (default: all of them)")
    grade_it.add_argument(
        "--in", dest="folder", type=Path, default=Path(), metavar="DIR", help="the solution (default: this directory)"
    )
    grade_it.add_argument("--json", action="store_true", help="print JSON, for a teacher's script")
    for its in (start_it, grade_it):
        its.error = parser.error
    args = parser.parse_args()
    if args.what == "start":
        start(args.number, args.out)
        return
    numbers = args.number or list(EXERCISES)
    require_solution(args.folder)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        grades = list(pool.map(lambda number: grade(number, args.folder), numbers))
    if args.json:
        print(json.dumps(grades, indent=1))
    else:
        print(*map(in_words, grades), sep="\n\n")
        if len(grades) > 1:
            print(f"\nin all: {sum(one['points'] for one in grades)} of {sum(one['of'] for one in grades)} points")
    sys.exit(any(one["points"] < one["of"] for one in grades))


def exercise(text: str) -> int:
    """Type of an exercise's number."""
    if not text.isdecimal() or int(text) not in EXERCISES:
        raise argparse.ArgumentTypeError(f"there is no exercise {text}; they are numbered 1 to {len(EXERCISES)}")
    return int(text)


# --- a hole where a function was ----------------------------------------------------------------


def start(numbers: list[int], out: Path) -> None:
    """Copy the project to `out`, with the functions of these exercises cut out, and say where they are."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"--out {out}: is there already, and not empty")
    sources = {path.relative_to(ROOT): path.read_bytes() for pattern in COPIED for path in sorted(ROOT.glob(pattern))}
    holes = []
    for number in numbers:
        for function in EXERCISES[number].functions:
            file, name = function.split(":")
            text, line = cut(sources[Path(file)].decode(), name, number)
            sources[Path(file)] = text.encode()
            holes.append(f"  {out / file}, line {line}: {name}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
            copy = Path(temporary) / out.name
            for path, content in sources.items():
                (copy / path).parent.mkdir(parents=True, exist_ok=True)
                (copy / path).write_bytes(content)
            if out.exists():
                out.rmdir()
            copy.rename(out)
    except OSError as error:
        raise BadInput(f"--out {out}: cannot be written ({error.strerror})") from error
    print(
        "Yours to write:", *holes, "", f"And then:\n  python exercises.py grade {words(numbers)} --in {out}", sep="\n"
    )


def cut(source: str, name: str, number: int) -> tuple[str, int]:
    """The source without the body of the function `name`, all but its docstring; and the line of the hole."""
    nodes = ast.parse(source).body
    *classes, function = name.split(".")
    for wanted in classes:
        nodes = next(node for node in nodes if isinstance(node, ast.ClassDef) and node.name == wanted).body
    node = next(node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == function)
    first = node.body[0]
    lines, indent = source.splitlines(), " " * first.col_offset
    begin = first.end_lineno if ast.get_docstring(node) else first.lineno - 1  # lines before the hole
    hint = textwrap.wrap(f"Exercise {number}. {EXERCISES[number].hint}", 118 - len(indent))
    hole = [f"{indent}# {line}" for line in hint]
    hole.append(f'{indent}raise NotImplementedError("exercise {number}: {function} is yours to write")')
    return "\n".join([*lines[:begin], *hole, *lines[node.end_lineno :], ""]), begin + len(hole)


def words(numbers: list[int]) -> str:
    return " ".join(map(str, numbers))


# --- grading ------------------------------------------------------------------------------------


def require_solution(folder: Path) -> None:
    needed = sorted({function.split(":")[0] for its in EXERCISES.values() for function in its.functions})
    missing = [file for file in needed if not (folder / file).is_file()]
    if missing:
        raise BadInput(f"--in {folder}: no {', '.join(missing)} in it; name a directory that `start` made")


def grade(number: int, folder: Path) -> dict:
    """Points for one exercise of the solution in `folder`, as --json prints them.

    The tests are the ones beside this file, whatever the solution has in its own tests/.
    """
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "report.xml"
        options = ["--noconftest", "--import-mode=importlib", "-p", "no:cacheprovider", f"--rootdir={temporary}"]
        tests = f"{ROOT / GRADING}::TestExercise{number}"
        command = [sys.executable, "-m", "pytest", *options, "-c", os.devnull, f"--junitxml={report}", tests]
        environment = os.environ | {"PYTHONPATH": str(folder.resolve()), "OMP_NUM_THREADS": "1"}
        found = {}
        try:
            subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, timeout=SECONDS)
            found = outcomes(report)
        except subprocess.TimeoutExpired:
            found = {None: f"not finished after {SECONDS} seconds"}
        except (OSError, xml.etree.ElementTree.ParseError):
            found = {None: "the solution ended Python itself"}
    everything = found.get(None)  # why no test could be run at all
    tests = [
        {"what": what, "passed": message == "", "message": message}
        for what in points(number)
        for message in [everything if everything else found.get(what, "was not run")]
    ]
    passed = sum(test["passed"] for test in tests)
    title, functions = EXERCISES[number].title, EXERCISES[number].functions
    result = {"exercise": number, "title": title, "functions": list(functions), "points": passed, "of": len(tests)}
    return result | {"tests": tests}


def points(number: int) -> list[str]:
    """What there are points for, in words: the names of the tests in this exercise's class."""
    for node in ast.parse((ROOT / GRADING).read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name == f"TestExercise{number}":
            return [in_plain(test.name) for test in node.body if getattr(test, "name", "").startswith("test_")]
    raise AssertionError(f"no tests for exercise {number}")


def outcomes(report: Path) -> dict[str | None, str]:
    """By test, what pytest's report says is wrong, "" where nothing is; under None, why it could run none."""
    found = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        wrong = case.find("failure") if case.find("failure") is not None else case.find("error")
        message = "" if wrong is None else wrong.get("message").removeprefix("Failed: ")
        if message == "collection failure":
            lines = [line.removeprefix("E").strip() for line in wrong.text.splitlines() if line.startswith("E ")]
            return {None: f"the solution cannot be imported: {' '.join(lines)}"}
        found[in_plain(case.get("name"))] = message
    return found


def in_plain(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")


def in_words(graded: dict) -> str:
    files = dict.fromkeys(function.split(":")[0] for function in graded["functions"])
    names = ", ".join(function.split(":")[1] for function in graded["functions"])
    lines = [f"exercise {graded['exercise']}, {graded['title']} ({names} in {', '.join(files)})"]
    for test in graded["tests"]:
        lines.append(f"  {'+1' if test['passed'] else ' 0'}  {test['what']}")
        if not test["passed"]:
            lines.append(textwrap.fill(test["message"], 110, initial_indent=7 * " ", subsequent_indent=7 * " "))
    lines.append(f"  {graded['points']} of {graded['of']} points")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
