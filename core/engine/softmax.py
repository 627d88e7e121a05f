"""The Softmax at the end of an uploaded network: left out in the studio, put back in every file that it writes.

Files from Keras answer with probabilities. All that is measured and trained here starts from logits: KL divergences and
margins of probabilities, which are close to 0 or 1, say little, and cross-entropy of them teaches less. The logits are
what the Softmax reads; the downloaded file answers as the uploaded one did (`ModelCard.probabilities`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper
from torch import fx, nn

SMALLEST = 1e-30  # probability; float32 has none between it and 0 to speak of
NEAR_ONE = 0.01  # that a sum of probabilities may be from 1: those of 16-bit floats are rounded


def leave_out(module: nn.Module) -> bool:
    """Remove, in place, a Softmax over the classes that a network (n, classes) ends with; whether there was one."""
    if not isinstance(module, fx.GraphModule):
        return False
    output = module.graph.output_node()
    last = output.args[0]
    if not isinstance(last, fx.Node) or last.op != "call_module" or len(last.users) > 1:
        return False
    part = module.get_submodule(str(last.target))
    if not isinstance(part, nn.Softmax) or part.dim not in (1, -1):
        return False
    output.args = (last.all_input_nodes[0],)
    module.graph.erase_node(last)
    module.delete_all_unused_submodules()
    module.recompile()
    return True


def put_back(proto: ModelProto) -> None:
    """Let a file's only output (n, classes) go through a Softmax, whose result is called probabilities."""
    answer = proto.graph.output[0]
    proto.graph.node.append(helper.make_node("Softmax", [answer.name], ["probabilities"], axis=-1))
    answer.name = "probabilities"


def as_logits(answers: NDArray[np.float32]) -> NDArray[np.float32]:
    """Answers (n, classes) of a file as logits: the logarithm where every row holds probabilities, else as they are.

    >>> as_logits(np.array([[0.5, 0.5]], np.float32)).tolist(), as_logits(np.array([[2.0, 1.0]], np.float32)).tolist()
    ([[-0.6931471824645996, -0.6931471824645996]], [[2.0, 1.0]])
    """
    if answers.min() < 0 or np.abs(answers.sum(1) - 1).max() > NEAR_ONE:
        return answers
    logits: NDArray[np.float32] = np.log(np.maximum(answers, np.float32(SMALLEST)))
    return logits
