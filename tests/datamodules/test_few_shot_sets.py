import json
import os
import zipfile
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import images
from datamodules.few_shot_sets import CsvSplit, ImageFolder, RdFsl, cub_split
from datamodules.images import ImageForm, from_classes, from_files, read_images, rotations, select
from datamodules.omniglot import FORM, BundledOmniglot, Omniglot, random_split, vinyals_split


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def write(path: Path, value=0, size=(8, 8), mode="RGB") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)
    return str(path)


def store():
    """Classes a (2 images), b (1), c (3), pixels equal to 10 * class + number."""
    blocks = [torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1) + 10 * i for i, n in enumerate((2, 1, 3))]
    shuffled = [blocks[i].expand(-1, 1, 4, 4).contiguous() for i in (2, 0, 1)]
    return from_classes(shuffled, ["c", "a", "b"], [["c0", "c1", "c2"], ["a0", "a1"], ["b0"]])


class TestStores:
    def test_classes_are_sorted_with_their_images_and_files(self):
        s = store()
        assert s.classes == ("a", "b", "c")
        assert s.image[:, 0, 0, 0].tolist() == [0, 1, 10, 20, 21, 22]
        assert s.label.tolist() == [0, 0, 1, 2, 2, 2]
        assert list(s.files) == ["a0", "a1", "b0", "c0", "c1", "c2"]
        assert s.start.tolist() == [0, 2, 3]

    def test_select_takes_classes_in_the_given_order(self):
        s = select(store(), [2, 0])
        assert s.classes == ("c", "a")
        assert s.image[:, 0, 0, 0].tolist() == [20, 21, 22, 0, 1]
        assert s.label.tolist() == [0, 0, 0, 1, 1]
        assert list(s.files) == ["c0", "c1", "c2", "a0", "a1"]
        with pytest.raises(ValueError, match=r"\[0, 3\)"):
            select(store(), [3])

    def test_rotations_are_counter_clockwise_and_new_classes(self):
        corner = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).view(1, 1, 2, 2)
        s = rotations(from_classes([corner, corner + 10], ["a", "b"]))
        assert s.classes[2:4] == ("a/rot090", "b/rot090")
        assert s.label.tolist() == list(range(8))
        turned = [[1, 2, 3, 4], [2, 4, 1, 3], [4, 3, 2, 1], [3, 1, 4, 2]]
        assert s.image[0::2].flatten(1).tolist() == turned
        assert (s.image[1::2].flatten(1) - 10).tolist() == turned

    def test_class_without_images_and_name_given_twice(self):
        one, none = torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.zeros(0, 1, 2, 2, dtype=torch.uint8)
        with pytest.raises(ValueError, match="'b': the support pool is empty"):
            from_classes([one, none], ["a", "b"], kind="support")
        with pytest.raises(ValueError, match="two classes have the name 'a'"):
            from_classes([one, one], ["a", "a"])


