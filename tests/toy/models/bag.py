"""A toy backbone: embeddings through dense blocks, and their mean; all that a model file needs, and nothing
else."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flax import linen as nn

from ptft.core.config import Config, Field
from ptft.models import Anatomy, Family
from ptft.models.layers import Style, dense, masked_mean

SPEC = {"layers": Field(2, int, lo=1), "hidden": Field(16, int, lo=1)}

ANATOMY = Anatomy(
    groups={"stem": r"backbone/embeddings/.*", "bias": r"backbone/.*/bias", "ffn": r"backbone/block_\d+/.*"},
    stacks={"": r"backbone/block_{}/.*"},
    table="backbone/embeddings/embedding",
)

# Its names in a folder of Hugging Face's format.
FAMILIES = {
    "bag": Family(
        stem="Bag",
        prefix="bag.",
        body={"backbone/embeddings": "words", "backbone/block_{}": "layers.{}"},
        mlm={},
        classify={"head/classifier": "classifier"},
        decoder="",
        keys={"layers": "num_layers", "hidden": "hidden_size"},
        silent={"num_layers": 2, "hidden_size": 16},
        model="bag",
    )
}


@dataclass(frozen=True)
class Dims:
    layers: int
    hidden: int
    vocab: int
    dtype: Any


class Bag(nn.Module):
    dims: Dims
    style = Style()

    @nn.compact
    def __call__(
        self, batch: Mapping[str, Any], train: bool = False, start: int = 0, hidden: Any = None
    ) -> dict[str, Any]:
        d = self.dims
        word = nn.Embed(d.vocab, d.hidden, dtype=d.dtype, name="embeddings")
        x = word(batch["tokens"]) if hidden is None else hidden
        for i in range(start, d.layers):
            x = x + nn.relu(dense(d.hidden, d.dtype, f"block_{i}")(x))
        return {"hidden": x, "pooled": masked_mean(x, batch["mask"]), "word_table": word.embedding}


def build(config: Config, vocab_size: int, dtype: Any) -> Bag:
    return Bag(Dims(config.layers, config.hidden, vocab_size, dtype))
