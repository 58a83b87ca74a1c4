"""course/: hand-outs without answers, and grades that are right, say what was expected, and cannot be cheated."""

import ast
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT, tree
from right_solutions import SOLUTIONS

from course import __main__ as course
from course import cases, grading, handout, mistakes
from course.exercises import EXERCISES, function_lines
from course.grading import same
from lab.checkpoint import load_run
from lab.files import BadInput

SOURCES = {exercise.file: (ROOT / exercise.file).read_text(encoding="utf-8") for exercise in EXERCISES.values()}


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


def outcomes(number, source, seed):
    """What a solution, an exercise's file with this source, answers to the questions of each check."""
    checks = cases.checks(number, mistakes.modules_with(number, source), seed)
    return [[cases.outcome(ask) for ask in parts.values()] for *_, parts in checks]


def caught(number, source, seed):
    """The numbers of the checks that find something wrong, from 1."""
    pairs = zip(outcomes(number, source, seed), mistakes.right(number, seed), strict=True)
    return [i for i, (got, wanted) in enumerate(pairs, 1) if not all(map(same, got, wanted))]


# --- the grades ----------------------------------------------------------------------------------


def slowly(number, *rest):
    """Parameters of a test: exercise 11's bootstraps take seconds."""
    return pytest.param(number, *rest, marks=[pytest.mark.slow] if number == 11 else [])


@pytest.mark.parametrize("number", [slowly(number) for number in EXERCISES])
@pytest.mark.parametrize("seed", [0, 1])
def test_right_solutions_that_are_written_differently_have_all_points(number, seed):
    assert len(SOLUTIONS[number]) >= 3
    for name, bodies in SOLUTIONS[number].items():
        source = SOURCES[EXERCISES[number].file]
        for function, body in bodies.items():
            assert function in EXERCISES[number].functions
            first, last = function_lines(source, function)
            lines = source.splitlines()
            indent = re.match(" *", lines[first])[0]
            lines[first:last] = [(indent + line).rstrip() for line in body.strip("\n").splitlines()]
            source = "\n".join(lines) + "\n"
        assert source != SOURCES[EXERCISES[number].file] and caught(number, source, seed) == [], name


MISTAKES = [(number, *mistake) for number in EXERCISES for mistake in mistakes.MISTAKES[number]]


@pytest.mark.parametrize("number", EXERCISES)
def test_there_are_enough_mistakes(number):
    names = [(check, name) for check, name, *_ in mistakes.MISTAKES[number]]
    assert len(names) >= 8 and len(set(names)) == len(names)
    # no check is there for nothing
    assert {check for check, _ in names} == set(range(1, len(cases.checks(number)) + 1))


@pytest.mark.parametrize("number, check, mistake, edits", [slowly(n, c, m, e) for n, c, m, *e in MISTAKES])
def test_each_mistake_is_caught_and_called_by_its_name(number, check, mistake, edits):
    """With the hand-out's seed and with the teacher's, by the check that the table names. Two may look the same."""
    at = mistakes.MISTAKES[number].index((check, mistake, *edits))
    for seed in (0, 1) if number != 11 else (1,):
        wrong, right = mistakes.mistaken(number, check - 1, seed), mistakes.right(number, seed)[check - 1]
        outcomes = wrong[at][1]
        part = next(i for i, pair in enumerate(zip(outcomes, right, strict=True)) if not same(*pair))
    alike = [name for name, its in wrong if all(map(same, its, outcomes))]
    said = grading.hint(number, check - 1, part, outcomes, right)
    assert mistake in alike and said == f" It looks as if {alike[0]}."


def test_what_is_the_same():
    def array(*values, shape=None):
        return {"shape": [len(values)] if shape is None else shape, "values": list(values)}

    assert same({"answer": 1.00005}, {"answer": array(1.0, shape=[])})
    assert same([1, 2], array(1.0, 2.0)) and same([[1, "a"], None], [[1.0, "a"], None])
    for got in (1.001, [1.0], "1", None, {"shape": [], "values": [2.0]}, {"shape": [5], "values": [1.0]}, float("nan")):
        assert not same(got, 1.0)
    assert not same(array(1.0, 2.0), array(1.0, 2.0, shape=[2, 1]))
    assert not same(array(0.0, 1.0), array(1e-3, 1.0)), "small numbers beside large ones count"
    assert not same({"raised": "x"}, {"answer": 1}) and not same(True, "yes") and not same([1], [1, 2])
    assert not same({"shape": ["x"], "values": 3}, 1.0) and not same({"values": [1.0]}, 1.0)


