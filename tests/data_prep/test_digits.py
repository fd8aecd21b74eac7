import numpy as np
from PIL import Image

from data_prep.digits import write_digits


def test_every_digit_is_there_with_its_class(tmp_path, command, hashes):
    from sklearn.datasets import load_digits  # here: it takes seconds, and every worker imports this module

    done = command("data_prep/digits.py", tmp_path / "digits", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("{")
    digits = load_digits()
    seen = {}
    for path in (tmp_path / "digits").glob("*/*/*.jpg"):
        split, label, position = path.parts[-3], int(path.parent.name), int(path.stem)
        assert position not in seen
        seen[position] = split
        assert digits.target[position] == label
        # The picture is that digit: averaged back to 8 x 8 it is nearest to its own grey levels.
        small = np.asarray(Image.open(path).resize((8, 8), Image.Resampling.BOX), float) * 16 / 255
        assert np.corrcoef(small.ravel(), digits.images[position].ravel())[0, 1] > 0.97
    assert sorted(seen) == list(range(1797))
    assert list(seen.values()).count("val") == 355
    write_digits(tmp_path / "again" / "digits")
    assert hashes(tmp_path / "again" / "digits") == hashes(tmp_path / "digits")


def test_an_existing_folder_is_left_alone(tmp_path, command):
    (tmp_path / "thesis.txt").write_text("mine")
    done = command("data_prep/digits.py", tmp_path)
    assert done.returncode == 2
    assert "holds other files" in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
