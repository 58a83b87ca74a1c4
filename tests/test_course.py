"""course/: copies in which functions are missing, and a grade that says what was expected."""

import ast
import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, grade_in_forks, tree

from course import __main__ as course
from course.__main__ import EXERCISES
from lab.files import BadInput


def call(monkeypatch, capsys, *words):
    """Exit status and output of `python -m course`."""
    monkeypatch.setattr(sys, "argv", ["course", *map(str, words)])
    capsys.readouterr()
    try:
        course.main()
        status = 0
    except SystemExit as end:
        status = int(end.code)
    return status, capsys.readouterr().out


def bodies(source):
    """Of each function in a file, by its qualified name, the statements as source."""
    found = {}

    def visit(node, name):
        for child in ast.iter_child_nodes(node):
            its = f"{name}.{child.name}".lstrip(".") if hasattr(child, "name") else name
            if isinstance(child, ast.FunctionDef):
                found[its] = [ast.unparse(statement) for statement in child.body]
            else:
                visit(child, its)

    visit(ast.parse(source), "")
    return found


@pytest.mark.slow
def test_every_hole_fails_and_says_what_was_expected(tmp_path, monkeypatch):
    """Nothing is missing but the function's body. Its docstring stays."""
    grade_in_forks(monkeypatch)
    for number in EXERCISES:
        course.start([number], tmp_path / str(number))
    grades = [course.grade(number, tmp_path / str(number)) for number in EXERCISES]
    for (number, exercise), graded in zip(EXERCISES.items(), grades, strict=True):
        copy = tmp_path / str(number)
        assert graded["points"] == 0 and graded["of"] >= 3, graded
        for test in graded["tests"]:
            assert re.match(
                f"expected .+ NotImplementedError: exercise {number}: .* is not written yet", test["message"]
            )
        holes = {}
        for path in ROOT.glob("*.py"):
            before, after = bodies(path.read_text()), bodies((copy / path.name).read_text())
            assert before.keys() == after.keys()
            holes |= {f"{path.name}:{name}": after[name] for name in before if before[name] != after[name]}
        whole = {function: bodies((ROOT / function.split(":")[0]).read_text()) for function in exercise.functions}
        assert set(holes) == set(exercise.functions)
        for function, body in holes.items():
            old = whole[function][function.split(":")[1]]
            assert body[-1].startswith("raise NotImplementedError(") and body[:-1] in ([], old[:1])
            file = (copy / function.split(":")[0]).read_text()
            assert f"# Exercise {number}. {exercise.hint[:40]}" in file and max(map(len, file.splitlines())) <= 120


@pytest.mark.slow
def test_a_solution_has_all_points_also_where_only_the_copy_is(tmp_path, monkeypatch, capsys):
    solution = tmp_path / "my-solution"
    status, said = call(monkeypatch, capsys, "start", 5, "--out", solution)
    line = 1 + (solution / "dualmd.py").read_text().splitlines().index(
        '        raise NotImplementedError("exercise 5: ddpm_step is not written yet")'
    )
    assert status == 0 and f"{solution}/dualmd.py, line {line}: NoiseSchedule.ddpm_step\n" in said
    assert said.endswith(f"\n  python -m course grade 5 --in {solution}\n")
    folders = {path.name for path in solution.iterdir() if path.is_dir()}
    assert folders == {"course", "docs", "lab"} and {"README.md", "course/EXERCISES.md"} <= set(tree(solution))
    (solution / "dualmd.py").write_bytes((ROOT / "dualmd.py").read_bytes())
    status, said = call(monkeypatch, capsys, "grade", 5, "--in", solution)
    assert status == 0 and said.endswith("  4 of 4 points\n") and "+1  the last step adds no noise\n" in said
    for command in (["-m", "course", "grade", "5"], ["-c", "import train, sample, evaluate, reproduce"]):
        result = subprocess.run([sys.executable, *command], cwd=solution, capture_output=True, text=True)
        assert result.returncode == 0 and result.stdout in (said, ""), result.stderr