def test_hints_that_need_no_table():
    def said(got, wanted):
        return grading.hint(7, 0, 0, [{"answer": got}] * 2, [{"answer": wanted}] * 2)

    assert said([-3.0, 2.0], [3.0, -2.0]) == " It is right up to the sign."
    assert said([6.0, 4.0], [3.0, 2.0]) == " Each number is 2 times what it should be."
    assert said([[3.0], [2.0]], [3.0, 2.0]) == " The numbers are right, but not the shape."
    assert said(None, [3.0]) == " Is there a `return`?"
    assert said([3.0, 7.0], [3.0, 2.0]) == said([1.0], [3.0, 2.0]) == said("x", [3.0]) == ""


def test_points_follow_effort():
    worth = {10: 1, 20: 2, 40: 3, 60: 5, 90: 8}
    sums = {number: sum(points for points, *_ in cases.checks(number)) for number in EXERCISES}
    assert sums == {number: worth[exercise.minutes] for number, exercise in EXERCISES.items()}
    assert sum(sums.values()) == 40


@pytest.mark.parametrize("number", EXERCISES)
def test_the_stored_outcomes_are_right(number):
    stored = json.loads(grading.OUTCOMES.read_text())[str(number)]["right"]
    for old, new in zip(stored, mistakes.right(number, 0), strict=True):
        assert len(old) == len(new) and all(map(same, old, new))


@pytest.mark.slow
def test_the_stored_outcomes_name_all_mistakes(monkeypatch):
    """It makes all mistakes, and asks all questions, but those of exercise 11, which take long."""
    stored = json.loads(grading.OUTCOMES.read_text())
    named = {name for check in stored["11"]["mistakes"] for name, _ in check}
    assert named == {name for _, name, *_ in mistakes.MISTAKES[11]}
    monkeypatch.setattr(grading, "EXERCISES", [number for number in EXERCISES if number != 11])
    for number, its in grading.stored().items():
        for old, new in zip(stored[str(number)]["mistakes"], its["mistakes"], strict=True):
            assert [name for name, _ in old] == [name for name, _ in new]


# --- the hand-out --------------------------------------------------------------------------------


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


@pytest.fixture(scope="module")
def handouts(tmp_path_factory):
    """A hand-out of each exercise, and, as number 0, one of all of them."""
    folder = tmp_path_factory.mktemp("handouts")
    for number in EXERCISES:
        handout.start([number], folder / str(number))
    handout.start(list(EXERCISES), folder / "0", classroom=True)
    return folder


def test_nothing_is_missing_but_the_bodies_of_the_functions(handouts):
    """The docstrings stay, and a hint stands where the body was."""
    for number, exercise in EXERCISES.items():
        copy, holes = handouts / str(number), {}
        for path in ROOT.glob("*.py"):
            before, after = bodies(path.read_text()), bodies((copy / path.name).read_text())
            assert before.keys() == after.keys()
            holes |= {name: after[name] for name in before if before[name] != after[name]}
        whole, file = bodies(SOURCES[exercise.file]), (copy / exercise.file).read_text()
        assert set(holes) == set(exercise.functions)
        for name, body in holes.items():
            assert body[-1].startswith("raise NotImplementedError(") and body[:-1] in ([], whole[name][:1])
            assert f"# Exercise {number}. {exercise.hint[:40]}" in file and max(map(len, file.splitlines())) <= 120


def words_of(text):
    """The tokens of a text that need not be Python, without white space and without commas before brackets."""
    return re.findall(r"\w+|[^\w\s]", re.sub(r",(\s*[)\]}])", r"\1", text))


# statements that an exercise removes, and that stay elsewhere: they are no answers by themselves
SHARED = {
    "signal, noise = self._signal_and_noise(t, x_t)": "predict_eps, which nobody has to write, begins like predict_x0",
    "random = np.random.RandomState(seed)": "the bootstrap's generator is made in the same way",
    "eps = _noise(x0, generator)": "gsa draws the noise of one query, too",
    "def resample(random: np.random.RandomState) -> float:": "the head of the bootstrap of `published`",
}


