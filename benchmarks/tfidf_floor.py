"""The floor that a text classifier must beat: tf-idf and logistic regression.

Run     python benchmarks/tfidf_floor.py --data=FOLDER [--rows=1500] [--text=text] [--label=label]
        FOLDER holds train.jsonl and test.jsonl
Prints  one JSON line: accuracy and macro-F1 on the test set, of words alone, C = 10, on
        the first `rows` training rows (0: all).
"""

import json
from pathlib import Path

from absl import app, flags
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import make_pipeline

_DATA = flags.DEFINE_string("data", None, "folder of the data", required=True)
_ROWS = flags.DEFINE_integer("rows", 1_500, "training rows; 0: all")
_TEXT = flags.DEFINE_string("text", "text", "field of the text")
_LABEL = flags.DEFINE_string("label", "label", "field of the label")


def read(split):
    """Returns (texts, labels)."""
    with open(Path(_DATA.value, f"{split}.jsonl"), encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row[_TEXT.value] for row in rows], [row[_LABEL.value] for row in rows]


def main(_):
    texts, labels = read("train")
    count = _ROWS.value or len(texts)
    model = make_pipeline(TfidfVectorizer(), LogisticRegression(C=10, max_iter=1_000))
    model.fit(texts[:count], labels[:count])
    test_texts, wanted = read("test")
    found = model.predict(test_texts)
    scores = {
        "data": Path(_DATA.value).name,
        "rows": min(count, len(texts)),
        "accuracy": round(accuracy_score(wanted, found), 3),
        "macro_f1": round(f1_score(wanted, found, average="macro"), 3),
    }
    print(json.dumps(scores))


if __name__ == "__main__":
    app.run(main)
