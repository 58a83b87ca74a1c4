"""Grading: a submission answers the questions of cases.py in a process of its own, and this process judges the answers.

Only JSON comes back from there: numbers, texts, and the names of errors. A teacher's copy of the course computes what
should have come. A hand-out has no solution, and reads it from outcomes.json, which `python -m course outcomes` made.
"""

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath

import numpy as np

from course import cases
from course.exercises import EXERCISES, ROOT
from lab.files import BadInput, in_a_line

SECONDS, START = 20, 120  # for a question, and for the start of Python and torch
STOPS = 3  # after which a submission is asked nothing more
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


def submitted(path: Path) -> dict[str, bytes]:
    """The Python files of a submission, by name: of a folder, a zip, or a single file.

    They are those beside the uppermost file that belongs to an exercise. Links are left out. A single file may have a
    prefix, as in smith_dualmd.py. Raises BadInput where `path` cannot be read, or is too large.
    """
    files: dict[PurePosixPath, bytes] = {}
    try:
        if path.is_dir():
            for folder, folders, names in os.walk(path):
                inside = PurePosixPath(Path(folder).relative_to(path).as_posix())
                folders[:] = [name for name in folders if name[0] not in "._" and len(inside.parts) < 4]
                for name in [name for name in names if name.endswith(".py")]:
                    file = Path(folder, name)
                    if not file.is_symlink() and file.is_file() and file.stat().st_size <= LARGEST:
                        files[inside / name] = file.read_bytes()
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for entry in archive.infolist():
                    name = PurePosixPath(entry.filename)
                    hidden = any(part[0] in "._" for part in name.parts)
                    if name.suffix == ".py" and not hidden and entry.file_size <= LARGEST:
                        files[name] = archive.read(entry)
        else:
            own = next((name for name in OWN if path.name.endswith(name)), path.name)
            files[PurePosixPath(own)] = path.read_bytes()[: LARGEST + 1]
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError) as error:
        raise BadInput(f"{path} cannot be read as a submission ({in_a_line(error)})") from error
    mine = [name for name in files if name.name in OWN and len(files[name]) <= LARGEST]
    if not mine:
        raise BadInput(f"{path}: no {', '.join(OWN)} there, of at most 1 MiB")
    top = min(mine, key=lambda name: (len(name.parts), name)).parent
    return {name.name: content for name, content in files.items() if name.parent == top}


def ask(files: dict[str, bytes], file: str, numbers: list[int], user: str | None = None) -> list[dict]:
    """A submission's outcomes of all questions of exercises `numbers`, which are written in `file`.

    It runs in a folder with the course's own other files, and with the submitted ones that the course does not have.
    A question that hangs, or ends Python, costs only itself; after STOPS of them no more are asked. `user`: who runs
    it, if this process may choose. Raises BadInput if Python cannot start.
    """
    total = sum(len(parts) for number in numbers for *_, parts in cases.checks(number))
    found: dict[int, dict] = {}
    with tempfile.TemporaryDirectory(prefix="grading-", ignore_cleanup_errors=True) as temporary:
        folder, answers, worker = (Path(temporary, name) for name in ("solution", "answers", "cases.py"))
        ours = {path.relative_to(ROOT): path.read_bytes() for path in [*ROOT.glob("*.py"), *ROOT.glob("lab/*.py")]}
        theirs = {Path(name): files[name] for name in files if name == file or Path(name) not in ours}
        for path, content in (ours | theirs).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        shutil.copyfile(ROOT / "course" / "cases.py", worker)
        answers.touch()
        for path in (Path(temporary), *Path(temporary).rglob("*")):  # another user can read them
            path.chmod(0o777 if path.is_dir() or path == answers else 0o644)
        for stops in range(STOPS):
            first = next((i for i in range(total) if i not in found), total)
            if first == total:
                break
            why = _run([worker, folder, answers, SEED, first, *numbers], answers, user)
            for i, outcome in _read(answers):
                if 0 <= i < total:
                    found.setdefault(i, outcome)
            missing = next((i for i in range(total) if i not in found), total)
            if missing < total:
                found[missing] = {"stopped": why}
    never = {"stopped": f"was not asked, because the solution was stopped {STOPS} times"}
    return [found.get(i, never) for i in range(total)]


def _run(arguments: list, answers: Path, user: str | None) -> str:
    """Start cases.py, and stop it where it does not go on. What to say of a question that is missing afterwards."""
    hidden = ("PYTHONPATH", "PYTHONSTARTUP", "PWD", "OLDPWD", "GITHUB_TOKEN")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"OMP_NUM_THREADS": "1", "HOME": str(answers.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    who = {"user": user, "group": user_group(user), "extra_groups": []} if user else {}
    nothing = subprocess.DEVNULL
    try:
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)], cwd=arguments[1], env=environment, start_new_session=True,
            stdin=nothing, stdout=nothing, stderr=nothing, **who,
        )  # fmt: skip
    except OSError as error:
        raise BadInput(f"{sys.executable} cannot be started as user {user or 'you'}: {error.strerror}") from error
    size, began, deadline = answers.stat().st_size, answers.stat().st_size, time.monotonic() + START
    try:
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
            if answers.stat().st_size > size:
                size, deadline = answers.stat().st_size, time.monotonic() + SECONDS
        hung = process.poll() is None
    finally:
        with suppress(OSError):  # with what it has started
            os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
        process.kill()
        process.wait()
    if answers.stat().st_size == began:
        raise BadInput(f"{sys.executable} could not import torch and numpy as user {user or 'you'}")
    return f"was not finished after {SECONDS} seconds" if hung else "ended the Python process"


def user_group(user: str) -> int:
    """The group of a user. Raises BadInput if there is no such user, or if this process may not choose one."""
    try:
        import pwd

        if os.geteuid() == 0:
            return pwd.getpwnam(user).pw_gid
    except (ImportError, KeyError) as error:
        raise BadInput(f"--user {user}: there is no such user") from error
    raise BadInput(f"--user {user}: only root can run a program as another user")


def _read(answers: Path) -> list[tuple[int, dict]]:
    """What cases.py has written, and whatever else is there."""
    with open(answers, "rb") as file:
        lines = file.read(cases.FILE).split(b"\n")
    found = []
    for line in lines:
        with suppress(ValueError, TypeError, RecursionError):
            i, outcome = json.loads(line)
            if type(i) is int and type(outcome) is dict and len(outcome) == 1:
                found.append((i, outcome))
    return found


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
        return (
            " The numbers are right, but not the shape." if same(one.ravel().tolist(), other.ravel().tolist()) else ""
        )
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
        head = array if array.size <= 30 else array.ravel()[:6]
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
    checks, rest = [], iter(outcomes)
    for check, (points, what, parts) in enumerate(cases.checks(number, None, SEED)):
        its, wanted, wrong = list(itertools.islice(rest, len(parts))), right(number)[check], ""
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


def grade(numbers: list[int], files: dict[str, bytes], user: str | None = None) -> list[dict]:
    """The grades of these exercises of a submission."""

    def of(file: str) -> dict[int, dict]:
        mine = [number for number in numbers if EXERCISES[number].file == file]
        if file not in files:
            return {number: missing(number, f"{file} was not submitted.") for number in mine}
        outcomes, grades = iter(ask(files, file, mine, user) if mine else []), {}
        for number in mine:
            count = sum(len(parts) for *_, parts in cases.checks(number))
            grades[number] = judged(number, [next(outcomes) for _ in range(count)])
        return grades

    with ThreadPoolExecutor(os.cpu_count()) as pool:
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
