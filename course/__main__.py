"""Exercises on this project: start one with a copy in which functions are missing, then grade what was written.

    python -m course start 5 --out my-solution/        python -m course grade 5 --in my-solution/

Run both from the project's root, or `grade` inside the copy, which has only this command. EXERCISES.md describes the
exercises, and TEACHING.md what a teacher does with them. `grade` runs the code of the solution without a sandbox: grade
code of people whom you do not know in a container.
"""

import argparse
import csv
import functools
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from course import grading
from course.exercises import EXERCISES
from lab import cli
from lab.files import BadInput, atomic_write, require_writable


def parse_args(words: list[str] | None = None) -> argparse.Namespace:
    """The flags in `words`; by default those of the command line. A hand-out has only `grade`."""
    parser = argparse.ArgumentParser(
        "python -m course", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_subparsers(dest="what", required=True)

    def command(name: str, summary: str, numbers: str | None = "*", out: str | None = None) -> argparse.ArgumentParser:
        it = what.add_parser(name, help=summary, description=summary)
        it.error = parser.error
        if numbers:
            default = "" if numbers == "+" else " (default: all)"
            it.add_argument("number", type=exercise, nargs=numbers, help=f"exercises, from 1 to 12{default}")
        if out:
            it.add_argument("--out", type=Path, default=Path(out), help="what is written (default: %(default)s)")
        return it

    parser.error = lambda message: cli.fail(f"{message} (--help lists all flags)")
    grade = command("grade", "points of a solution")
    which = grade.add_mutually_exclusive_group()
    path = "solution: a folder, a zip or a file (default: this directory)"
    which.add_argument("--in", dest="path", type=Path, default=Path(), metavar="SUBMISSION", help=path)
    which.add_argument("--batch", type=Path, metavar="FOLDER", help="folder with a submission of each student")
    grade.add_argument("--csv", type=Path, metavar="FILE", help="table of a batch's points (with --batch)")
    formats = {"words": words_of, "json": json_of, "gradescope": gradescope_of, "github": github_of}
    grade.add_argument(
        "--as", dest="form", choices=formats, default="words", help="form of the output (default: words)"
    )
    grade.add_argument("--user", help="user who runs the solution, for root (default: the same user)")
    if grading.TEACHERS:
        start = command("start", "copy of the project without the functions of these exercises", "+")
        start.add_argument("--out", type=Path, required=True, metavar="DIR", help="new or empty directory for the copy")
        start.add_argument("--classroom", action="store_true", help="also a workflow that grades each push to GitHub")
        command("key", "reference solutions, points, and answers to the questions")
        command("gradescope", "autograder for Gradescope, a zip", out="autograder.zip")
        command("outcomes", "outcomes of the questions, with which a hand-out grades", None, "course/outcomes.json")
        models = command("models", "small copies of a run's models", None, "course/models")
        run = Path("runs/toy/seed-0")
        models.add_argument("--run", type=Path, default=run, help="directory of the run (default: %(default)s)")
    args = parser.parse_args(words)
    args.number = list(dict.fromkeys(getattr(args, "number", [])))  # each once
    if args.what == "grade":
        args.number, args.form = args.number or list(EXERCISES), formats[args.form]
        if (args.batch is None) != (args.csv is None):
            raise BadInput("--batch FOLDER and --csv FILE belong together")
        if args.batch and not args.batch.is_dir():
            raise BadInput(f"--batch {args.batch}: there is no such folder")
        if args.csv:
            require_writable(args.csv), require_writable(args.csv.with_suffix(".json"))
        if args.user:
            grading.user_group(args.user)
    return args


def exercise(text: str) -> int:
    """argparse type: the number of an exercise."""
    if not text.isdecimal() or int(text) not in EXERCISES:
        raise argparse.ArgumentTypeError(f"there is no exercise {text}; they are numbered 1 to {len(EXERCISES)}")
    return int(text)


def main() -> None:
    args = parse_args()
    if args.what == "grade" and args.batch:
        batch(args)
    elif args.what == "grade":
        grades = args.form(args)
        sys.exit(any(one["points"] < one["of"] for one in grades))
    elif args.what == "outcomes":
        with atomic_write(args.out) as temporary:
            temporary.write_text(json.dumps(grading.stored()), encoding="utf-8")
    else:
        from course import handout  # a hand-out has none

        if args.what == "start":
            handout.start(args.number, args.out, args.classroom)
        elif args.what == "gradescope":
            handout.gradescope(args.number or list(EXERCISES), args.out)
        elif args.what == "key":
            handout.key(args.number)
        else:
            handout.small_models(args.run, args.out)


# --- the forms of a grade ------------------------------------------------------------------------


def words_of(args: argparse.Namespace) -> list[dict]:
    grades = grading.grade(args.number, grading.submitted(args.path), args.user)
    print(*map(grading.in_words, grades), sep="\n\n")
    if len(grades) > 1:
        print(f"\nin all: {total(grades, 'points'):g} of {total(grades, 'of'):g} points")
    return grades


def json_of(args: argparse.Namespace) -> list[dict]:
    grades = grading.grade(args.number, grading.submitted(args.path), args.user)
    print(json.dumps(grades, indent=1))
    return grades


def gradescope_of(args: argparse.Namespace) -> list[dict]:
    """Gradescope's results.json: the tests are hidden until the due date, and one line says what was submitted."""
    grades = grade_anything([args.path], args.number, args.user)
    files = dict.fromkeys(one["file"] for one in grades if "submitted" not in one["checks"][0]["message"])
    read = ", ".join(files) or "nothing that belongs to an exercise"
    tests = []
    for one in grades:
        for i, check in enumerate(one["checks"], 1):
            name = f"exercise {one['exercise']}, {one['title']}: {check['what']}"
            tests.append({"score": check["points"], "max_score": check["of"], "name": name, "output": check["message"]})
            tests[-1] |= {"number": f"{one['exercise']}.{i}", "visibility": "after_due_date"}
    said = f"This was read: {read}. The points of each test are shown after the due date."
    print(
        json.dumps({"output": said, "visibility": "visible", "stdout_visibility": "hidden", "tests": tests}, indent=1)
    )
    return grades


def github_of(args: argparse.Namespace) -> list[dict]:
    """The words, and the notices in which GitHub Classroom's own reporter gave the points."""
    grades = words_of(args)
    points, of = total(grades, "points"), total(grades, "of")
    print(f"::notice title=Autograding complete::Points {points:g}/{of:g}")
    print(f"::notice title=Autograding report::{json.dumps({'totalPoints': points, 'maxPoints': of})}")
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        rows = [f"| {one['exercise']}. {one['title']} | {one['points']:g} | {one['of']:g} |" for one in grades]
        table = ["| exercise | points | of |", "| --- | --- | --- |", *rows, f"| in all | {points:g} | {of:g} |", ""]
        with open(summary, "a", encoding="utf-8") as file:
            file.write("\n".join(table))
    return grades


def total(grades: list[dict], name: str) -> float:
    return sum(one[name] for one in grades)


# --- a class -------------------------------------------------------------------------------------


def grade_anything(paths: list[Path], numbers: list[int], user: str | None, threads: int = 5) -> list[dict]:
    """The grades of a submission. If it cannot be read, there are no points, and each message says why."""
    try:
        files = grading.submitted(*paths)
    except BadInput as error:
        why = str(error).replace(str(paths[0]), paths[0].name)
        return [grading.missing(number, f"Nothing was submitted: {why}") for number in numbers]
    return grading.grade(numbers, files, user, threads)


def batch(args: argparse.Namespace) -> None:
    """Grade all submissions of a folder, as many at a time as there are cores, into a table and a JSON file."""
    students: dict[str, list[Path]] = {}
    for path in sorted(args.batch.iterdir()):
        file, prefix = grading.own_file(path.name)
        if path.name[0] not in "._" and (path.is_dir() or path.suffix in (".py", ".zip")):
            students.setdefault(prefix if file and prefix else path.name, []).append(path)  # files of one student
    if not students:
        raise BadInput(f"--batch {args.batch}: there are no folders, zips or Python files in it")
    grade = functools.partial(grade_anything, numbers=args.number, user=args.user, threads=1)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        graded = list(tqdm(pool.map(grade, students.values()), total=len(students), unit="submission"))
    columns = [f"{one['exercise']} (of {one['of']:g})" for one in graded[0]]
    with atomic_write(args.csv) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["submission", *columns, "in all", "remarks"])
        for name, grades in zip(students, graded, strict=True):
            wrong = ((one["exercise"], check["message"]) for one in grades for check in one["checks"][::-1])
            wrong = {number: message for number, message in wrong if message}  # of an exercise, the first one
            remarks = " ".join(f"{number}: {message}" for number, message in wrong.items())
            numbers = [f"{one['points']:g}" for one in grades]
            safe = f"'{name}" if name[0] in "=+-@" else name  # no formula for a spreadsheet
            table.writerow([safe, *numbers, f"{total(grades, 'points'):g}", remarks])
    with atomic_write(args.csv.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(dict(zip(students, graded)), indent=1), encoding="utf-8")
    print(f"{args.csv}: {len(students)} submissions; all messages are in {args.csv.with_suffix('.json')}")


if __name__ == "__main__":
    sys.argv[0] = "course"  # the name in error messages, instead of __main__.py
    cli.run(main)
