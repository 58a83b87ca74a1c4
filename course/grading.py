"""Grading: a submission answers the questions of cases.py in a process of its own, and this process judges the answers.

Only JSON comes back from there: numbers, texts, and the names of errors. A teacher's copy of the course computes what
should have come. A hand-out has no solution, and reads it from outcomes.json, which `python -m course outcomes` made.
"""

import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path, PurePosixPath

import numpy as np

from course import cases
from course.exercises import EXERCISES, ROOT
from lab.files import BadInput, in_a_line

SECONDS, START = 20, 120  # for a question or the import of the solution, and for the start of Python and torch
STOPS = 2  # questions of an exercise that hang or end Python, after which no more of it are asked
LARGEST = 2**20  # bytes of a submitted file
OWN = dict.fromkeys(exercise.file for exercise in EXERCISES.values())
OUTCOMES = ROOT / "course" / "outcomes.json"
TEACHERS = (ROOT / "course" / "mistakes.py").is_file()  # is this the project's copy, or a hand-out?
SEED = 1 if TEACHERS else 0


# --- what should come back -----------------------------------------------------------------------


def right(number: int) -> list[list[dict]]:
    """For each check of an exercise, the right outcome of each question."""
    if TEACHERS:
        from course import mistakes

        return mistakes.right(number, SEED)
    return json.loads(OUTCOMES.read_text(encoding="utf-8"))[str(number)]["right"]


def mistaken(number: int, check: int) -> list[tuple[str, list[dict]]]:
    """For each usual mistake, the outcomes of the questions of one check."""
    if TEACHERS:
        from course import mistakes

        return mistakes.mistaken(number, check, SEED)
    return json.loads(OUTCOMES.read_text(encoding="utf-8"))[str(number)]["mistakes"][check]


def stored() -> dict:
    """What OUTCOMES holds: the right outcomes with seed 0, and those of mistakes that differ from them."""
    from course import mistakes

    found = {}
    for number in EXERCISES:
        wanted, wrong = mistakes.right(number, 0), []
        for check, its in enumerate(wanted):
            outcomes = mistakes.mistaken(number, check, 0)
            wrong.append([pair for pair in outcomes if not all(map(same, pair[1], its))])
        found[number] = {"right": wanted, "mistakes": wrong}
    return found


# --- a submission --------------------------------------------------------------------------------


def own_file(name: str) -> tuple[str, str]:
    """The file of an exercise that a submitted file is meant to be, and what stands before its name: "" and "" if none.

    Learning platforms write smith_dualmd.py, or dualmd-1.py and dualmd (1).py for a second attempt.
    """
    stems = "|".join(Path(file).stem for file in OWN)
    found = re.fullmatch(rf"(.*?)[ _-]*({stems})(?: ?\(\d+\)|-\d+)?\.py", name)
    return (f"{found[2]}.py", found[1]) if found else ("", "")


def submitted(*paths: Path) -> dict[str, bytes]:
    """The Python files of a submission, by name: of a folder, a zip, or single files.

    Of a folder or a zip these are the files beside the uppermost one that belongs to an exercise; of a folder without
    one, those of a zip in it. Links are left out. Raises BadInput where nothing can be read, or a file is too large.
    """
    files: dict[PurePosixPath, bytes] = {}
    zips = [path for path in paths if zipfile.is_zipfile(path)]
    try:
        for path in paths:
            for folder, folders, names in os.walk(path) if path.is_dir() else [(path.parent, [], [path.name])]:
                inside = PurePosixPath(Path(folder).relative_to(path if path.is_dir() else path.parent).as_posix())
                folders[:] = [name for name in folders if name[0] not in "._" and len(inside.parts) < 4]
                for file in [Path(folder, name) for name in names if name.endswith((".py", ".zip"))]:
                    if file.is_file() and not file.is_symlink() and file.stat().st_size <= LARGEST:
                        zips += [file] if zipfile.is_zipfile(file) else []
                        files |= {inside / file.name: file.read_bytes()} if file.suffix == ".py" else {}
        if not any(own_file(name.name)[0] for name in files):
            for archive in map(zipfile.ZipFile, zips[:1]):
                for entry in archive.infolist():
                    name = PurePosixPath(entry.filename)
                    hidden = any(part[0] in "._" for part in name.parts)
                    if name.suffix == ".py" and not hidden and entry.file_size <= LARGEST:
                        files[name] = archive.read(entry)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError) as error:
        raise BadInput(f"{paths[0]} cannot be read as a submission ({in_a_line(error)})") from error
    mine = [name for name in files if own_file(name.name)[0]]
    if not mine:
        raise BadInput(f"{paths[0]}: no {', '.join(OWN)} there, of at most 1 MiB")
    top = min(mine, key=lambda name: (len(name.parts), name)).parent
    beside = {name.name: content for name, content in files.items() if name.parent == top}
    return {own_file(name)[0]: content for name, content in beside.items() if own_file(name)[0]} | beside


