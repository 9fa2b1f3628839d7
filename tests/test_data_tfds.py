"""`tfds:` sources without TensorFlow."""

import importlib.util

import pytest
import tensorflow_datasets as tfds

from ptft import data
from ptft.core import config
from ptft.core.errors import UserError


def load(where: str, known: tuple[str, ...] = (), **options: object) -> data.Source:
    return data.load(f"tfds:{where}", config.resolve(options, data.SPEC), known)


class ToyPairs(tfds.core.GeneratorBasedBuilder):
    """Pairs with a label, one of them unlabelled."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text = tfds.features.Text()
        features = {"one": text, "two": text, "label": tfds.features.ClassLabel(names=["no", "yes"])}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples([0, 1, 1]), "test": self._generate_examples([-1])}

    def _generate_examples(self, labels):
        for i, label in enumerate(labels):
            yield i, {"one": f"Été {i}. Fin.", "two": f"b{i}", "label": label}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    ToyPairs(data_dir=tmp_path, file_format="array_record").download_and_prepare()


def test_prepared_data_is_read_with_its_label_names(toy):
    source = load("toy_pairs@train", text="one", text_b="two", label="label")
    assert source.labels == ("no", "yes")
    assert sorted((r["text"], r["text_b"], r["label"]) for r in source.records) == [
        ("Été 0. Fin.", "b0", 0),
        ("Été 1. Fin.", "b1", 1),
        ("Été 2. Fin.", "b2", 1),
    ]
    assert source.records[2]["where"] == "tfds:toy_pairs@train[2]"
    assert len(load("toy_pairs@train[:2]", label="label").records) == 2


def test_a_name_runs_no_code_of_others(toy, tmp_path, monkeypatch):
    """TFDS imports the modules that a prepared data set names; one below another folder is nobody's."""
    stranger, made = tmp_path / "stranger", tmp_path / "made"
    stranger.mkdir()
    (tmp_path / "toy_pairs").rename(stranger / "toy_pairs")
    file = stranger / "toy_pairs" / "1.0.0" / "features.json"
    file.write_text(file.read_text().replace("tensorflow_datasets.core.features.text_feature", "strangers"))
    (tmp_path / "strangers.py").write_text(f"open({str(made)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="expected tfds:NAME"):
        load(f"toy_pairs/data_dir={stranger}@train", label="label")
    assert not made.exists()


def test_without_a_label_column_every_text_is_a_document(toy):
    source = load("toy_pairs@train")
    assert sorted(r["sentences"] for r in source.records)[0] == ["Été 0.", "Fin."]
    assert source.labels == ()


def test_a_record_without_a_label_is_named(toy):
    with pytest.raises(
        UserError, match=r"tfds:toy_pairs@test\[0\]: label '-1' is unknown; expected one of 'no', 'yes'"
    ):
        load("toy_pairs@test", label="label")


@pytest.mark.parametrize(
    ("where", "options", "message"),
    [
        ("toy_pairs", {}, "expected tfds:NAME@SPLIT"),
        ("toy_pairs@tran", {}, "no split 'tran' after '@'; did you mean 'train'"),
        ("toy_pairs@train[:x]", {}, "train\\[:x\\]"),
        ("toy_pairs@train", {"label": "lable"}, r"no column 'lable' \(data.label\); it has '"),
        ("imdb_revews@train", {}, "no data set 'imdb_revews'; did you mean 'imdb_reviews'"),
        ("kaggle:toy@train", {}, "tfds:kaggle:toy: expected tfds:NAME, tfds:NAME/CONFIG or"),
        ("toy_pairs/data_dir=x@train", {}, "expected tfds:NAME, tfds:NAME/CONFIG or .*read them with files"),
        ("imdb_reviews/plain@train", {}, "no config 'plain'; did you mean 'plain_text'"),
    ],
)
def test_mistakes_are_said_clearly(toy, where, options, message):
    with pytest.raises(UserError, match=message):
        load(where, **options)


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is here")
@pytest.mark.parametrize("name", ["glue/sst2", "wikipedia/20230601.en", "xnli"])
def test_what_only_tensorflow_can_prepare_names_the_extra(toy, name):
    with pytest.raises(UserError, match=r"ptft\[tf\].*download_and_prepare.*files:GLOB"):
        load(f"{name}@train", label="label")


def test_no_network_is_said_and_files_offered(toy, monkeypatch):
    def offline(self, *args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", offline)
    with pytest.raises(
        UserError, match=r"could not be downloaded and prepared: ConnectionError: no route; .*files:GLOB"
    ):
        load("imdb_reviews@train", label="label")


def test_a_packaged_data_set_with_mocked_data():
    with tfds.testing.mock_data(num_examples=5):
        source = load("imdb_reviews@train[:95%]", label="label")
    assert (len(source.records), source.labels) == (5, ("neg", "pos"))
