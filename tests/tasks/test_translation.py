import json

import pytest
import sacrebleu

from tutelage.errors import UserError
from tutelage.tasks.translation import Translation

FLAT = {"en": "Two dogs run over the green grass.", "de": "Zwei Hunde laufen über das grüne Gras."}


def write(tmp_path, *rows) -> str:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path)


@pytest.mark.parametrize("row", [FLAT, {"translation": FLAT}])
def test_flat_and_nested_columns(tmp_path, row):
    task = Translation(data=write(tmp_path, row))
    (example,) = task.examples("train")
    assert task.prompt(example) == "translate English to German: Two dogs run over the green grass."
    assert task.reference(example) == "Zwei Hunde laufen über das grüne Gras."


def test_direction_and_prefix(tmp_path):
    data = write(tmp_path, FLAT)
    back = Translation(data=data, source_column="de", target_column="en")
    assert back.prompt(FLAT) == "translate German to English: Zwei Hunde laufen über das grüne Gras."
    assert Translation(data=data, prefix="").prompt(FLAT) == FLAT["en"]
    with pytest.raises(UserError, match="source_column is 'src', no known language code; set prefix"):
        Translation(data=data, source_column="src")
    assert Translation(data=data, source_column="src", prefix="x: ").prompt({"src": "a"}) == "x: a"


def test_scores_are_corpus_bleu(tmp_path):
    rows = [FLAT, {"en": "A man.", "de": "Ein Mann steht auf der Straße."}]
    completions = ["Zwei Hunde laufen über das Gras.", "Ein Mann steht auf einer Straße."]
    scores = Translation(data=write(tmp_path, *rows)).score(completions, rows)
    references = [[row["de"] for row in rows]]
    assert scores.values["bleu"] == pytest.approx(sacrebleu.corpus_bleu(completions, references).score, abs=1e-9)
    assert scores.values["chrf"] == pytest.approx(sacrebleu.corpus_chrf(completions, references).score, abs=1e-9)


def test_rewards_are_of_single_sentences(tmp_path):
    task = Translation(data=write(tmp_path, FLAT), tokenize="char")
    completion = "Zwei Hunde laufen über das Gras."
    expected = sacrebleu.sentence_bleu(completion, [FLAT["de"]], tokenize="char").score / 100
    assert task.rewards["bleu"](completion, FLAT) == pytest.approx(expected, abs=1e-12)
    assert abs(expected - sacrebleu.sentence_bleu(completion, [FLAT["de"]]).score / 100) > 0.01


def test_generation_defaults_to_four_beams(tmp_path):
    data = write(tmp_path, FLAT)
    assert Translation(data=data).generation.num_beams == 4
    with pytest.raises(UserError, match="num_beams is 0; it must be 1 or more"):
        Translation(data=data, num_beams=0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"english": "a", "german": "b"},
            "line 1: no column 'en'; it has 'english', 'german'; set --task.options.source_column",
        ),
        (
            {"translation": {"en": "a", "fr": "b"}},
            "no column 'de'; it has 'en', 'fr'; set --task.options.target_column",
        ),
        ({"translation": "a"}, "column 'translation' must be an object with one text per language"),
        ({"en": "a", "de": ""}, "column 'de' is empty; the completion needs text"),
    ],
)
def test_bad_rows(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        Translation(data=write(tmp_path, row)).examples("train")