def ask(files: dict[str, bytes], file: str, numbers: list[int], user: str | None = None) -> dict[int, list[dict]]:
    """For each of the exercises `numbers`, which are written in `file`, a submission's outcomes of all its questions.

    It runs in a folder with the course's own other files, and with the submitted ones that the course does not have. If
    a question hangs, or ends Python, the others are asked anew, but no more of an exercise with STOPS of them. `user`:
    who runs it, if this process may choose. Raises BadInput if Python cannot start.
    """
    wanted = {i: n for i, (n, _) in enumerate(cases.questions(EXERCISES)) if n in numbers}
    found: dict[int, dict] = {}
    with tempfile.TemporaryDirectory(prefix="grading-", ignore_cleanup_errors=True) as temporary:
        folder, worker = Path(temporary, "solution"), Path(temporary, "cases.py")
        ours = {path.relative_to(ROOT): path.read_bytes() for path in [*ROOT.glob("*.py"), *ROOT.glob("lab/*.py")]}
        theirs = {Path(name): files[name] for name in files if name == file or Path(name) not in ours}
        for path, content in (ours | theirs).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        shutil.copyfile(ROOT / "course" / "cases.py", worker)
        for path in (Path(temporary), *Path(temporary).rglob("*")):  # another user can read them
            path.chmod(0o755 if path.is_dir() else 0o644)
        while todo := [i for i in wanted if i not in found]:
            lines, why = _run([worker, folder, file, SEED, *todo], user)
            found |= {i: outcome for i, outcome in _outcomes(lines) if i in todo}
            if len(lines) < 2:
                found |= dict.fromkeys(todo, {"broken": f"{file} cannot be imported: it {why}."})
            for i in [i for i in todo if i not in found][:1]:
                found[i] = {"stopped": why}
                if [found[k] for k in found if wanted[k] == wanted[i]].count(found[i]) >= STOPS:
                    never = {"stopped": f"was not asked: it was stopped {STOPS} times"}
                    found |= {k: never for k in todo if k not in found and wanted[k] == wanted[i]}
    return {number: [found[i] for i in wanted if wanted[i] == number] for number in numbers}


def _run(arguments: list, user: str | None) -> tuple[list[bytes], str]:
    """Start cases.py, and stop it where it does not go on. The lines that it wrote, and how it ended."""
    hidden = ("PYTHONPATH", "PYTHONSTARTUP", "PWD", "OLDPWD", "GITHUB_TOKEN")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"} | ({"HOME": os.sep} if user else {})
    # -P: without the modules that a solution may write beside cases.py
    command, nothing = [sys.executable, "-P", *map(str, arguments)], subprocess.DEVNULL
    how = {"cwd": arguments[1], "env": environment, "start_new_session": True, "stdin": nothing, "stderr": nothing}
    how |= {"user": user, "group": user_group(user), "extra_groups": []} if user else {}
    with ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory()), "answers")
        # both are open before the solution runs, which then cannot put another file in its place
        answers, back = (stack.enter_context(open(path, mode)) for mode in ("ab", "rb"))
        try:
            process = subprocess.Popen(command, stdout=answers, **how)
        except OSError as error:
            raise BadInput(f"{sys.executable} cannot be started as user {user or 'you'}: {error.strerror}") from error
        size, deadline = 0, time.monotonic() + START
        try:
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
                if (now := os.fstat(back.fileno()).st_size) > size:
                    size, deadline = now, time.monotonic() + SECONDS
            hung = process.poll() is None
        finally:
            with suppress(OSError):  # with what it has started
                os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
            process.kill()
            process.wait()
        lines = back.read(cases.FILE).split(b"\n")[:-1]
    if not lines:
        raise BadInput(f"{sys.executable} could not import torch and numpy as user {user or 'you'}")
    return lines, f"was not finished after {SECONDS} seconds" if hung else "ended the Python process"


