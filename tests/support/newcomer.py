"""A newcomer's files, and mistakes with them: each a command line and its answer."""

import numpy as np
from PIL import Image
from support import tiny_files, tiny_resnet

ADAPT = "adapt --workdir={new} --init={init} "
OWN = ADAPT + "--labelled={images} --test={images} "
OTHER = "adapt --workdir={new} --labelled={images} "
TEXTS = "adapt --workdir={new} --init={bert} "


def write_files(root):
    """Returns the names that MISTAKES are filled with."""
    files = tiny_files.everything(root / "sound")
    pixels = Image.new("RGB", (8, 8))

    def images(name, *paths):
        for path in paths:
            file = root / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels.save(file)
        return f"folder:{root / name}"

    def deep(*paths):
        for path in paths:
            file = root / "deep" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            levels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 60
            Image.fromarray(levels).save(file)
        return f"folder:{root / 'deep'}"

    def text(name, contents):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(contents)
        return root / name

    many = [f"{c}/{i}.png" for c in ("ant", "bee") for i in range(3)]
    image, kinds = root / "one/ant/1.png", ("a,train", "a,test", "b,train", "b,test")
    lines = ["path,klass,part\n", *(f"{image},{kind}\n" for kind in kinds)]
    ages = "path,age\n" + "".join(f"{image},{n}\n" for n in (31.5, 40.0, 8.25, 77.0))
    (root / "done/stages").mkdir(parents=True)
    words = b"utterance,intent\nhello,a\nbye,b\n"
    return dict(
        files,
        root=root,
        new=root / "new",
        empty=f"folder:{text('empty/keep.txt', b'x').parent}",
        one=images("one", "ant/1.png", "ant/2.png"),
        flat=images("flat", "1.png", "2.png"),
        stray=images("stray", *many, "7.png"),
        cats=images("cats", "cat/1.png", "dog/1.png"),
        few=images("few", "ant/1.png", "bee/1.png", "bee/2.png"),
        named=images("named", *[f"{s}/{p}" for s in ("Fold1", "Fold2") for p in many]),
        table=f"csv:{text('t.csv', ''.join(lines).encode())}",
        ages=f"csv:{text('ages.csv', ages.encode())}",
        resnet=tiny_resnet.folder(root / "resnet"),
        void=f"csv:{text('void.csv', b'')}",
        wide=f"csv:{text('wide.csv', 'path,label'.encode('utf-16'))}",
        words=f"csv:{text('w.csv', words)}",
        weights=text("weights.bin", b"no weights"),
        nothing=root / "nothing",
        deep=deep(*many),
        done=text("done/export/config.json", b"{}").parents[1],
    )  # fmt: skip