class TestReading:
    def test_shorter_side_then_centre(self, tmp_path):
        pixels = np.zeros((20, 40, 3), np.uint8)
        pixels[:, 10:30] = (255, 100, 0)
        Image.fromarray(pixels).save(tmp_path / "wide.png")
        read = read_images([str(tmp_path / "wide.png")], ImageForm(10))
        assert read.shape == (1, 3, 10, 10)
        assert read[0, :, 5, 5].tolist() == [255, 100, 0]
        # only the coloured middle is left; its outermost columns mix with the black beside it
        assert read[0, 0, :, 1:-1].min() == 255

    def test_grey_and_inverted(self, tmp_path):
        path = write(tmp_path / "ink.png", 40, mode="L")
        assert read_images([path], ImageForm(4, 1, invert=True)).unique().tolist() == [215]

    def test_resize_beyond_size_zooms(self, tmp_path):
        pixels = np.zeros((8, 8), np.uint8)
        pixels[2:6, 2:6] = 200
        Image.fromarray(pixels).save(tmp_path / "x.png")
        form = ImageForm(4, 1, resize=8)
        assert read_images([str(tmp_path / "x.png")], form).unique().tolist() == [200]

    @pytest.mark.parametrize(
        ("make", "error", "match"),
        [
            (lambda p: p.write_bytes(b"no image"), ValueError, r"x\.png"),
            (lambda p: None, FileNotFoundError, r"x\.png"),
            (lambda p: Image.fromarray(np.zeros((4, 4), np.uint16)).save(p), ValueError, "8 bits"),
        ],
    )
    def test_broken_file_is_named(self, tmp_path, make, error, match):
        make(tmp_path / "x.png")
        with pytest.raises(error, match=match):
            read_images([write(tmp_path / "good.png"), str(tmp_path / "x.png")], ImageForm(4))

    def test_truncated_file_leaves_no_cache(self, tmp_path):
        path = tmp_path / "x.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:3000])
        with pytest.raises(ValueError, match=r"x\.png"):
            from_files([[str(path)]], ["a"], ImageForm(4))
        assert list((tmp_path / "cache").rglob("*.npy")) == []

    def test_second_start_reads_the_cache_until_a_file_changes(self, tmp_path, monkeypatch):
        path = write(tmp_path / "a" / "x.png", (7, 7, 7))
        other = write(tmp_path / "b" / "x.png", (9, 9, 9))
        reads = []
        original = images._read_one
        monkeypatch.setattr(images, "_read_one", lambda p, f: reads.append(p) or original(p, f))
        first = from_files([[other], [path]], ["b", "a"], ImageForm(4))
        again = from_files([[other], [path]], ["b", "a"], ImageForm(4))
        assert reads == [path, other]
        assert again.image[:, 0, 0, 0].tolist() == [7, 9]
        assert torch.equal(first.image, again.image)
        os.utime(path, ns=(1, 1))
        from_files([[other], [path]], ["b", "a"], ImageForm(4))
        assert len(reads) == 4
        assert from_files([[other], [path]], ["b", "a"], ImageForm(6)).image.shape[-1] == 6


class TestImageFolder:
    def test_three_folders(self, tmp_path):
        for split, name, value in (("train", "a", 1), ("train", "b", 2), ("val", "c", 3), ("test", "d", 4)):
            write(tmp_path / "set" / split / name / "1.png", (value,) * 3)
        data = ImageFolder(str(tmp_path / "set"), size=8)
        assert data.load("train").support.classes == ("a", "b")
        assert data.load("test").support.image.unique().tolist() == [4]
        write(tmp_path / "set" / "test" / "a" / "1.png")
        with pytest.raises(ValueError, match="train and test share 1 classes, such as 'a'"):
            data.load("train")

    def test_missing_split_folder_and_empty_class(self, tmp_path):
        write(tmp_path / "set" / "train" / "a" / "1.png")
        with pytest.raises(FileNotFoundError, match="has train but not all"):
            ImageFolder(str(tmp_path / "set")).load("train")
        (tmp_path / "one" / "empty").mkdir(parents=True)
        with pytest.raises(ValueError, match="'empty': the image pool is empty"):
            ImageFolder(str(tmp_path / "one"), fractions=(1, 0, 0)).load("train")

    def test_fractions_partition_the_classes_by_seed(self, tmp_path):
        for i in range(25):
            write(tmp_path / "set" / f"c{i:02d}" / "1.png")
        splits = {}
        for seed in (0, 1):
            data = ImageFolder(str(tmp_path / "set"), size=8, seed=seed)
            splits[seed] = [data.load(s).support.classes for s in ("train", "val", "test")]
            assert [len(x) for x in splits[seed]] == [16, 4, 5]
            assert sorted(chain(*splits[seed])) == [f"c{i:02d}" for i in range(25)]
        assert splits[0] != splits[1]
        cub = ImageFolder(str(tmp_path / "set"), size=8, split="cub").load("val").support.classes
        assert cub == ("c01", "c05", "c09", "c13", "c17", "c21")

    def test_cub_rule_counts(self):
        split = cub_split([f"{i:03d}" for i in reversed(range(200))])
        assert {name: len(x) for name, x in split.items()} == {"train": 100, "val": 50, "test": 50}
        assert split["test"][:2] == ["003", "007"]

    def test_constructor_checks(self, tmp_path):
        with pytest.raises(ValueError, match="sum to 1"):
            ImageFolder(str(tmp_path), fractions=(0.5, 0.5, 0.5))
        with pytest.raises(ValueError, match="mean needs one value for each of the 1 channels"):
            ImageFolder(str(tmp_path), channels=1, mean=(0.5, 0.5, 0.5))
        assert ImageFolder(str(tmp_path), channels=1).mean == (0.449,)
        assert ImageFolder(str(tmp_path)).std == (0.229, 0.224, 0.225)