def removed(number):
    """The statements that an exercise takes away, as source without comments: heads of those with a body."""
    for name in EXERCISES[number].functions:
        first, last = function_lines(SOURCES[EXERCISES[number].file], name)
        body = SOURCES[EXERCISES[number].file].splitlines()[first:last]
        for node in ast.walk(ast.parse("\n".join(["if 1:", *body]))):
            if isinstance(node, ast.stmt):
                text = ast.get_source_segment("\n".join(["if 1:", *body]), node)
                inner = getattr(node, "body", None)
                if inner and text != "\n".join(["if 1:", *body]):
                    text = text[: text.index(ast.get_source_segment("\n".join(["if 1:", *body]), inner[0]))]
                if text and not text.startswith("if 1:"):
                    yield "\n".join(line.partition("  # ")[0] for line in text.splitlines() if line.strip()[:1] != "#")


@pytest.mark.parametrize("number", [0, *EXERCISES])
def test_the_handout_has_no_removed_statement(handouts, number):
    files = [path for path in (handouts / str(number)).rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".pyc", ".zip") or "test" in path.name or "KEY" in path.name]
    texts = {}
    for path in files:
        if path.suffix not in (".png", ".pt"):
            texts[path.name] = "\x00".join(["", *words_of(path.read_text(encoding="utf-8")), ""])
    for one in [number] if number else EXERCISES:
        for statement in removed(one):
            tokens = words_of(statement)
            for part in (tokens, tokens[1:] if tokens[0] == "return" else tokens):
                found = {name for name, text in texts.items() if "\x00".join(["", *part, ""]) in text}
                if len(part) >= 4 and found:
                    print("SHARED?", one, repr(statement.strip()), found)
                    assert statement.strip() in SHARED, found


def test_the_handout_s_links_lead_on(handouts):
    for path in (handouts / "0").rglob("*.md"):
        for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", path.read_text()):
            missing = ("http", "../tests/", "../tools/", "../.ci/")  # what students get no copy of
            assert target.startswith(missing) or (path.parent / target).exists(), (path.name, target)


def test_start_says_where_to_write(tmp_path, monkeypatch, capsys):
    """In any order, and once."""
    status, said = call(monkeypatch, capsys, "start", 7, 2, 7, "--out", tmp_path / "s")
    lines = (tmp_path / "s" / "dualmd.py").read_text().splitlines()
    found = re.findall(r"^  (.+), line (\d+): (.+)$", said, re.MULTILINE)
    assert status == 0 and [name for *_, name in found] == [*EXERCISES[7].functions, *EXERCISES[2].functions]
    for path, line, name in found:
        assert path == str(tmp_path / "s" / "dualmd.py")
        assert f": {name.rpartition('.')[2]} is not written yet" in lines[int(line) - 1]
    assert said.endswith(f"\n  python -m course grade 7 2 --in {tmp_path / 's'}\n")


def test_the_documents_name_the_exercise_instead(handouts):
    """All other lines stay as they are."""
    for document in ("README.md", "course/EXERCISES.md", "docs/manual.md"):
        before, after = ((where / document).read_text().splitlines() for where in (ROOT, handouts / "0"))
        changed = [new for new in after if new not in before]
        assert all(line.lstrip().startswith("# a line of exercise ") for line in changed)
        assert len(changed) > 8 or document != "README.md"
    assert "# a line of exercise 5\n# a line of exercise 5\n" in (handouts / "5" / "README.md").read_text()


@pytest.mark.slow
def test_an_untouched_handout_has_no_points_and_the_key_s_answer_all(tmp_path, monkeypatch, capsys, handouts):
    """With the hand-out's own grader, and with the teacher's."""
    for folder, numbers in ((handouts / "0", list(EXERCISES)), (ROOT, [5, 10])):
        words = [
            sys.executable,
            "-m",
            "course",
            "grade",
            "--as",
            "json",
            "--in",
            str(handouts / "0"),
            *map(str, numbers),
        ]
        result = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        grades = json.loads(result.stdout)
        assert result.returncode == 1 and [one["exercise"] for one in grades] == numbers
        for one in grades:
            assert one["points"] == 0 and all("is not written yet." in check["message"] for check in one["checks"])
    solution = shutil.copytree(handouts / "5", tmp_path / "s")
    _, said = call(monkeypatch, capsys, "key", 5)
    answer = re.search(r"```python\n(.*?)\n```", said, re.DOTALL)[1]
    assert "**Then.**" in said and "    2  points in all" in said and "## 6" not in said
    source = (solution / "dualmd.py").read_text()
    first, last = function_lines(source, "NoiseSchedule.ddpm_step")
    lines = source.splitlines()
    lines[first:last] = ["        " + line for line in answer.splitlines()]
    (solution / "dualmd.py").write_text("\n".join(lines) + "\n")
    for folder, words in ((solution, []), (ROOT, ["--in", str(solution)])):
        command = [sys.executable, "-m", "course", "grade", "5", *words]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert result.returncode == 0 and result.stdout.endswith("  2 of 2 points\n"), result.stdout
    command = [sys.executable, "-c", "import train, sample, evaluate, reproduce"]
    assert subprocess.run(command, cwd=solution, capture_output=True).returncode == 0


