"""Opens checkpoints that Espalier saved with stock Hugging Face transformers and compares their logits.

    python3 test/reference/check_saved_models.py FOLDER

Every subfolder of FOLDER is a checkpoint with an `expected.json` written by Espalier:
    {"ids": [...], "logits": [[...], ...]}   float32 logits of every position; transformers must agree
    {"refused": true}                        transformers must refuse to load it
The difference allowed is 2e-3 of the largest absolute logit. Exits with 1 if any subfolder fails or there is none.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

TOLERANCE = 2e-3


def load(folder):
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )


@torch.no_grad()
def compare(folder, expected):
    model, report = load(folder)
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if report.get(key):
            return False, f"{key}: {sorted(report[key])[:3]}"
    ours = torch.tensor(expected["logits"], dtype=torch.float32)
    theirs = model.eval()(torch.tensor([expected["ids"]])).logits[0]
    if ours.shape != theirs.shape:
        return False, f"logits of shape {tuple(ours.shape)}, transformers gives {tuple(theirs.shape)}"
    worst = (ours - theirs).abs().max().item()
    scale = theirs.abs().max().item()
    same = (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item()
    # Written so that NaN fails.
    return worst <= TOLERANCE * scale, f"max |difference| {worst:.3g}, relative {worst / scale:.3g}, same argmax {same:.1%}"


def refuse(folder):
    try:
        _, report = load(folder)
    except Exception as error:  # any refusal will do; the table shows which it was
        return True, f"refused: {type(error).__name__}: {str(error).splitlines()[0][:160]}"
    return False, f"loaded, with {len(report['missing_keys'])} tensors missing, so random"


def main(root):
    rows = []
    for path in sorted(root.glob("*/expected.json")):
        expected = json.loads(path.read_text())
        try:
            good, says = refuse(path.parent) if expected.get("refused") else compare(path.parent, expected)
        except Exception as error:
            good, says = False, f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
        rows.append((path.parent.name, "ok" if good else "FAIL", says))
    width = max((len(name) for name, _, _ in rows), default=0)
    for name, verdict, says in rows:
        print(f"{name:<{width}}  {verdict:<4}  {says}")
    if not rows:
        print(f"no */expected.json in {root}")
    return 0 if rows and all(verdict == "ok" for _, verdict, _ in rows) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
