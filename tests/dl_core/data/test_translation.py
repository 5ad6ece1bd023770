"""Pairs of sentences: the embedded ones, folders of files, and what is left out."""

import gzip
import hashlib
import lzma
import zipfile

import numpy as np
import pytest

from dl_core.data import load
from dl_core.data.subwords import END, PAD, UNKNOWN, Vocabulary
from dl_core.data.tatoeba_small import subset as subset_module
from dl_core.data.tatoeba_small.subset import RANGES, TEST, VALIDATION, key, subset
from dl_core.data.translation import (
    FOLDER,
    SPLITS,
    PairsConfig,
    from_folder,
    read_pairs,
    tatoeba,
)
from dl_core.errors import UserError

_SHA256 = "9e9cf60ac149e9ca418529df88c3542636148bf590bd54e1b8f1f19cea7e01c5"

_PAIRS = (
    ("Ein Hund rennt .", "A dog runs."),
    ("Zwei Katzen schlafen.", "Two cats sleep."),
    ("Ein Mann mit\u00a0Hut", "A man in a hat"),
    ("Drei Kinder spielen Fußball im Park.", "Three children play football in a park."),
    ("Zwei Hunde spielen.", "Two dogs play."),
)


@pytest.fixture(scope="module")
def embedded():
    """The embedded pairs as numbers."""
    return read_pairs(PairsConfig())


@pytest.fixture
def folder(tmp_path):
    """A folder laid out as Multi30k's, of five pairs a split."""
    for stem in ("train", "val", "test_2016_flickr"):
        write(tmp_path, stem, [de for de, _ in _PAIRS], [en for _, en in _PAIRS])
    return tmp_path


def write(folder, stem, german, english):
    for language, lines in (("de", german), ("en", english)):
        text = "".join(f"{line}\n" for line in lines)
        (folder / f"{stem}.{language}.gz").write_bytes(gzip.compress(text.encode()))


def chosen(folder, **changes):
    settings = {"source": "de", "target": "en", "unit": "words", "vocabulary": 100}
    return PairsConfig(path=str(folder), **settings | changes)


def test_the_embedded_pairs_are_those_that_were_chosen():
    text = lzma.decompress((FOLDER / "pairs.tsv.xz").read_bytes())
    assert hashlib.sha256(text).hexdigest() == _SHA256
    sizes = {split: len(pairs) for split, pairs in tatoeba().items()}
    assert sizes == {"train": 38_000, "validation": 510, "test": 1_440}
    for split, count in (("test", TEST), ("validation", VALIDATION)):
        words = [len(english.split()) for english, _ in tatoeba()[split]]
        for shortest, longest in RANGES:
            assert sum(shortest <= n <= longest for n in words) == count
    for pairs in tatoeba().values():
        for pair in pairs:
            assert all(text == " ".join(text.split()) != "" for text in pair)


def test_no_sentence_is_in_two_splits():
    for side in range(2):
        keys = {
            split: [key(pair[side]) for pair in pairs]
            for split, pairs in tatoeba().items()
        }
        distinct = {split: set(found) for split, found in keys.items()}
        together = set().union(*distinct.values())
        assert sum(map(len, distinct.values())) == len(together)
        for split in ("validation", "test"):
            assert len(distinct[split]) == len(keys[split])
        # French sentences may be the translation of several that are trained on.
        assert side or len(together) == 39_950


def test_the_data_set_holds_the_same_pairs(tmp_path, monkeypatch):
    first = {split: pairs[:50] for split, pairs in tatoeba().items()}
    monkeypatch.setattr("dl_core.data.tatoeba_small.builder.tatoeba", lambda: first)
    for split, pairs in first.items():
        arrays = load("tatoeba_small", split, tmp_path)
        for name, texts in zip(("en", "fr"), zip(*pairs, strict=True), strict=True):
            assert [text.decode() for text in arrays[name]] == list(texts)
    licence = (tmp_path / "tatoeba_small/1.0.0/LICENSE").read_text()
    assert licence.strip() == (FOLDER / "LICENSE").read_text().strip()
    for part in ("CC BY 2.0 FR", "tatoeba.org", "www.manythings.org/anki"):
        assert part in licence