@pytest.mark.slow
def test_a_mistake_is_called_by_its_name(tmp_path, monkeypatch, capsys):
    """The other points are given. The tests that count are those of the project, not the solution's own."""
    grade_in_forks(monkeypatch)
    course.start([5, 7], tmp_path / "s")
    source = (ROOT / "dualmd.py").read_text()
    for right, wrong in (
        ("mean + beta**0.5 * z if t > 0 else mean", "mean + beta * z"),
        ("(t // self.stride) % 2 == 0", "(t // self.stride) % 2 == 1"),
    ):
        assert right in source
        source = source.replace(right, wrong)
    (tmp_path / "s" / "dualmd.py").write_text(source)
    (tmp_path / "s" / "course" / "test_grading.py").write_text("class TestExercise5: pass\n")
    status, said = call(monkeypatch, capsys, "grade", 5, 7, "--in", tmp_path / "s")
    assert status == 1
    assert "   0  the noise has the standard deviation sqrt beta\n" in said and "2 of 4 points" not in said
    words = " ".join(said.split())
    assert "(it looks as if the root of beta_t is missing)" in words and "(it looks as if B answers first)" in words
    assert "+1 without noise it is the mean of equation 11" in words and "1 of 4 points" in words
    status, said = call(monkeypatch, capsys, "grade", 5, "--in", tmp_path / "s", "--json")
    (graded,) = json.loads(said)
    assert (
        graded["exercise"] == 5 and graded["of"] == 4 and graded["points"] == sum(t["passed"] for t in graded["tests"])
    )
    assert status == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "file, written, message",
    [
        ("dualmd.py", "def add_noise(:\n", "the solution cannot be imported: .*SyntaxError: .*"),
        ("dualmd.py", "import pytest\npytest.skip('', allow_module_level=True)\n", "was not run"),
        ("dualmd.py", "import os\nos._exit(0)\n", "the solution ended the Python process"),
        ("dualmd.py", "import time\ntime.sleep(60)\n", "not finished after 5 seconds"),
        ("lab/files.py", "import nothing\n", "the solution cannot be imported: .*No module named 'nothing'"),
    ],
)
def test_every_solution_is_graded(tmp_path, monkeypatch, file, written, message):
    if "seconds" in message:  # the others may take as long as a cold start of Python on a busy machine
        monkeypatch.setattr(course, "SECONDS", 5)
    course.start([2], tmp_path / "s")
    (tmp_path / "s" / file).write_text(written)
    graded = course.grade(2, tmp_path / "s")
    assert graded["points"] == 0 and graded["of"] == 3
    assert all(re.fullmatch(message, test["message"]) for test in graded["tests"])


def test_refusals(tmp_path, monkeypatch, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    (tmp_path / "file").touch()
    for out in ("full", "file"):
        with pytest.raises(BadInput, match=f"--out .*{out}: exists and is not an empty directory"):
            course.start([1], tmp_path / out)
    with pytest.raises(BadInput, match="--out .*: cannot be written"):
        course.start([1], tmp_path / "file" / "in-it")
    with pytest.raises(BadInput, match=r"--in .*full: attacks.py, .* not found; name a directory that `start` made"):
        call(monkeypatch, capsys, "grade", 1, "--in", tmp_path / "full")
    assert tree(tmp_path) == ["file", "full", "full/thesis.txt"]
    for words in (["start", "13", "--out", "x"], ["start", "one", "--out", "x"], ["start", "1"], ["grade", "0"], []):
        assert call(monkeypatch, capsys, *words)[0] == 2
    (tmp_path / "empty").mkdir()
    course.start([1], tmp_path / "empty")
    assert (tmp_path / "empty" / "dualmd.py").exists() and not [path for path in os.listdir(tmp_path) if path[0] == "."]


def test_the_document_says_what_the_script_does():
    text = (ROOT / "course" / "EXERCISES.md").read_text()
    rows = re.findall(r"^\| (\d+) \| \[(.+?)\]\(#(.+?)\) \| (.+?) \| (\d+) \| \d+ min \|$", text, re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(EXERCISES) == list(range(1, 13))
    for number, title, anchor, functions, points in rows:
        exercise = EXERCISES[int(number)]
        assert f"\n### {number}. {title}\n" in text and title.lower() == exercise.title.lower()
        assert anchor == f"{number}-{title.lower().replace(' ', '-').replace(',', '')}"
        names = [function.split(":")[1] for function in exercise.functions]
        assert [name.rpartition(".")[2] for name in re.findall("`(.+?)`", functions)] == [
            name.rpartition(".")[2] for name in names
        ]
        assert int(points) == len(course.points(int(number)))
        section = text.partition(f"\n### {number}. ")[2].partition("\n### ")[0]
        for word in ("*You learn*", "```text\n", "*Write*", f"*Graded by* `TestExercise{number}`", "*Then:*"):
            assert word in section, (number, word)