class TestCsvSplit:
    def table(self, root, split, rows, header="filename,label"):
        root.mkdir(exist_ok=True)
        (root / f"{split}.csv").write_text("\n".join([header, *rows]) + "\n")

    def test_rows_become_classes(self, tmp_path):
        for i in range(4):
            write(tmp_path / "images" / f"{i}.png", (i,) * 3)
        self.table(tmp_path, "train", ["3.png,z", "0.png,y", "1.png,z"])
        self.table(tmp_path, "test", ["2.png,x"])
        pool = CsvSplit(str(tmp_path), size=8).load("train").support
        assert pool.classes == ("y", "z")
        assert pool.image[:, 0, 0, 0].tolist() == [0, 3, 1]
        with pytest.raises(FileNotFoundError, match=r"val\.csv"):
            CsvSplit(str(tmp_path)).load("val")

    @pytest.mark.parametrize(
        ("rows", "header", "match"),
        [
            (["0.png,a", "9.png,a"], "filename,label", r"train\.csv, line 3: .*9\.png does not exist"),
            (["0.png,a", "0.png,b"], "filename,label", r"train\.csv, line 3: 0\.png is listed twice"),
            (["0.png,"], "filename,label", r"train\.csv, line 2: filename or label is empty"),
            (["0.png,a"], "file,label", r"train\.csv, line 1: no column filename"),
            (["0.png,t"], "filename,label", "train and test share 1 classes, such as 't'"),
        ],
    )
    def test_errors_name_file_and_line(self, tmp_path, rows, header, match):
        write(tmp_path / "images" / "0.png")
        self.table(tmp_path, "train", rows, header)
        self.table(tmp_path, "test", ["0.png,t"])
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            CsvSplit(str(tmp_path)).load("train")


class TestRdFsl:
    def test_folders_and_index_give_the_same_pools(self, tmp_path):
        index = {}
        for c, name in enumerate(("rock", "ore_query_2_support_1")):
            paths = [f"minet/{name}/{p}" for p in ("support_1/0.png", "query_2/0.png", "query_2/1.png")]
            for j, path in enumerate(paths):
                write(tmp_path / path, (10 * c + j,) * 3)
            index[name] = [paths[:1], paths[1:]]
        (tmp_path / "minet.json").write_text(json.dumps(index))
        for extra in (None, "minet.json"):
            pools = RdFsl(str(tmp_path), "minet", extra, size=8).load("test")
            assert pools.support.classes == pools.query.classes == ("ore_query_2_support_1", "rock")
            assert pools.support.image[:, 0, 0, 0].tolist() == [10, 0]
            assert pools.query.image[:, 0, 0, 0].tolist() == [11, 12, 1, 2]
            assert pools.query.kind == "query"

    def test_test_only_overlap_and_missing_pool(self, tmp_path):
        write(tmp_path / "minet" / "a" / "support" / "0.png")
        with pytest.raises(ValueError, match="for test only and has no train"):
            RdFsl(str(tmp_path), "minet").load("train")
        with pytest.raises(FileNotFoundError, match="has no query"):
            RdFsl(str(tmp_path), "minet").load("test")
        same = "minet/a/support/0.png"
        (tmp_path / "i.json").write_text(json.dumps({"a": [[same], [same]]}))
        with pytest.warns(UserWarning, match="1 images are in both"):
            RdFsl(str(tmp_path), "minet", "i.json", size=8).load("test")
        (tmp_path / "i.json").write_text('{"a": [["x.png"]]}')
        with pytest.raises(ValueError, match="class 'a' must have"):
            RdFsl(str(tmp_path), "minet", "i.json").load("test")
        (tmp_path / "i.json").write_text('{\n"a": [')
        with pytest.raises(ValueError, match=r"i\.json, line 2"):
            RdFsl(str(tmp_path), "minet", "i.json").load("test")


