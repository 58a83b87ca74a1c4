"""tests/mutate.py: what it makes of the code, and that it tells who is noticed from who is not."""

import ast
import json
import subprocess
import sys

import pytest
from conftest import ROOT

from tools import mutate


def test_errors_are_of_the_kinds_that_it_says():
    made = {str(mutant) for mutant in mutate.mutants("dualmd.py", [])}
    for error in (
        "dualmd.py:NoiseSchedule.add_noise: signal * x0 + noise * eps -> signal * x0 - noise * eps",
        "dualmd.py:NoiseSchedule.add_noise: signal -> noise",
        "dualmd.py:NoiseSchedule._tables: alpha_bar.sqrt() -> alpha_bar",
        "dualmd.py:NoiseSchedule.ddpm_step: t -> t - 1",
        "dualmd.py:NoiseSchedule.ddpm_step: t > 0 -> t >= 0",
        "dualmd.py:DualMD.__call__: self.model_a -> self.model_b",
        "dualmd.py:DualMD.__call__: (t // self.stride) % 2 == 0 -> t // self.stride % 2 != 0",
        "dualmd.py:distill_targets: @torch.no_grad() -> ",
        "dualmd.py:distill_targets: teacher_b -> teacher_a",
    ):
        assert error.replace("(t // self.stride) %", "t // self.stride %") in made, error


def test_each_is_one_change_of_the_source():
    source = (ROOT / "attacks.py").read_text()
    mutants = mutate.mutants("attacks.py", [])
    assert len({mutant.source for mutant in mutants}) > 0.95 * len(mutants)
    for mutant in mutants:
        assert mutant.source != source and ast.parse(mutant.source)


@pytest.mark.slow
def test_what_no_test_notices_survives(tmp_path):
    command = [sys.executable, "-m", "tools.mutate", "unet.py:DownSample"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    report = json.loads(result.stdout)
    assert report["mutants"] == report["killed"] >= 5 and report["score"] == 1, result.stderr