def user_group(user: str) -> int:
    """The group of a user. Raises BadInput if there is no such user, or if this process may not choose one."""
    try:
        import pwd

        if os.geteuid() == 0:
            return pwd.getpwnam(user).pw_gid
    except (ImportError, KeyError) as error:
        raise BadInput(f"--user {user}: there is no such user") from error
    raise BadInput(f"--user {user}: only root can run a program as another user")


def _outcomes(lines: list[bytes]) -> Iterator[tuple[int, dict]]:
    """What cases.py has written, as (question, outcome), without anything else that is there."""
    for line in lines:
        with suppress(ValueError, TypeError, RecursionError):
            i, outcome = json.loads(line)
            shallow = line.count(b"[") + line.count(b"{") < 500  # a deep one could end this process
            if shallow and type(i) is int and type(outcome) is dict and len(outcome) == 1:
                yield i, outcome


# --- judging -------------------------------------------------------------------------------------


def same(got: object, wanted: object) -> bool:
    """Are these outcomes, or parts of them, equal? Numbers up to one in ten thousand."""
    one, other = numbers(got), numbers(wanted)
    if one is not None and other is not None:
        if one.shape != other.shape:
            return False
        size = np.abs(np.where(np.isfinite(other), other, 0))
        with np.errstate(invalid="ignore"):
            close = np.abs(one - other) <= 1e-4 * size + 1e-6 * size.max(initial=0.1)
        return bool((close | (one == other) | (np.isnan(one) & np.isnan(other))).all())
    if isinstance(wanted, dict) and isinstance(got, dict):
        if "raised" in wanted and "raised" in got:  # in whatever line
            return str(wanted["raised"]).partition(" (")[0] == str(got["raised"]).partition(" (")[0]
        return wanted.keys() == got.keys() and all(same(got[name], wanted[name]) for name in wanted)
    if isinstance(wanted, list) and isinstance(got, list):
        return len(wanted) == len(got) and all(map(same, got, wanted))
    return type(got) is type(wanted) and got == wanted


def numbers(value: object) -> np.ndarray | None:
    """An array, a number or a list of numbers as float64; None for anything else."""
    with suppress(ValueError, TypeError, KeyError, RecursionError, OverflowError):
        if isinstance(value, dict):
            shape = [int(n) for n in value["shape"]]
            return np.array(value["values"], dtype=np.float64).reshape(shape)
        if isinstance(value, bool | int | float | list) and not _holds(value, str | dict | None):
            return np.array(value, dtype=np.float64)
    return None


def _holds(value: object, types: type) -> bool:
    return any(_holds(each, types) for each in value) if isinstance(value, list) else isinstance(value, types)


def hint(number: int, check: int, part: int, outcomes: list[dict], right: list[dict]) -> str:
    """Which mistake the outcomes of a check look like, in this part or better in all, as a sentence; or nothing."""
    got, wanted = outcomes[part], right[part]
    alike = [pair for pair in mistaken(number, check) if same(pair[1][part], got) and not same(pair[1][part], wanted)]
    for mistake, _ in sorted(alike, key=lambda pair: not all(map(same, pair[1], outcomes))):
        return f" It looks as if {mistake}."
    if got.get("answer", "") is None:
        return " Is there a `return`?"
    one, other = numbers(got.get("answer")), numbers(wanted.get("answer"))
    if one is None or other is None or not one.size or one.size != other.size:
        return ""
    if one.shape != other.shape:
        alike = same(one.ravel().tolist(), other.ravel().tolist())
        return " The numbers are right, but not the shape." if alike else ""
    if same((-one).tolist(), other.tolist()):
        return " It is right up to the sign."
    factor = float(one.ravel()[0] / other.ravel()[0]) if other.ravel()[0] else math.nan
    if one.size > 1 and math.isfinite(factor) and same(one.tolist(), (factor * other).tolist()):
        return f" Each number is {factor:.4g} times what it should be."
    return ""


