"""The twelve exercises: which functions are to be written, and a hint that stands in their place."""

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Exercise:
    title: str
    minutes: int  # 10 minutes are worth 1 point, 20 are 2, 40 are 3, an hour is 5, an hour and a half are 8
    file: str
    functions: tuple[str, ...]
    hint: str


EXERCISES = {
    1: Exercise(
        "the noise schedule", 10, "dualmd.py", ("NoiseSchedule.__init__",),
        "Set self.T, self.beta and self.alpha_bar. The latter two are float64 tensors (T,). torch.linspace and "
        "torch.cumprod help.",
    ),
    2: Exercise(
        "noising an image, and back", 20, "dualmd.py", ("NoiseSchedule.add_noise", "NoiseSchedule.predict_x0"),
        "self._signal_and_noise(t, x) returns sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), in a shape that can be "
        "multiplied with images x.",
    ),
    3: Exercise(
        "the training loss", 10, "dualmd.py", ("training_loss",),
        "Return one number, a tensor through which a gradient can flow. torch.nn.functional is imported as F.",
    ),
    4: Exercise(
        "a DDIM step", 40, "dualmd.py", ("NoiseSchedule.ddim_step",),
        "Calculate the clean image from x and eps, and clip it if `clip` is set. Then noise it to t_next with the same "
        "eps. If eta > 0, mix in z. self._signal_and_noise takes -1, too.",
    ),
    5: Exercise(
        "an ancestral step", 20, "dualmd.py", ("NoiseSchedule.ddpm_step",),
        "t is an int here. For `clip`, self.predict_x0 and self.predict_eps lead from eps to the image and back.",
    ),
    6: Exercise(
        "the index split", 40, "data.py", ("index_split",),
        "Draw with np.random.RandomState(seed), first the members' pool. A Split takes int64 tensors. BadInput takes "
        "one line of text.",
    ),
    7: Exercise(
        "taking turns", 20, "dualmd.py", ("DualMD.__call__",),
        "Each image has its own timestep. `route`, below, sends each image to one of two models.",
    ),
    8: Exercise(
        "soft targets", 20, "dualmd.py", ("distill_targets",),
        "in_a says which images teacher A was trained on. `route`, below, sends each image to one of two models.",
    ),
    9: Exercise(
        "three membership scores", 60, "attacks.py", ("loss", "_pia", "round_trip"),
        "loss and _pia return one score for each image: higher means member, so errors get a minus. round_trip returns "
        "images. _eps(eps_model, x, t) calls the model with one t for all images. _noise(x0, generator) draws the "
        "noise. schedule.add_noise and schedule.ddim_step do the rest.",
    ),
    10: Exercise(
        "the AUC, with ties", 40, "metrics.py", ("auc",),
        "You need not form the pairs: np.searchsorted on sorted scores counts how many are below, or not above.",
    ),
    11: Exercise(
        "an attacker who adapts", 90, "metrics.py", ("adaptive",),
        "halves() cuts the images in two. _attacker learns on one half and scores other images. _judge_each_other "
        "returns the scores of both halves together. _redraw and _interval are for the bootstrap. You may use them, or "
        "write your own.",
    ),
    12: Exercise(
        "the Fréchet distance", 90, "fid.py", ("symmetric_root", "distance"),
        "torch.linalg.eigh gives eigenvalues and eigenvectors. Drop eigenvalues that are zero up to rounding. The "
        "docstring of `distance` says how to get the trace.",
    ),
}  # fmt: skip


def function_lines(source: str, name: str) -> tuple[int, int]:
    """The lines [first, last) of the body of the function `name` in a file's source, without its docstring."""
    node = ast.parse(source)
    for part in name.split("."):
        node = next(child for child in node.body if getattr(child, "name", "") == part)
    first = node.body[0]
    return first.end_lineno if ast.get_docstring(node) else first.lineno - 1, node.end_lineno