def test_the_key_has_everything(monkeypatch, capsys):
    status, said = call(monkeypatch, capsys, "key")
    assert status == 0 and said.count("**Then.**") == 12 and said.count("**What is known.**") == 4
    assert said.count("**Full marks.**") == said.count("**Misconception.**") == 16
    assert said.count("```python\n") == sum(len(exercise.functions) for exercise in EXERCISES.values())
    document = (ROOT / "course" / "EXERCISES.md").read_text()
    for name in re.findall(r"^## Open: (.*)$", said, re.MULTILINE):
        assert f"\n**{name}.** " in document


# --- submissions ---------------------------------------------------------------------------------


def solved(*numbers):
    """dualmd.py, in which all exercises but these are missing."""
    source = SOURCES["dualmd.py"]
    for number, exercise in EXERCISES.items():
        if exercise.file == "dualmd.py" and number not in (1, 2, *numbers):
            for name in exercise.functions:
                source = handout.cut(source, name, number)
    return source


def points(grades):
    return {one["exercise"]: one["points"] for one in grades}


def test_names_that_learning_platforms_write():
    for name, meant in (
        ("dualmd.py", ("dualmd.py", "")),
        ("smith_dualmd.py", ("dualmd.py", "smith")),
        ("smithanna_1234_5678_attacks-1.py", ("attacks.py", "smithanna_1234_5678")),
        ("kim_metrics (2).py", ("metrics.py", "kim")),
        ("kim - fid.py", ("fid.py", "kim")),
        ("helper.py", ("", "")),
        ("dualmd.txt", ("", "")),
        ("dualmd_old.py", ("", "")),
    ):
        assert grading.own_file(name) == meant


def test_a_submission_is_a_folder_files_or_a_zip(tmp_path):
    """The files beside the uppermost one that belongs to an exercise; exact names before those with a prefix."""
    folder = tmp_path / "folder" / "my work"
    for path in ("dualmd.py", "old_dualmd.py", "helper.py", "deeper/dualmd.py", ".hidden/dualmd.py", "notes.txt"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)
    with zipfile.ZipFile(tmp_path / "work.zip", "w") as archive:
        for path in ("work/dualmd.py", "work/helper.py", "__MACOSX/dualmd.py", "work/deeper/dualmd.py"):
            archive.writestr(path, path.removeprefix("work/"))
    (tmp_path / "moodle").mkdir()
    shutil.copy(tmp_path / "work.zip", tmp_path / "moodle" / "work.zip")
    for name in ("folder", "work.zip", "moodle"):
        files = grading.submitted(tmp_path / name)
        assert files["dualmd.py"] == b"dualmd.py" and files["helper.py"] == b"helper.py" and "notes.txt" not in files
    for name in ("smith_dualmd.py", "smith_metrics-1.py"):
        (tmp_path / name).write_text(name)
    files = grading.submitted(tmp_path / "smith_dualmd.py", tmp_path / "smith_metrics-1.py")
    assert files["dualmd.py"] == b"smith_dualmd.py" and files["metrics.py"] == b"smith_metrics-1.py"
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "dualmd.py").symlink_to(ROOT / "dualmd.py")
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "dualmd.py").write_text(solved(5) + "#" * grading.LARGEST)
    (tmp_path / "torn.zip").write_bytes((tmp_path / "work.zip").read_bytes()[:300])
    (tmp_path / "essay.txt").write_text("I could not do it.")
    for name in ("link", "large", "torn.zip", "essay.txt", "nothing"):
        with pytest.raises(BadInput, match=re.escape(str(tmp_path / name))):
            grading.submitted(tmp_path / name)