def shown(value: object) -> str:
    """A value in a message: small arrays in full."""
    array = None if isinstance(value, bool) else numbers(value)
    if array is not None and array.size and not _holds(value, bool):
        head = (array if array.size <= 30 else array.ravel()[:6]).round(12)
        text = np.array2string(head, separator=", ", formatter={"float": "{:.6g}".format}, max_line_width=10**6)
        text = " ".join(text.split())
        return text if array.size <= 30 else f"{text[:-1]}, ...] of shape {list(array.shape)}"
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value[:20]))}{', ...' if len(value) > 20 else ''}]"
    if isinstance(value, dict):
        return "; ".join(f"{name}: {shown(each)}" for name, each in list(value.items())[:8])
    return {True: "yes", False: "no", None: "None"}[value] if value in (True, False, None) else str(value)[:300]


def message(number: int, check: int, part: int, name: str, outcomes: list[dict], right: list[dict]) -> str:
    """What is wrong with a part of a check, in the exercise's terms."""
    got, should = outcomes[part], f"{name} should be {shown(right[part].get('answer'))}."
    if "broken" in got or "stopped" in got:
        return got.get("broken") or f"{name}: the solution {got['stopped']}."
    if "raised" in got and "is not written yet" in str(got["raised"]):
        return str(got["raised"]).removeprefix("NotImplementedError: ").partition(" (")[0] + "."
    said = hint(number, check, part, outcomes, right)
    return f"{should} It {'raised' if 'raised' in got else 'was'} {shown(next(iter(got.values())))}.{said}"


def judged(number: int, outcomes: list[dict]) -> dict:
    """The points of an exercise, by the outcomes of all its questions."""
    checks, rest, answers = [], iter(outcomes), right(number)
    for check, (points, what, parts) in enumerate(cases.checks(number, None, SEED)):
        its, wanted, wrong = list(itertools.islice(rest, len(parts))), answers[check], ""
        for part, name in enumerate(parts):
            if not wrong and not same(its[part], wanted[part]):
                wrong = message(number, check, part, name, its, wanted)
        checks.append({"what": what, "points": 0 if wrong else points, "of": points, "message": wrong})
    return result(number, checks)


def result(number: int, checks: list[dict]) -> dict:
    """The grade of one exercise, in the form that `--as json` prints."""
    exercise = EXERCISES[number]
    result = {"exercise": number, "title": exercise.title, "file": exercise.file, "functions": list(exercise.functions)}
    sums = {name: sum(check[name] for check in checks) for name in ("points", "of")}
    return result | sums | {"checks": checks}


def missing(number: int, why: str) -> dict:
    """The grade of an exercise that could not be asked at all."""
    checks = cases.checks(number)
    return result(number, [{"what": what, "points": 0, "of": points, "message": why} for points, what, _ in checks])


def grade(numbers: list[int], files: dict[str, bytes], user: str | None = None, threads: int = 5) -> list[dict]:
    """The grades of these exercises of a submission, asked about so many of its files at a time."""

    def of(file: str) -> dict[int, dict]:
        mine = [number for number in numbers if EXERCISES[number].file == file]
        if file not in files:
            return {number: missing(number, f"{file} was not submitted.") for number in mine}
        return {number: judged(number, outcomes) for number, outcomes in ask(files, file, mine, user).items()}

    with ThreadPoolExecutor(threads) as pool:
        grades = {number: one for part in pool.map(of, OWN) for number, one in part.items()}
    return [grades[number] for number in numbers]


def in_words(graded: dict) -> str:
    """A grade for a reader."""
    names = ", ".join(graded["functions"])
    lines = [f"exercise {graded['exercise']}, {graded['title']} ({names} in {graded['file']})"]
    messages = {check["message"] for check in graded["checks"]}
    once = len(messages) == 1 and messages != {""}
    for check in graded["checks"]:
        lines.append(f"  {check['points']:>4g} of {check['of']:<4g}  {check['what']}")
        if check["message"] and not once:
            lines.append(textwrap.fill(check["message"], 110, initial_indent=16 * " ", subsequent_indent=16 * " "))
    if once:
        lines.append(textwrap.fill(messages.pop(), 110, initial_indent="  ", subsequent_indent="  "))
    return "\n".join([*lines, f"  {graded['points']:g} of {graded['of']:g} points"])