def test_a_subset_is_chosen_as_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(subset_module, "RANGES", ((1, 2), (3, 99)))
    for name, value in {"TEST": 2, "VALIDATION": 1, "TRAIN": 20}.items():
        monkeypatch.setattr(subset_module, name, value)
    pairs = [("Run!", "Cours\u202f!"), ("Run!", "Courez !"), ("run", "File")]
    pairs += [(f"It is {n}:00.", f"Il\u00a0est {n}:00\u2009; non?") for n in "abcde"]
    pairs += [(f"Say {n}.", f"Dites: «l’{n}».") for n in range(30)]
    pairs += [(" ".join("abcdefghijkl"), "Long."), ("x" * 161, "Trop long.")]
    archive = tmp_path / "fra-eng.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("fra.txt", "".join("\t".join(pair) + "\n" for pair in pairs))
    assert subset(archive) == subset(archive)
    lines = lzma.decompress(subset(archive)).decode().splitlines()
    split, english, french = zip(*(line.split("\t") for line in lines), strict=True)
    assert lines == sorted(lines)
    assert [split.count(name) for name in SPLITS] == [20, 2, 4]
    written = dict(zip(english, french, strict=True))
    assert len({key(sentence) for sentence in english}) == len(lines) == 26
    assert "a b c d e f g h i j k l" in written
    assert "x" * 161 not in written
    for sentence, translation in written.items():
        letter = sentence.removesuffix(".").removeprefix("Say ")
        if sentence.startswith("Say"):
            assert translation == f"Dites : « l'{letter} »."
        if sentence.startswith("It is"):
            time = sentence.removesuffix(".").removeprefix("It is ")
            assert translation == f"Il est {time} ; non ?"
    assert written.get("Run!", "Cours !") == "Cours !"


def test_numbers_give_the_sentences_back(embedded):
    assert len(embedded.source) == len(embedded.target) == 2_000
    for name in SPLITS:
        split = embedded.splits[name]
        assert list(zip(split.sources, split.targets, strict=True)) == tatoeba()[name]
        assert embedded.dropped[name][:2] == ((), ())
        arrays = split.arrays()
        assert list(arrays) == ["source", "source_length", "target", "target_length"]
        for side in ("source", "target"):
            tokens, length = arrays[side], arrays[f"{side}_length"]
            assert tokens.shape == (len(split.sources), 64)
            assert tokens.dtype == length.dtype == np.int32
            np.testing.assert_array_equal((tokens != PAD).sum(1), length)
            np.testing.assert_array_equal((tokens == END).argmax(1), length - 1)
    split = embedded.splits["test"]
    for vocabulary, tokens, texts in (
        (embedded.source, split.source, split.sources),
        (embedded.target, split.target, split.targets),
    ):
        known = ~(tokens == UNKNOWN).any(1)
        assert known.mean() > 0.99
        for i in np.flatnonzero(known):
            assert vocabulary.decode(tokens[i]) == texts[i]
    assert not (embedded.splits["train"].source == UNKNOWN).any()
    assert read_pairs(PairsConfig()) is embedded


def test_the_embedded_pairs_can_be_turned_round_and_cut_down():
    turned = read_pairs(
        PairsConfig(source="fr", target="en", pairs=300, vocabulary=400, lower=True)
    )
    split = turned.splits["train"]
    assert len(split.sources) == 300
    lowered = {(fr.lower(), en.lower()) for en, fr in tatoeba()["train"]}
    assert set(zip(split.sources, split.targets, strict=True)) <= lowered
    assert turned.target.decode(split.target[0]) == split.targets[0]
    assert turned.source == Vocabulary.train(
        split.sources, 400, "bpe", language="fr", lower=True
    )
    assert "unknown tokens 0.00% of sources" in turned.report().splitlines()[0]