class TestOmniglot:
    def test_bundled_splits(self):
        plain = BundledOmniglot(rotations=False)
        pools = {split: plain.load(split).support for split in ("train", "val", "test")}
        assert {name: len(pool.classes) for name, pool in pools.items()} == {
            "train": 156,
            "val": 22,
            "test": 64,
        }
        assert sum(len(pool.image) for pool in pools.values()) == 242 * 20
        assert all(set(pool.count.tolist()) == {20} for pool in pools.values())
        alphabets = [{name.split("/")[0] for name in pool.classes} for pool in pools.values()]
        assert sum(len(x) for x in alphabets) == len(set.union(*alphabets)) == 8
        ink = pools["train"].image.double() / 255
        assert ink.mean().item() == pytest.approx(plain.mean[0], abs=1e-3)
        assert ink.std().item() == pytest.approx(plain.std[0], abs=1e-3)

    def test_rotations_are_for_training_unless_asked(self):
        assert len(BundledOmniglot().load("train").support.classes) == 624
        assert len(BundledOmniglot().load("test").support.classes) == 64
        assert len(BundledOmniglot(rotate_evaluation=True).load("test").support.classes) == 256

    def test_fewer_base_classes_are_nested(self):
        few, more = (set(BundledOmniglot(max_base_classes=n).load("train").support.classes) for n in (10, 40))
        assert (len(few), len(more)) == (10, 40)
        assert few < more
        with pytest.raises(ValueError, match="there are only 624"):
            BundledOmniglot(max_base_classes=625).load("train")

    @pytest.mark.skipif("ZOO_TEST_DATA" not in os.environ, reason="the authors' Omniglot zips are not here")
    def test_bundle_equals_the_authors_files_read_as_a_user_would(self, tmp_path):
        archive = Path(os.environ["ZOO_TEST_DATA"]) / "omniglot" / "images_background_small2.zip"
        with zipfile.ZipFile(archive) as file:
            chosen = sorted(n for n in file.namelist() if "/Tagalog/character03/" in n and n.endswith(".png"))
            file.extractall(tmp_path, chosen)
        pool = BundledOmniglot().load("test").support
        row = pool.start[pool.classes.index("Tagalog/character03")]
        assert torch.equal(read_images([str(tmp_path / n) for n in chosen], FORM), pool.image[row : row + 20])

    def test_vinyals_lists(self):
        split = vinyals_split()
        assert {name: len(x) for name, x in split.items()} == {"train": 1028, "val": 172, "test": 423}
        assert len(set(chain(*split.values()))) == 1623
        assert "Hebrew/character22" in split["val"]
        assert "Gurmukhi/character41" in split["train"]
        assert "Gurmukhi/character42" in split["test"]

    def test_random_split_counts_and_seed(self):
        names = [str(i) for i in range(1623)]
        split = random_split(names, 100, 0)
        assert [len(split[s]) for s in ("train", "val", "test")] == [1100, 100, 423]
        assert sorted(chain(*split.values()), key=int) == names
        assert random_split(names, 0, 0)["test"] == split["test"] != random_split(names, 100, 1)["test"]
        with pytest.raises(ValueError, match="found 3"):
            random_split(names[:3], 100, 0)

    def test_full_set_from_folders(self, tmp_path):
        root, lists = tmp_path / "omniglot-py", tmp_path / "lists"
        lists.mkdir()
        for part, alphabet in (("background", "A"), ("evaluation", "B")):
            for c in (1, 2):
                for i in range(3):
                    path = root / f"images_{part}" / alphabet / f"character{c:02d}" / f"{i}.png"
                    write(path, 255, (105, 105), "1")
        (lists / "train.txt").write_text("A/character02/rot000\nA/character02/rot090\nB/character01/rot000\n")
        (lists / "test.txt").write_text("B/character03\n")
        data = Omniglot(str(tmp_path), splits_dir=str(lists))
        pool = data.load("train").support
        assert len(pool.classes) == 8
        assert pool.classes[4] == "A/character02/rot180"
        assert pool.image.shape == (24, 1, 28, 28)
        assert pool.image.max() == 0
        with pytest.raises(FileNotFoundError, match=r"1 of 1 test characters.*B/character03"):
            data.load("test")
        with pytest.raises(FileNotFoundError, match=r"val\.txt"):
            data.load("val")
        with pytest.raises(FileNotFoundError, match="1028 of 1028 train"):
            Omniglot(str(tmp_path)).load("train")
        with pytest.raises(FileNotFoundError, match="download: true"):
            Omniglot(str(tmp_path / "elsewhere")).load("train")