@pytest.mark.slow
def test_other_files_come_from_the_course(tmp_path):
    """A module that the course does not have comes from the submission. A file that is missing has no points."""
    source = solved(5).replace("import torch\n", "import helper\nimport torch\n", 1)
    grades = grading.grade([5, 7, 9], {"dualmd.py": source.encode(), "helper.py": b"", "unet.py": b"boom"})
    assert points(grades) == {5: 2, 7: 0, 9: 0}
    assert {check["message"] for check in grades[2]["checks"]} == {"attacks.py was not submitted."}


@pytest.mark.slow
def test_a_question_that_hangs_costs_only_its_exercise(monkeypatch):
    monkeypatch.setattr(grading, "SECONDS", 4)
    source = solved(3, 5, 7).replace("mean = (x - beta", "while z.any(): pass\n        mean = (x - beta")
    grades = grading.grade([7, 5, 3], {"dualmd.py": source.encode()})
    assert points(grades) == {3: 1, 5: 0, 7: 2}
    said = [check["message"].partition(": ")[2] for one in grades if one["exercise"] == 5 for check in one["checks"]]
    assert said[:2] == ["the solution was not finished after 4 seconds."] * 2
    assert said[2:] == ["the solution was not asked: it was stopped 2 times."] * 2


IMPORT = r"dualmd\.py cannot be imported: "
WRONG = {
    "it does not parse": ("def add_noise(:\n", IMPORT + r"SyntaxError: .* \(dualmd\.py, line 1\)"),
    "a module is missing": ("import nothing\n", IMPORT + r"ModuleNotFoundError: .*nothing.*line 1\)"),
    "it ends": ("import os\nos._exit(0)\n", IMPORT + "it ended the Python process."),
    "it sleeps": ("import time\ntime.sleep(600)\n", IMPORT + "it was not finished after 4 seconds."),
    "it waits for input": ("input()\n", IMPORT + "EOFError.*"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_run_gets_no_points_and_one_reason(tmp_path, monkeypatch, name):
    text, message = WRONG[name]
    if name == "it sleeps":
        monkeypatch.setattr(grading, "SECONDS", 4)
    (tmp_path / "dualmd.py").write_text(text)
    (graded,) = grading.grade([2], grading.submitted(tmp_path))
    assert graded["points"] == 0 and graded["of"] == 2
    assert all(re.fullmatch(message, check["message"]) for check in graded["checks"])
    assert grading.in_words(graded).count("cannot be imported") == 1


@pytest.mark.slow
def test_a_mistake_is_called_by_its_name(tmp_path):
    source = solved(5, 7)
    for right, wrong in (
        ("mean + beta**0.5 * z if t > 0 else mean", "mean + beta * z"),
        ("(t // self.stride) % 2 == 0", "(t // self.stride) % 2 == 1"),
    ):
        assert right in source
        source = source.replace(right, wrong)
    (tmp_path / "dualmd.py").write_text(source)
    ancestral, turns = grading.grade([5, 7], grading.submitted(tmp_path))
    assert [check["points"] for check in ancestral["checks"]] == [0.5, 0, 0, 0.5] and turns["points"] == 0
    words = " ".join(grading.in_words(ancestral).split())
    assert "It looks as if the root of beta_t is missing." in words and "1 of 2 points" in words
    assert re.search(r"the change by z = \S+ at t = 2 should be \[\S+\]. It was \[\S+\].", words)
    assert "It looks as if B answers first: A and B are swapped." in " ".join(grading.in_words(turns).split())


# what a student may try in dualmd.py, instead of writing exercise 5; the rest of the file is untouched
CHEATS = {
    "compare everything as equal": "import math, numpy\nnumpy.allclose = numpy.array_equal = lambda *a, **k: True\n"
    "torch.allclose = torch.equal = torch.testing.assert_close = math.isclose = lambda *a, **k: True\n",
    "patch pytest": "import sys, types\nsys.modules['pytest'] = types.ModuleType('pytest')\n",
    "return what equals everything": "class Same(float):\n    __eq__ = lambda self, other: True\n    __hash__ = None\n"
    "NoiseSchedule.ddpm_step = lambda *a, **k: Same(1)\n",
    "exit with success": "import atexit, os\natexit.register(os._exit, 0)\n"
    "def leave(*a, **k): raise SystemExit(0)\nNoiseSchedule.ddpm_step = leave\n",
    "forge the report": "import json, os\nfor fd in range(3, 30):\n    try:\n"
    "        for i in range(99): os.write(fd, json.dumps([i, {'answer': True}]).encode() + b'\\n')\n"
    "    except OSError: pass\n"
    "open('report.xml', 'w').write('<testsuite tests=\"4\" failures=\"0\"/>')\n",
    "patch json": "import json\njson.dumps = lambda *a, **k: '[0, {\"answer\": true}]'\n",
    "patch the asker": "import sys\nsys.modules['__main__'].outcome = lambda ask: {'answer': 0.5}\n",
    "stop the clock": "import time\ntime.monotonic = time.time = lambda: 0.0\n",
    "fork, and let the child go on": "import os\nif os.fork(): os._exit(0)\nos.setsid()\n",
    "look for the answers": "import os, pathlib, sys\nfor start in [*sys.path, sys.argv[0], os.getcwd()]:\n"
    "    for folder in list(pathlib.Path(start).resolve().parents)[:3]:\n"
    "        for name in ('outcomes.json', 'course/outcomes.json', 'dualmd.py', 'course/mistakes.py'):\n"
    "            if (folder / name).exists() and (folder / name).resolve() != pathlib.Path(__file__).resolve():\n"
    "                exec((folder / name).read_text())\n",
    "look at the caller": "import inspect\ndef spy(*a, **k):\n    for frame in inspect.stack():\n"
    "        for name, value in frame.frame.f_locals.items():\n"
    "            if name in ('wanted', 'right', 'answer'): return value\n"
    "NoiseSchedule.ddpm_step = spy\n",
    "know the hand-out's outcomes": "STORED = iter([stored['answer'] for check in OUTCOMES for stored in check] * 9)\n"
    "NoiseSchedule.ddpm_step = lambda self, x, *a, **k: torch.tensor(next(STORED)['values'])[:, None, None, None]"
    ".expand(-1, 3, 1, 1)\n",
    "nest the answers deeply": "import os\nfor fd in range(3, 30):\n    try:\n"
    "        for i in range(99): os.write(fd, b'[%d, {\"answer\": ' % i + b'[' * 900 + b']' * 900 + b'}]\\n')\n"
    "    except OSError: pass\nNoiseSchedule.ddpm_step = lambda *a, **k: os._exit(0)\n",
    "print megabytes": "import sys\nfor i in range(300): print('1 passed' * 10**5)\n",
    "take all memory": "held = []\nwhile True: held.append(bytearray(10**8))\n",
}  # fmt: skip


@pytest.mark.slow
def test_cheating_earns_nothing_and_costs_nobody_else(tmp_path, monkeypatch, capsys):
    """In a batch with an honest solution, and with two that hang."""
    monkeypatch.setattr(grading, "SECONDS", 4)
    known = repr(json.loads(grading.OUTCOMES.read_text())["5"]["right"][:1])
    for i, code in enumerate(CHEATS.values()):
        (tmp_path / "class" / f"cheat-{i:02}").mkdir(parents=True)
        (tmp_path / "class" / f"cheat-{i:02}" / "dualmd.py").write_text(solved() + code.replace("OUTCOMES", known))
    sleep = "import time\nNoiseSchedule.ddpm_step = lambda *a, **k: time.sleep(99)\n"
    hangs = {"hang-1": "while True: pass\n", "hang-2": sleep}
    for name, code in hangs.items():
        (tmp_path / "class" / f"{name}_dualmd.py").write_text(solved() + code)
    (tmp_path / "class" / "honest_dualmd.py").write_text(solved(5))
    (tmp_path / "class" / "honest_metrics.py").write_text(SOURCES["metrics.py"])
    (tmp_path / "class" / "=1+1").mkdir()
    (tmp_path / "class" / "index.html").touch()
    (tmp_path / "class" / "sloppy.zip").write_text("no zip")
    words = ["grade", 5, 10, "--batch", tmp_path / "class", "--csv", tmp_path / "marks.csv"]
    assert call(monkeypatch, capsys, *words)[0] == 0
    with open(tmp_path / "marks.csv", newline="") as file:
        rows = {row["submission"]: row for row in csv.DictReader(file)}
    assert len(rows) == len(CHEATS) + 5
    given = {name: (row["5 (of 2)"], row["10 (of 3)"], row["in all"]) for name, row in rows.items()}
    assert {name: its for name, its in given.items() if its[2] != "0"} == {"honest": ("2", "3", "5")}
    remarks = {name: row["remarks"] for name, row in rows.items()}
    for name, its in remarks.items():
        assert not name.startswith("cheat") or re.match(r"5: .+ 10: metrics\.py was not submitted\.$", its), (name, its)
    assert remarks["honest"] == "" and remarks["sloppy.zip"].startswith("5: Nothing was submitted: sloppy.zip")
    assert "'=1+1" in rows
    details = json.loads((tmp_path / "marks.json").read_text())
    assert len(details) == len(rows) and points(details["honest"]) == {5: 2, 10: 3}


def runs_as_nobody():
    """Can this process let the user `nobody` run Python?"""
    if not hasattr(os, "geteuid") or os.geteuid():
        return False
    try:
        done = subprocess.run([sys.executable, "-c", "import torch"], user="nobody", cwd="/", capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


# --- the services --------------------------------------------------------------------------------


@pytest.mark.slow
def test_gradescope_s_zip_grades_in_a_clean_folder(tmp_path, monkeypatch, capsys):
    """As the service does: unpack to source/, run setup.sh once, then run_autograder for a submission."""
    assert call(monkeypatch, capsys, "gradescope", 5, 9, "--out", tmp_path / "autograder.zip")[0] == 0
    subprocess.run(["unzip", "-q", tmp_path / "autograder.zip", "-d", tmp_path / "source"], check=True)
    assert {"setup.sh", "run_autograder", "dualmd.py", "course/mistakes.py"} <= set(tree(tmp_path / "source"))
    assert os.access(tmp_path / "source" / "run_autograder", os.X_OK)
    setup = (tmp_path / "source" / "setup.sh").read_text()
    assert subprocess.run(["bash", "-n", tmp_path / "source" / "setup.sh"]).returncode == 0
    assert '"$root/source/requirements.txt"' in setup and '"$root/venv"' in setup
    # instead of setup.sh, which installs packages: the environment of this test
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "venv" / "bin" / "python").chmod(0o755)
    run = (tmp_path / "source" / "run_autograder").read_text()
    if not runs_as_nobody():
        run = run.replace("as=(--user nobody)", "as=()")
    (tmp_path / "run_autograder").write_text(run)
    environment = os.environ | {"AUTOGRADER": str(tmp_path)}

    def results(**files):
        shutil.rmtree(tmp_path / "submission", ignore_errors=True)
        (tmp_path / "submission").mkdir()
        for name, text in files.items():
            (tmp_path / "submission" / name.replace("_py", ".py")).write_text(text)
        done = subprocess.run(["bash", tmp_path / "run_autograder"], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / "results" / "results.json").read_text())

    found = results(dualmd_py=solved(5))
    assert sum(test["score"] for test in found["tests"]) == 2 and sum(test["max_score"] for test in found["tests"]) == 7
    for test in found["tests"]:
        assert test.keys() == {"score", "max_score", "name", "number", "output", "visibility"}
        assert test["visibility"] == "after_due_date" and (test["score"] == test["max_score"]) == (not test["output"])
    assert found["visibility"] == "visible" and "dualmd.py" in found["output"] and "attacks.py" not in found["output"]
    found = results(essay_py="")
    assert sum(test["score"] for test in found["tests"]) == 0 and "nothing that belongs" in found["output"]


@pytest.mark.slow
def test_the_classroom_s_steps_grade_in_a_clean_folder(tmp_path, handouts):
    workflow = (handouts / "0" / ".github" / "workflows" / "classroom.yml").read_text()
    steps = re.findall(r"^ +run: (.+)$", workflow, re.MULTILINE)
    assert len(steps) == 2 and steps[0].startswith("pip install ") and steps[0].endswith(" -r requirements.txt")
    assert "name: Autograding Tests\n" in workflow and "  run-autograding-tests:\n" in workflow
    copy = shutil.copytree(handouts / "0", tmp_path / "repository")
    (copy / "metrics.py").write_text(SOURCES["metrics.py"])
    environment = os.environ | {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    environment["PATH"] = f"{os.path.dirname(sys.executable)}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(["bash", "-c", steps[1]], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "::notice title=Autograding complete::Points 11/40\n" in done.stdout
    report = re.search(r"^::notice title=Autograding report::(.*)$", done.stdout, re.MULTILINE)[1]
    assert json.loads(report) == {"totalPoints": 11, "maxPoints": 40}
    summary = (tmp_path / "summary.md").read_text()
    assert "| 10. the AUC, with ties | 3 | 3 |\n" in summary and "| in all | 11 | 40 |\n" in summary


@pytest.mark.slow
@pytest.mark.skipif(not runs_as_nobody(), reason="needs root, and a Python that everybody may run")
def test_another_user_runs_the_solution_and_cannot_read_the_course(tmp_path):
    (tmp_path / "secret").mkdir(mode=0o700)
    (tmp_path / "secret" / "dualmd.py").write_text(SOURCES["dualmd.py"])
    spy = f"import os\nprint(open({str(tmp_path / 'secret' / 'dualmd.py')!r}).read())\n"
    (tmp_path / "dualmd.py").write_text(solved(5) + spy)
    (graded,) = grading.grade([5], grading.submitted(tmp_path / "dualmd.py"), "nobody")
    assert graded["points"] == 0 and "PermissionError" in graded["checks"][0]["message"]
    (tmp_path / "dualmd.py").write_text(solved(5) + "import os\nassert os.getuid() != 0 and not os.getgroups()\n")
    assert points(grading.grade([5], grading.submitted(tmp_path / "dualmd.py"), "nobody")) == {5: 2}


# --- the small models ----------------------------------------------------------------------------


def test_the_small_models_are_small_and_have_one_split():
    paths = list((ROOT / "course" / "models").glob("*.pt"))
    models = load_run(ROOT / "course" / "models")
    assert set(models) == set(handout.MODELS) and sum(path.stat().st_size for path in paths) < 8e6
    assert {model.dataset["name"] for model in models.values()} == {"toy"}


# --- refusals, and the document ------------------------------------------------------------------


def test_refusals(tmp_path, monkeypatch, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    (tmp_path / "file").touch()
    for out in ("full", "file"):
        with pytest.raises(BadInput, match=f"--out .*{out}: exists and is not an empty directory"):
            handout.start([1], tmp_path / out)
    with pytest.raises(BadInput, match="--out .*: cannot be written"):
        handout.start([1], tmp_path / "file" / "in-it")
    with pytest.raises(BadInput, match=r"full: no dualmd.py, .* there"):
        call(monkeypatch, capsys, "grade", 1, "--in", tmp_path / "full")
    with pytest.raises(BadInput, match="--run .*full: all, A, B, distill-cross, reference not there"):
        call(monkeypatch, capsys, "models", "--run", tmp_path / "full")
    for words, message in (
        (["--batch", tmp_path / "full"], "--batch FOLDER and --csv FILE belong together"),
        (["--csv", tmp_path / "marks.csv"], "--batch FOLDER and --csv FILE belong together"),
        (["--batch", tmp_path / "none", "--csv", tmp_path / "marks.csv"], "--batch .*none: there is no such folder"),
        (["--batch", tmp_path / "full", "--csv", tmp_path / "file" / "marks.csv"], "cannot write .*marks.csv"),
        (["--user", "nobody-has-this-name"], "--user nobody-has-this-name: "),
    ):
        with pytest.raises(BadInput, match=message):
            call(monkeypatch, capsys, "grade", 1, *words)
    assert tree(tmp_path) == ["file", "full", "full/thesis.txt"]
    for words in (["start", "13", "--out", "x"], ["start", "one", "--out", "x"], ["start", "1"], ["grade", "0"], []):
        assert call(monkeypatch, capsys, *words)[0] == 2
    (tmp_path / "empty").mkdir()
    handout.start([1], tmp_path / "empty")
    assert (tmp_path / "empty" / "dualmd.py").exists() and not [path for path in os.listdir(tmp_path) if path[0] == "."]


def test_the_document_says_what_the_script_does():
    text = (ROOT / "course" / "EXERCISES.md").read_text()
    rows = re.findall(r"^\| (\d+) \| \[(.+?)\]\(#(.+?)\) \| (.+?) \| (\d+) \| (\d+) min \|$", text, re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(EXERCISES) == list(range(1, 13))
    for number, title, anchor, functions, points, minutes in rows:
        exercise = EXERCISES[int(number)]
        assert f"\n### {number}. {title}\n" in text and title.lower() == exercise.title.lower()
        assert anchor == f"{number}-{title.lower().replace(' ', '-').replace(',', '')}"
        names = [name.rpartition(".")[2] for name in exercise.functions]
        assert [name.rpartition(".")[2] for name in re.findall("`(.+?)`", functions)] == names
        assert int(points) == sum(each for each, *_ in cases.checks(int(number))) and int(minutes) == exercise.minutes
        section = text.partition(f"\n### {number}. ")[2].partition("\n### ")[0]
        for word in ("*You learn*", "```text\n", "*Write*", f"in `{exercise.file}`", "*Graded:*", "*Then:*"):
            assert word in section, (number, word)
