"""Strategies by role: everything, nothing, or the parameters of a group that the model declares."""

from ptft.core.errors import UserError, did_you_mean
from ptft.freeze.layout import Layout, Names
from ptft.freeze.strategies import trains


@trains("full")
def full(model: Layout) -> Names:
    """everything"""
    return model.backbone


@trains("head")
def head(model: Layout) -> Names:
    """the head alone (linear probe: Alain & Bengio 2016, arXiv 1610.01644)"""
    return frozenset()


@trains("embeddings")
def embeddings(model: Layout) -> Names:
    """the embeddings alone"""
    return model.group("stem")


@trains("freeze-embeddings")
def freeze_embeddings(model: Layout) -> Names:
    """everything but the embeddings"""
    return model.backbone - model.group("stem")


@trains("bitfit")
def bitfit(model: Layout) -> Names:
    """all biases (Ben Zaken et al. 2021, arXiv 2106.10199)"""
    return model.group("bias")


@trains("bitfit=MODULES")
def bitfit_of(model: Layout, modules: list[str]) -> Names:
    """the biases of these modules: bitfit=query,up is the subset of that paper"""
    biases = model.group("bias")
    chosen = {module: [n for n in biases if n.endswith(f"/{module}/bias")] for module in modules}
    if lost := [module for module, names in chosen.items() if not names]:
        raise UserError(
            f"no module {lost[0]!r} has a bias; {did_you_mean(lost[0], {n.split('/')[-2] for n in biases})}"
        )
    return frozenset(n for names in chosen.values() for n in names)


@trains("layernorm")
def layernorm(model: Layout) -> Names:
    """all LayerNorm scales and biases (Zhao et al. 2023, arXiv 2312.11420)"""
    return model.group("norm")


@trains("attention")
def attention(model: Layout) -> Names:
    """the attention matrices and their biases (Touvron et al. 2022, arXiv 2203.09795)"""
    return model.group("attention")


@trains("ffn")
def ffn(model: Layout) -> Names:
    """the feed-forward matrices and their biases"""
    return model.group("ffn")


@trains("pooler")
def pooler(model: Layout) -> Names:
    """what lies between the last block and the head"""
    return model.group("pooler")


@trains("layernorm=LIST")
def layernorm_of(model: Layout, blocks: list[int]) -> Names:
    """the LayerNorms of these blocks, LIST as that of layers"""
    return model.group("norm") & model.some_blocks(blocks)


@trains("attention=LIST")
def attention_of(model: Layout, blocks: list[int]) -> Names:
    """the attention matrices of these blocks"""
    return model.group("attention") & model.some_blocks(blocks)


@trains("ffn=LIST")
def ffn_of(model: Layout, blocks: list[int]) -> Names:
    """the feed-forward matrices of these blocks"""
    return model.group("ffn") & model.some_blocks(blocks)