def test_a_folder_as_multi30k_lies_is_read(folder):
    pairs = read_pairs(chosen(folder, longest=20))
    for split in pairs.splits.values():
        assert split.sources[2] == "Ein Mann mit Hut"
        assert split.targets == tuple(en for _, en in _PAIRS)
        assert [pairs.target.decode(x) for x in split.target] == list(split.targets)
    # Other names, and files that are not compressed.
    for old, new in (("val", "valid"), ("test_2016_flickr", "test")):
        for language in ("de", "en"):
            file = folder / f"{old}.{language}.gz"
            (folder / f"{new}.{language}").write_bytes(
                gzip.decompress(file.read_bytes())
            )
            file.unlink()
    again = from_folder(str(folder), ("de", "en"))
    assert again == {split: list(_PAIRS) for split in SPLITS}


def test_what_is_left_out_is_counted_by_line(folder):
    german, english = map(list, zip(*_PAIRS, strict=True))
    german[1], english[4] = " \u00a0", ""
    write(folder, "train", german, english)
    write(folder, "val", ["Ein Zebra schläft."], ["A zebra sleeps."])
    pairs = read_pairs(chosen(folder, longest=6))
    assert pairs.splits["train"].targets == ("A dog runs.", "A man in a hat")
    assert pairs.dropped["train"][:2] == ((2, 5), (4,))
    assert pairs.dropped["test"][:2] == ((), (4,))
    assert pairs.dropped["validation"].unknown == (2, 2)
    train, validation, test = pairs.report().splitlines()
    assert train.startswith(
        "train: 2 pairs; dropped 2 (lines 2, 5) with an empty sentence; "
        "dropped 1 (line 4) with a sentence of over 6 tokens; unknown tokens 0.00% of"
    )
    assert validation == (
        "validation: 1 pairs; unknown tokens 40.00% of sources, 40.00% of targets"
    )
    assert test.startswith("test: 4 pairs; dropped 1 (line 4) with a sentence of over")


def test_some_training_pairs_are_chosen_the_fewer_among_the_more(folder):
    sizes = {}
    for count in (1, 3, 5, 9):
        split = read_pairs(chosen(folder, pairs=count)).splits["train"]
        sizes[count] = set(split.sources)
        assert len(split.sources) == min(count, 5)
    assert sizes[1] < sizes[3] < sizes[5] == sizes[9]


def test_files_of_unlike_length_are_refused(folder):
    write(folder, "val", ["Eins.", "Zwei.", "Drei."], ["One.", "Two."])
    sentence = r"val.de.gz has 3 lines and val.en.gz 2, so line 3 has no partner"
    with pytest.raises(UserError, match=sentence):
        read_pairs(chosen(folder))


def test_other_bad_files_are_named(folder):
    file = folder / "train.en.gz"
    content = file.read_bytes()
    for wrong, sentence in (
        (content[:-9], r"train\.en\.gz cannot be read: "),
        (b"A dog runs.\n", r"train\.en\.gz cannot be read: Not a gzipped file"),
        (gzip.compress(b"A dog.\nA caf\xe9.\n"), r"train\.en\.gz, line 2: .* byte 6"),
    ):
        file.write_bytes(wrong)
        with pytest.raises(UserError, match=sentence):
            read_pairs(chosen(folder))
    file.unlink()
    sentence = (
        r"^--config\.data\.path=.*: found none of train\.en, train\.en\.gz in it$"
    )
    with pytest.raises(UserError, match=sentence):
        read_pairs(chosen(folder))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"unit": "bpe", "vocabulary": 900},
            r"vocabulary=900: .* at most \d+ subwords",
        ),
        ({"unit": "bpe", "vocabulary": 9}, r"vocabulary=9: .* at least \d+ subwords"),
        ({"longest": 3}, r"no pair of train has two .* --config.data.longest=3 tokens"),
    ],
)
def test_impossible_settings_are_refused(changes, sentence, folder):
    with pytest.raises(UserError, match=sentence):
        read_pairs(chosen(folder, **changes))


@pytest.mark.parametrize("languages", [("de", "en"), ("en", "en")])
def test_other_languages_need_a_folder(languages):
    source, target = languages
    sentence = f"source={source} and .*={target}: the embedded languages are en and fr"
    with pytest.raises(UserError, match=sentence):
        read_pairs(PairsConfig(source=source, target=target))


def test_an_empty_file_is_refused(folder):
    write(folder, "test_2016_flickr", [], [])
    with pytest.raises(UserError, match="no pair of test has two sentences"):
        read_pairs(chosen(folder))
