"""tools/mutate.py: the errors that it makes, and that it tells noticed errors from unnoticed ones."""

import ast
import json
import subprocess
import sys

import pytest
from conftest import ROOT

from tools import mutate


def test_errors_are_of_these_kinds():
    made = {mutant.name for mutant in mutate.mutants("dualmd.py")}
    for error in (
        "dualmd.py:NoiseSchedule.add_noise: signal * x0 + noise * eps -> signal * x0 - noise * eps",
        "dualmd.py:NoiseSchedule.add_noise: signal -> noise",
        "dualmd.py:NoiseSchedule._signal_and_noise: alpha_bar.sqrt() -> alpha_bar",
        "dualmd.py:NoiseSchedule.ddpm_step: t -> t - 1",
        "dualmd.py:NoiseSchedule.ddpm_step: t > 0 -> t >= 0",
        "dualmd.py:DualMD.__call__: self.model_a -> self.model_b",
        "dualmd.py:DualMD.__call__: t // self.stride % 2 == 0 -> t // self.stride % 2 != 0",
        "dualmd.py:distill_targets: @torch.no_grad() -> ",
        "dualmd.py:distill_targets: teacher_b -> teacher_a",
    ):
        assert error in made, error


def test_each_is_one_change_of_the_source():
    source = (ROOT / "attacks.py").read_text()
    mutants = mutate.mutants("attacks.py")
    assert len({mutant.name for mutant in mutants}) == len(mutants)
    assert len({mutant.source for mutant in mutants}) > 0.95 * len(mutants)
    for mutant in mutants:
        assert mutant.source != source and ast.parse(mutant.source)


@pytest.mark.slow
def test_reasons_are_of_errors_that_are_made():
    made = {mutant.name for target in mutate.TARGETS for mutant in mutate.mutants(target)}
    for table, reasons in mutate.REASONS.items():
        assert reasons.keys() <= made, f"in tools/mutants.json, {table}: no longer made"
        assert all(reasons.values())


SAME, UNNOTICED = "unet.py:Attention.forward: q -> k (2)", "unet.py:Attention.forward: k -> q"


def pretend(mutant, seconds):
    return mutant.name in ("", SAME, UNNOTICED)


def test_the_report_has_each_unnoticed_error_and_its_reason(monkeypatch, capsys):
    monkeypatch.setattr(mutate, "survives", pretend)
    monkeypatch.setattr(mutate, "REASONS", {"equivalent": {SAME: "alike"}, "accepted": {}})
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    monkeypatch.setattr(sys, "argv", ["mutate.py", "unet.py:Attention"])
    made = len(mutate.mutants("unet.py:Attention"))
    mutate.main()
    report = json.loads(capsys.readouterr().out)
    assert (report["mutants"], report["equivalent"], report["killed"]) == (made, 1, made - 2)
    assert report["score"] == round((made - 2) / (made - 1), 4)
    assert report["equivalents"] == {SAME: "alike"} and report["survivors"] == {UNNOTICED: None}
    monkeypatch.setattr(mutate, "REASONS", {"equivalent": {SAME: "alike"}, "accepted": {UNNOTICED: "rare"}})
    mutate.main()
    assert json.loads(capsys.readouterr().out)["survivors"] == {UNNOTICED: "rare"}


@pytest.mark.slow
def test_tests_notice_errors():
    command = [sys.executable, "-m", "tools.mutate", "unet.py:DownSample"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    report = json.loads(result.stdout)
    assert report["mutants"] == report["killed"] >= 5 and report["score"] == 1, result.stderr
