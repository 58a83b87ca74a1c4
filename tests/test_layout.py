"""The house looks as docs/contributing.md draws it: numbers of files and lines, and which file imports which."""

import ast

import pytest
from conftest import ROOT

METHOD = ["dualmd", "unet", "attacks", "metrics"]
SCRIPTS = ["train", "sample", "evaluate", "reproduce"]
TOP = [*METHOD, "data", "fid", *SCRIPTS]
READING_PATH = ["dualmd", "attacks", "train", "unet"]


def sources(folder="."):
    """{name: source} of the Python files in a folder of the project."""
    return {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / folder).glob("*.py")}


def lines(*texts):
    return sum(len(text.splitlines()) for text in texts)


def imports(source):
    """The modules of this project that a file imports: "data", "lab.files", ..."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} if node.module != "lab" else {f"lab.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in {*TOP, "lab", "course", "tools", "tests"}}


def test_the_top_level_is_the_card():
    top = sources()
    assert sorted(top) == sorted(TOP)
    assert lines(*top.values(), *sources("lab").values()) <= 5065
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and list(path.rglob("*.py"))}
    assert folders - {"data", "runs", "my-solution", ".venv"} == {"lab", "course", "tools", "tests"}


@pytest.mark.parametrize("folder, most", [("course", 1800), ("tools", 1024)])
def test_each_folder_keeps_its_limit(folder, most):
    assert lines(*sources(folder).values()) <= most


def test_the_reading_path_is_short():
    assert lines(*(sources()[name] for name in READING_PATH)) <= 850


@pytest.mark.parametrize("name", METHOD)
def test_the_method_imports_nothing_of_the_laboratory(name):
    assert imports(sources()[name]) <= set(METHOD)


@pytest.mark.parametrize("name", TOP)
def test_nobody_imports_a_script(name):
    others = sources() | sources("lab")
    assert not [file for file, source in others.items() if name in SCRIPTS and name in imports(source)]


def test_the_laboratory_stands_on_the_method_and_course_and_tools_on_top():
    for source in (*sources().values(), *sources("lab").values()):
        assert not {name.split(".")[0] for name in imports(source)} & {"course", "tools", "tests"}


def test_imports_form_no_circle():
    files = sources() | {f"lab.{name}": source for name, source in sources("lab").items()}
    order, left = [], {name: imports(source) & files.keys() for name, source in files.items()}
    while left:
        ready = [name for name, needs in left.items() if needs <= set(order)]
        assert ready, f"these import each other: {sorted(left)}"
        order += ready
        left = {name: needs for name, needs in left.items() if name not in ready}


def test_train_is_read_from_top_to_bottom():
    """The loop stands in the open: few helpers come from lab/, and no function is long."""
    tree, modules, helpers = ast.parse(sources()["train"]), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "lab":
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("lab."):
            helpers |= {alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            helpers.add(f"{node.value.id}.{node.attr}")
    assert len(helpers) <= 15, helpers