# Name -> (command line, what the one line says, as a regular expression).
MISTAKES = {
    "too few labels to hold some out": (
        ADAPT + "--labelled={few}",
        r"--labelled=.*few has 2 examples of a class at most, too few to hold a fifth .*"
        r"give --test=SOURCE",
    ),
    "an image beside the classes of a test set": (
        ADAPT + "--labelled={images} --test={stray}",
        "--test=.*7.png",
    ),
    "an empty test set": (ADAPT + "--labelled={images} --test={empty}", "no image"),
    "nothing to train": (
        ADAPT + "--unlabelled={flat} --method=none",
        "--method=none trains nothing without labels: give --labelled=SOURCE",
    ),
    "labels to watch that are not there": (
        ADAPT + "--unlabelled={flat} --watch=target/knn",
        "--watch=target/knn reads labels: give --labelled=SOURCE",
    ),
    "a typo in a part of the digits": (
        ADAPT + "--labelled=builtin:digits@labeled",
        "the split 'labeled': .* did you mean 'labelled'",
    ),
    "12 bits in 16-bit files": (
        ADAPT + "--labelled={deep}",
        "--bits",
    ),
    "predictions of a workdir": (
        "predict --init={done} --data={images} --out={root}/p.csv",
        r"is the workdir of a run; give .*done/export, or",
    ),
    "two splits": (
        "features --init={init} --data={images}@test --split=val --out={root}/f.csv",
        "--data=.*@test and --split=val: give one split",
    ),
    "watch without a pool": (
        OWN + "--watch=target/knn",
        r"--watch=target/knn keeps the best state of training without labels.*"
        r"give --unlabelled=SOURCE",
    ),
    "a typo in the command": ("adpt --init={init}", "did you mean 'adapt'"),
    "no weights": ("adapt --workdir={new} --labelled={images}", "needs --init=..."),
    "no workdir": ("adapt --init={init} --labelled={images}", "needs --workdir=..."),
    "a typo in a flag": (
        OWN + "--lable_field=x",
        "Did you mean: label_field",
    ),
    "a flag without a value": (
        ADAPT + "--labelled",
        "Missing value for flag --labelled",
    ),
    "a word that is no flag": (OWN + "folder", "does not know"),
    "no data": (
        ADAPT,
        "needs --init=MODEL.* --unlabelled=SOURCE or --labelled=SOURCE",
    ),
    "a typo in a method": (
        OWN + "--method=self_distil",
        "--method='self_distil' is unknown.*did you mean 'self_distill'",
    ),
    "a budget without a unit": (
        OWN + "--budget=30",
        "--budget=30 must be a time such as 30m",
    ),
    "a typo in a budget": (
        OWN + "--budget=papr",
        "did you mean 'paper'",
    ),
    "a budget of nothing": (OWN + "--budget=0m", "must be above 0"),
    "a precision that is none": (
        OWN + "--precision=float16",
        "--precision='float16' is unknown",
    ),
    "weights that are not there": (
        OTHER + "--init={nothing}",
        "--init=.*nothing: there is no such file",
    ),
    "a folder without weights": (
        OTHER + "--init={root}/flat",
        "--init=.*flat: is none of .* give a folder with config.json",
    ),
    "a file that holds no weights": (
        OTHER + "--init={weights}",
        "--init=.*weights.bin: not a readable torch file",
    ),
    "a path without its kind": (
        ADAPT + "--labelled={root}/one",
        "names no kind of source: folder:.*one is a folder",
    ),
    "a typo in the kind": (
        ADAPT + "--labelled=foldr:{root}/one",
        "--labelled='foldr' is unknown.*did you mean 'folder'",
    ),
    "a folder that is not there": (
        ADAPT + "--labelled=folder:{nothing}",
        "--labelled=folder:.*no such folder; .* has .*'cats'",
    ),
    "a folder without images": (
        ADAPT + "--labelled={empty}",
        "no image in .*empty; files must end in",
    ),
    "a split that is not there": (
        ADAPT + "--labelled={images}@Trainig",
        "has no such folder; it has .*'test', 'train'.*images@NAME",
    ),
    "one class": (
        ADAPT + "--labelled={one}",
        "has only the class 'ant'; a classifier needs two",
    ),
    "images without class folders": (
        ADAPT + "--labelled={flat}",
        "has no classes; .* a folder for each class",
    ),
    "an image beside the class folders": (
        ADAPT + "--labelled={stray}",
        "1 of 7 images lie in no class folder.*7.png",
    ),
    "the test set is the training set": (
        ADAPT + "--labelled={cats} --test={cats}",
        "are examples of --labelled=.*or leave test out",
    ),
    "the test set is the training set by another path": (
        ADAPT + "--labelled={images}@train --test={images}/train",
        "are examples of --labelled=.*, which are trained on: give others",
    ),
    "the test set has other classes": (
        ADAPT + "--labelled={images} --test={cats}",
        "has the classes .*'cat', 'dog'.*names must be the same",
    ),
    "the test set has no classes": (
        ADAPT + "--labelled={images} --test={flat}",
        "--test=.*flat has no classes",
    ),
    "a test set without labels to learn": (
        ADAPT + "--unlabelled={flat} --test={cats}",
        "give --labelled=SOURCE, too",
    ),
    "replay without a source": (
        OWN + "--unlabelled={flat} --method=replay",
        "trains on data that .* were pre-trained on, too: give --source=SOURCE",
    ),
    "adapting without unlabelled data": (
        OWN + "--method=further",
        "give --unlabelled=SOURCE, or --method=none",
    ),
    "a table that is not there": (
        ADAPT + "--labelled=csv:{nothing}.csv",
        "no such file or folder; .*'t.csv'",
    ),
    "an empty table": (
        ADAPT + "--labelled={void}",
        "void.csv train has no row at all",
    ),
    "a table in UTF-16": (
        ADAPT + "--labelled={wide}",
        "wide.csv is UTF-16 or UTF-32; save it as UTF-8",
    ),
    "a column of labels of another name": (
        ADAPT + "--labelled={table}",
        "--label_field='label' is no column .*'klass'",
    ),
    "a column of images of another name": (
        ADAPT + "--labelled={table} --label_field=klass --image_field=file",
        "--image_field='file' is no column .*'path'",
    ),
    "a split that a column lacks": (
        ADAPT + "--labelled={table}@val --label_field=klass --split_field=part",
        "the split 'val': .* has the splits .*t.csv@NAME",
    ),
    "a column of texts of another name": (
        TEXTS + "--labelled={words}",
        "--text_field: .* no field 'text' .*'utterance'",
    ),
    "a column of classes of texts of another name": (
        TEXTS + "--labelled={words} --text_field=utterance",
        "--label_field: .* no field 'label' .*'intent'",
    ),
    "numbers to predict": (
        ADAPT + "--labelled={ages} --label_field=age",
        "--labelled=.* has 4 different numbers .* 31.5 .*classifiers, not regressions",
    ),
    "weights of a ResNet": (
        OTHER + "--init={resnet}",
        "--init=.*resnet holds a ResNet; adapt takes a ViT or text encoder",
    ),
    "images for a text model": (
        TEXTS + "--labelled={images}",
        "--labelled='folder' is unknown; choose one of .*'jsonl'",
    ),
    "augmented texts": (
        TEXTS + "--labelled={texts} --augment=flip",
        "--augment='flip' is of images",
    ),
    "a typo in an augmentation": (
        OWN + "--augment=flipp",
        "did you mean 'flip'",
    ),
    "a way to make images square that is none": (
        OWN + "--fit=stretch",
        "--fit='stretch' is unknown; choose one of .*'pad'",
    ),
    "a workdir that is a file": (
        "adapt --workdir={weights} --init={init} --labelled={images}",
        "is a file: give a folder",
    ),
    "predictions of weights without a head": (
        "predict --init={init} --data={images} --out={root}/p.csv",
        "has no classifier, so that it predicts nothing",
    ),
    "predictions into a file of another kind": (
        "predict --init={init} --data={images} --out={root}/p.txt",
        "must be a new .csv or .jsonl or .parquet",
    ),
    "a typo in a config": ("show --config=vit_finetun", "did you mean 'vit_finetune'"),
    "a typo in an argument of a config": (
        "run --workdir={new} --config=vit_finetune:sted=1",
        "'sted=1' is unknown.*did you mean 'steps'",
    ),
    "more labels of a class than there are": (
        "run --workdir={new} "
        "--config=vit_finetune:dataset={images},init={init},per_class=99",
        "per_class=99: class 'ant' of .* has only 8",
    ),
}
