"""What a teacher hands out: copies in which functions are missing, an autograder, the small models, and the key."""

import dataclasses
import io
import re
import shlex
import tempfile
import textwrap
import tokenize
import zipfile
from pathlib import Path

import torch

from course import cases
from course.exercises import EXERCISES, ROOT, function_lines
from lab.checkpoint import load_run, path_in, save, weights_key
from lab.files import BadInput, atomic_write

CODE = ["*.py", "lab/*.py", "requirements.txt"]
COPIED = [*CODE, *"README.md LICENSE CITATION.cff lab/*.txt docs/* results/*.* results/*/*.*".split()]
COPIED += [f"course/{name}.py" for name in "__init__ __main__ cases exercises grading".split()]
COPIED += [f"course/{name}" for name in "EXERCISES.md TEACHING.md outcomes.json requirements.txt".split()]
COPIED += ["course/dualmd.ipynb", "course/noising.png", "course/models/*.pt"]
SERVICES = ROOT / "course" / "services"  # what Gradescope and GitHub run
MODELS = ["all", "A", "B", "distill-cross", "reference"]


# --- start: a copy in which functions are missing ------------------------------------------------


def start(numbers: list[int], out: Path, classroom: bool = False) -> None:
    """Copy the project to `out` without the functions of these exercises, and print where they are missing.

    With `classroom`, there are also the files of a repository on GitHub that grades each push. Raises BadInput if `out`
    is there and not an empty directory, or if it cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"--out {out}: exists and is not an empty directory; name another one")
    sources = {path.relative_to(ROOT): path.read_bytes() for pattern in COPIED for path in ROOT.glob(pattern)}
    missing = [(Path(EXERCISES[n].file), name, n) for n in numbers for name in EXERCISES[n].functions]
    for file, name, number in missing:
        whole = sources[file].decode()
        sources[file] = cut(whole, name, number).encode()
        for path in [path for path in sources if path.suffix in (".md", ".ipynb")]:
            sources[path] = without(statements(whole, name), number, sources[path].decode()).encode()
    if classroom:
        sources[Path(".github/workflows/classroom.yml")] = service("classroom.yml", numbers)
        sources[Path(".gitignore")] = b"__pycache__/\n.venv/\n/data/\n/runs/\n"
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
    print("Write these functions:")
    for file, name, number in missing:
        line = sources[file][: sources[file].index(gap(number, name).encode())].count(b"\n") + 1
        print(f"  {out / file}, line {line}: {name}")
    print("\nThen run:")
    print("  " + shlex.join(["python", "-m", "course", "grade", *map(str, numbers), "--in", str(out)]))


def cut(source: str, name: str, number: int) -> str:
    """`source` without the body of the function `name`, except its docstring: a hint stands in its place."""
    first, last = function_lines(source, name)
    lines = source.splitlines()
    indent = re.match(" *", lines[first])[0]
    hole = [f"# {line}" for line in textwrap.wrap(f"Exercise {number}. {EXERCISES[number].hint}", 118 - len(indent))]
    hole = [indent + line for line in [*hole, gap(number, name)]]
    return "\n".join([*lines[:first], *hole, *lines[last:], ""])


def body(source: str, name: str) -> str:
    """What `cut` takes away."""
    first, last = function_lines(source, name)
    return textwrap.dedent("\n".join(source.splitlines()[first:last]))


def gap(number: int, name: str) -> str:
    """The statement in place of a function's body."""
    return f'raise NotImplementedError("exercise {number}: {name.split(".")[-1]} is not written yet")'


def statements(source: str, name: str) -> list[list[str]]:
    """The tokens of each statement in the body of a function that has at least four of them, without comments.

    Of a statement that contains others, these are the tokens of its head. A comma before a closing bracket is left out.
    """
    found, now = [], []
    for token in tokenize.generate_tokens(io.StringIO(body(source, name) + "\n").readline):
        if token.type == tokenize.NEWLINE:
            found, now = [*found, now], []
        elif token.type != tokenize.COMMENT and token.string.strip():
            now.append(token.string)
        if len(now) > 1 and now[-2] == "," and now[-1] in ")]}":
            del now[-2]
    return [tokens for tokens in found if len(tokens) >= 4]


def without(removed: list[list[str]], number: int, text: str) -> str:
    """A document without these statements: the number of the exercise stands in their place."""
    for tokens in removed:
        pattern = re.escape(tokens[0])
        for one, other in zip(tokens, tokens[1:]):
            pattern += r"\s*,?" if other in ")]}" else ""
            pattern += (r"\s+" if re.fullmatch(r"\w\w", one[-1] + other[0]) else r"\s*") + re.escape(other)
        text = re.sub(rf"(?<![\w.]){pattern}(?!\w)", f"# a line of exercise {number}", text)
    return text


# --- the services --------------------------------------------------------------------------------


def service(name: str, numbers: list[int]) -> bytes:
    """A file of SERVICES, for these exercises."""
    return (SERVICES / name).read_bytes().replace(b"EXERCISES", " ".join(map(str, numbers)).encode())


def gradescope(numbers: list[int], out: Path) -> None:
    """Write Gradescope's autograder of these exercises, a zip with setup.sh, run_autograder and the course."""
    files = {name: service(name, numbers) for name in ("setup.sh", "run_autograder")}
    for path in [path for pattern in [*CODE, "course/*.py"] for path in ROOT.glob(pattern)]:
        files[path.relative_to(ROOT).as_posix()] = path.read_bytes()
    with atomic_write(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (0o755 if "." not in name or name.endswith(".sh") else 0o644) << 16
            archive.writestr(entry, content)
    print(f"{out}: upload it as the autograder of exercises {', '.join(map(str, numbers))}")


# --- the key -------------------------------------------------------------------------------------


def key(numbers: list[int]) -> None:
    """Print each exercise's reference solution and points, and what KEY.md says; without numbers, all of KEY.md."""
    text = (ROOT / "course" / "KEY.md").read_text(encoding="utf-8")
    for number in numbers or EXERCISES:
        exercise = EXERCISES[number]
        print(f"# Exercise {number}, {exercise.title}: {exercise.file}\n")
        source = (ROOT / exercise.file).read_text(encoding="utf-8")
        for name in exercise.functions:
            print(f"```python\n{body(source, name)}\n```\n")
        checks = cases.checks(number)
        for points, what, _ in checks:
            print(f"{points:>5g}  {what}")
        print(f"{sum(points for points, *_ in checks):>5g}  points in all\n")
        print(re.search(rf"^## {number}\. .*?\n+(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1])
    if not numbers:
        print(text[text.index("## Open: ") :])


# --- the small models ----------------------------------------------------------------------------


def small_models(run: Path, out: Path) -> None:
    """Copy the models of a run to `out` as float16. Raises BadInput if one is missing."""
    found = load_run(run)
    if missing := [name for name in MODELS if name not in found]:
        raise BadInput(
            f"--run {run}: {', '.join(missing)} not there; `python reproduce.py` trains them in runs/toy/seed-0"
        )
    small = {}
    for name in MODELS:
        weights = {key: weight.to(torch.float16) for key, weight in found[name].weights.items()}
        small[name] = dataclasses.replace(
            found[name], weights=weights, dataset=found[name].dataset | {"data_dir": None}
        )
    # a student knows its teachers by their weights
    small["distill-cross"].settings["teachers"] = weights_key(small["A"], small["B"])
    for name, model in small.items():
        save(out, model)
        print(f"{path_in(out, name)}: {path_in(out, name).stat().st_size / 1e6:.2f} MB")
