"""Exercises on this project: start one with a copy in which functions are missing, then grade what was written.

    python -m course start 5 --out my-solution/        python -m course grade 5 --in my-solution/

Run both from the project's root. course/EXERCISES.md describes the exercises. `start` copies the project and replaces
the body of the exercise's functions by a hint. `grade` runs the tests of the exercise (course/test_grading.py) on such
a copy. It prints the points, and for each missing point what was expected. It runs the code of the solution without a
sandbox: grade code of people whom you do not know on a machine where a program can do no harm.
"""

import argparse
import ast
import json
import os
import shlex
import shutil
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

ROOT = Path(__file__).resolve().parent.parent
GRADING = ROOT / "course" / "test_grading.py"
COPIED = "*.py *.md lab/* course/* docs/* requirements.txt LICENSE pyproject.toml CITATION.cff".split()
SECONDS = 120  # for the tests of one exercise, which need about two


@dataclass(frozen=True)
class Exercise:
    title: str
    functions: tuple[str, ...]  # the functions to write, each as FILE.py:NAME
    hint: str


EXERCISES = {
    1: Exercise(
        "the noise schedule",
        ("dualmd.py:NoiseSchedule.__init__",),
        "Set self.T, self.beta and self.alpha_bar. The latter two are float64 tensors (T,). beta rises linearly from "
        "beta_1 to beta_T; alpha_bar_t = (1 - beta_0) ... (1 - beta_t). Use torch.linspace and torch.cumprod.",
    ),
    2: Exercise(
        "noising an image, and back",
        ("dualmd.py:NoiseSchedule.add_noise", "dualmd.py:NoiseSchedule.predict_x0"),
        "self._signal_and_noise(t, x) returns sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), in a shape that can be "
        "multiplied with images.",
    ),
    3: Exercise(
        "the training loss",
        ("dualmd.py:training_loss",),
        "Call the model once. Return one number, the mean over all pixels of all images.",
    ),
    4: Exercise(
        "a DDIM step",
        ("dualmd.py:NoiseSchedule.ddim_step",),
        "First calculate the clean image from x and eps, and clip it if `clip` is set. Then noise that image to t_next "
        "with the same eps. If eta > 0, add sigma z (DDIM eq. 16); eps then keeps the weight "
        "sqrt(1 - alpha_bar_next - sigma^2).",
    ),
    5: Exercise(
        "an ancestral step",
        ("dualmd.py:NoiseSchedule.ddpm_step",),
        "mean = (x - beta_t / sqrt(1 - alpha_bar_t) eps) / sqrt(1 - beta_t). Add sqrt(beta_t) z to it, except at t = 0."
        " With `clip`: predict_x0, clamp, predict_eps.",
    ),
    6: Exercise(
        "the index split",
        ("data.py:index_split",),
        "np.random.RandomState(seed).permutation(n): its first half is the members' pool, its second half the "
        "non-members' pool. If `pools` is given, permute each of the two instead, the members' pool first. A Split "
        "takes int64 tensors. Raise BadInput if the number of members is odd, not positive, or more than a pool has.",
    ),
    7: Exercise(
        "taking turns",
        ("dualmd.py:DualMD.__call__",),
        "Each image has its own timestep. route sends each image to one of two models.",
    ),
    8: Exercise(
        "soft targets",
        ("dualmd.py:distill_targets",),
        "in_a says which images teacher A was trained on. route sends each image to one of two models.",
    ),
    9: Exercise(
        "three membership scores",
        ("attacks.py:loss", "attacks.py:_pia", "attacks.py:round_trip"),
        "Higher means member, so errors get a minus. _eps(eps_model, x, t) calls the model with one t for all images; "
        "_noise(x0, generator) draws the noise. schedule.add_noise and schedule.ddim_step do the rest.",
    ),
    10: Exercise(
        "the AUC, with ties",
        ("metrics.py:auc",),
        "P(member's score > non-member's) + P(equal) / 2, over all pairs. You need not form the pairs: "
        "np.searchsorted on the sorted scores, with side left and side right, counts them.",
    ),
    11: Exercise(
        "an attacker who adapts",
        ("metrics.py:adaptive",),
        "halves() cuts the images in two. _attacker learns on one half and scores other images. _judge_each_other "
        "returns the scores of both halves together. _redraw and _interval are for the bootstrap. choices[0] is the "
        "choice of the first half.",
    ),
    12: Exercise(
        "the Fréchet distance",
        ("fid.py:symmetric_root", "fid.py:distance"),
        "Use torch.linalg.eigh for the root, and drop eigenvalues that are zero up to rounding. The trace of the root "
        "of the product is the sum of the singular values of R1^T R2.",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m course", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = lambda message: cli.fail(f"{message} (--help lists all flags)")
    what = parser.add_subparsers(dest="what", required=True)
    start_it = what.add_parser("start", help="copy the project without the functions of these exercises")
    start_it.add_argument("number", type=exercise, nargs="+", help="exercises, from 1 to 12")
    start_it.add_argument("--out", type=Path, required=True, metavar="DIR", help="new or empty directory for the copy")
    grade_it = what.add_parser("grade", help="print the points of a solution")
    grade_it.add_argument("number", type=exercise, nargs="*", help="exercises, from 1 to 12 (default: all)")
    grade_it.add_argument(
        "--in", dest="folder", type=Path, default=Path(), metavar="DIR", help="the solution (default: this directory)"
    )
    grade_it.add_argument("--json", action="store_true", help="print JSON, for a teacher's script")
    start_it.error = grade_it.error = parser.error
    args = parser.parse_args()
    if args.what == "start":
        start(args.number, args.out)
        return
    needed = {function.split(":")[0] for its in EXERCISES.values() for function in its.functions}
    missing = sorted(file for file in needed if not (args.folder / file).is_file())
    if missing:
        raise BadInput(f"--in {args.folder}: {', '.join(missing)} not found; name a directory that `start` made")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        grades = list(pool.map(lambda number: grade(number, args.folder), args.number or EXERCISES))
    if args.json:
        print(json.dumps(grades, indent=1))
    else:
        print(*map(in_words, grades), sep="\n\n")
        if len(grades) > 1:
            print(f"\nin all: {sum(one['points'] for one in grades)} of {sum(one['of'] for one in grades)} points")
    sys.exit(any(one["points"] < one["of"] for one in grades))


def exercise(text: str) -> int:
    """argparse type: the number of an exercise."""
    if not text.isdecimal() or int(text) not in EXERCISES:
        raise argparse.ArgumentTypeError(f"there is no exercise {text}; they are numbered 1 to {len(EXERCISES)}")
    return int(text)


# --- start: a copy in which functions are missing ------------------------------------------------


def start(numbers: list[int], out: Path) -> None:
    """Copy the project to `out` without the functions of these exercises, and print where they are missing.

    Raises BadInput if `out` is there and not an empty directory, or if it cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"--out {out}: exists and is not an empty directory; name another one")
    paths = [path for pattern in COPIED for path in ROOT.glob(pattern) if path.is_file()]
    sources = {path.relative_to(ROOT): path.read_bytes() for path in paths}
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
    print("Write these functions:", *holes, "", "Then run:", sep="\n")
    print("  " + shlex.join(["python", "-m", "course", "grade", *map(str, numbers), "--in", str(out)]))


def cut(source: str, name: str, number: int) -> tuple[str, int]:
    """`source` without the body of the function `name`, except its docstring; and the line number of the gap."""
    node = ast.parse(source)
    for part in name.split("."):
        node = next(child for child in node.body if getattr(child, "name", "") == part)
    first = node.body[0]
    lines, indent = source.splitlines(), " " * first.col_offset
    begin = first.end_lineno if ast.get_docstring(node) else first.lineno - 1  # number of lines before the gap
    hint = textwrap.wrap(f"Exercise {number}. {EXERCISES[number].hint}", 118 - len(indent))
    hole = [f"{indent}# {line}" for line in hint]
    hole.append(f'{indent}raise NotImplementedError("exercise {number}: {node.name} is not written yet")')
    return "\n".join([*lines[:begin], *hole, *lines[node.end_lineno :], ""]), begin + len(hole)


# --- grade ---------------------------------------------------------------------------------------


def grade(number: int, folder: Path) -> dict:
    """The points for one exercise of the solution in `folder`, in the form that --json prints.

    The tests are the ones beside this file, even if the solution has its own. They import the solution's modules.
    """
    with tempfile.TemporaryDirectory() as temporary:
        # a copy, because beside course/ the tests would import the modules of this project
        tests, report = shutil.copy(GRADING, temporary), Path(temporary) / "report.xml"
        options = ["--noconftest", "-p", "no:cacheprovider", "-c", os.devnull, f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", *options, f"{tests}::TestExercise{number}"]
        environment = os.environ | {"PYTHONPATH": str(folder.resolve()), "OMP_NUM_THREADS": "1"}
        try:
            subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, timeout=SECONDS)
            found, otherwise = outcomes(report)
        except subprocess.TimeoutExpired:
            found, otherwise = {}, f"not finished after {SECONDS} seconds"
        except (OSError, xml.etree.ElementTree.ParseError):
            found, otherwise = {}, "the solution ended the Python process"
    messages = {test.removeprefix("test_").replace("_", " "): found.get(test, otherwise) for test in points(number)}
    return {
        "exercise": number,
        "title": EXERCISES[number].title,
        "functions": list(EXERCISES[number].functions),
        "points": list(messages.values()).count(""),
        "of": len(messages),
        "tests": [{"what": what, "passed": not message, "message": message} for what, message in messages.items()],
    }


def points(number: int) -> list[str]:
    """What an exercise has points for: the names of the tests in its class."""
    classes = {node.name: node.body for node in ast.parse(GRADING.read_text()).body if isinstance(node, ast.ClassDef)}
    names = (getattr(node, "name", "") for node in classes[f"TestExercise{number}"])
    return [name for name in names if name.startswith("test_")]


def outcomes(report: Path) -> tuple[dict[str, str], str]:
    """From pytest's report, the message of each test, "" if it passed; and the message of tests that did not run."""
    found, otherwise = {}, "was not run"
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        wrong = next(iter(case), None)  # a failure, an error or a skip
        message = "" if wrong is None else wrong.get("message").removeprefix("Failed: ")
        if message == "collection failure":
            lines = [line.removeprefix("E").strip() for line in wrong.text.splitlines() if line.startswith("E ")]
            otherwise = f"the solution cannot be imported: {' '.join(lines)}"
        found[case.get("name")] = message
    return found, otherwise


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
    sys.argv[0] = "course"  # the name in error messages, instead of __main__.py
    cli.run(main)
