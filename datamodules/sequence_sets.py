"""Public data sets of users' sequences, read from the files that their authors publish."""

import ast
import gzip
import json
import re
import zipfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from datamodules.interactions import Interactions, decoded_lines, moment, text_lines
from datamodules.sequence_bundle import read_bundle
from datamodules.sequence_files import RecBoleFiles, read_atomic
from datamodules.sequence_store import SequenceSet, SequenceStore
from datamodules.sources import bundled, download, wheel_member

RECBOLE = "recbole==1.2.1"
RECBOLE_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
ML_100K = {
    "inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
}
GROUPLENS_URL = "https://files.grouplens.org/datasets/movielens"
_ASIN = re.compile(r"""['"]asin['"]\s*:\s*['"]([^'"]+)['"]""")


class MovieLens100k(SequenceSet):
    """MovieLens-100k (Harper and Konstan 2015): 943 users, 1,682 films, 100,000 ratings, all as interactions.

    Its licence forbids copying it on, so it is fetched into the cache.

    Args:
        source: the atomic files inside the published wheel of RecBole 1.2.1, or GroupLens's archive.
    """

    def __init__(self, source: Literal["wheel", "archive"] = "wheel") -> None:
        self.source = source

    def load(self) -> SequenceStore:
        """As in ``SequenceSet``."""
        if self.source == "archive":
            path = download(f"{GROUPLENS_URL}/ml-100k.zip", "md5:0e33842e24a9c977be4e0107933c0723")
            return read_grouplens(path, "ml-100k/u.data", "\t", "ml-100k/u.item", "|")
        inter, items = (
            wheel_member(RECBOLE, RECBOLE_SHA256, f"recbole/dataset_example/ml-100k/ml-100k.{part}", digest)
            for part, digest in ML_100K.items()
        )
        return read_atomic(inter, items)


class MovieLens1M(SequenceSet):
    """MovieLens-1M (Harper and Konstan 2015): 6,040 users, 3,706 films, 1,000,209 ratings, all as interactions.

    Its licence forbids copying it on, so GroupLens's archive is fetched into the cache.
    """

    def load(self) -> SequenceStore:
        """As in ``SequenceSet``."""
        path = download(f"{GROUPLENS_URL}/ml-1m.zip", "md5:c4d9eecfca2ab87c1945afe126590906")
        return read_grouplens(path, "ml-1m/ratings.dat", "::", "ml-1m/movies.dat", "::")


def read_grouplens(archive: Path, ratings: str, cut: str, films: str, film_cut: str) -> SequenceStore:
    """Members of one of GroupLens's archives: ``user item rating time`` and ``item title ...``, no header."""
    with zipfile.ZipFile(archive) as opened:
        titles = {item: title for item, title, *_ in _cells(opened, films, film_cut, 2)}
        collected = Interactions(titles)
        for user, item, _, time in _cells(opened, ratings, cut, 4):
            collected.add(user, item, moment(time, f"{archive}, {ratings}"))
    return collected.store(f"{archive}, {ratings}", titles)


def _cells(archive: zipfile.ZipFile, member: str, cut: str, least: int) -> Iterator[list[str]]:
    with archive.open(member) as raw:
        size = archive.getinfo(member).file_size
        for number, line in decoded_lines(cast(BinaryIO, raw), size, f"{archive.filename}, {member}", "latin-1"):
            cells = line.split(cut)
            if len(cells) < least:
                raise ValueError(f"{archive.filename}, {member}, line {number}: {len(cells)} of {least} columns")
            yield cells


class Amazon2014(SequenceSet):
    """Reviews of one category of the Amazon product data of 2014, 5-core (McAuley et al. 2015), as interactions.

    From https://jmcauley.ucsd.edu/data/amazon/: ``reviews_<category>_5.json.gz`` and, for titles, the category's
    ``meta_<category>.json.gz``. Times are whole days, so ties are common; they keep the order of the file.

    Args:
        root: the folder that holds the two files.
        category: as in the files' names, such as Beauty, Sports_and_Outdoors or Office_Products.
    """

    def __init__(self, root: str, category: str = "Beauty") -> None:
        self.root, self.category = Path(root).expanduser(), category

    @property
    def name(self) -> str:
        return f"amazon-{self.category}".lower()

    def load(self) -> SequenceStore:
        """As in ``SequenceSet``."""
        reviews, meta = self.root / f"reviews_{self.category}_5.json.gz", self.root / f"meta_{self.category}.json.gz"
        if not reviews.is_file():
            raise FileNotFoundError(
                f"{reviews} does not exist; get it from https://jmcauley.ucsd.edu/data/amazon/ (5-core) for this folder"
            )
        collected, seen = Interactions(), set()
        for number, line in _unzipped_lines(reviews):
            where = f"{reviews}, line {number}"
            row = _json_object(line, where, "reviewerID", "asin", "unixReviewTime")
            seen.add(row["asin"])
            collected.add(row["reviewerID"], row["asin"], moment(row["unixReviewTime"], where))
        titles = self._titles(meta, seen) if meta.is_file() else None
        return collected.store(str(reviews), titles)

    def _titles(self, meta: Path, wanted: set[str]) -> dict[str, str]:
        titles = {}
        for number, line in _unzipped_lines(meta):
            found = _ASIN.search(line)
            if found and found[1] in wanted:
                try:
                    row = ast.literal_eval(line)  # these lines are Python's form of a dict, not JSON
                    titles[row["asin"]] = str(row.get("title") or "")
                except (ValueError, SyntaxError, TypeError, KeyError) as error:
                    raise ValueError(f"{meta}, line {number}: not a product ({error!r})") from error
        return titles


class Yelp2019(SequenceSet):
    """The reviews of one year in the Yelp open data set (https://business.yelp.com/data/resources/open-dataset/).

    Filter it by ``min_user_interactions: 5`` and ``min_item_interactions: 5`` for the set of SRA-CL
    (arXiv 2503.04162).

    Args:
        root: the folder that holds ``yelp_academic_dataset_review.json`` and ``..._business.json``.
        start: first day, as YYYY-MM-DD.
        end: the day after the last.
    """

    def __init__(self, root: str, start: str = "2019-01-01", end: str = "2020-01-01") -> None:
        for name, value in (("start", start), ("end", end)):
            try:
                datetime.strptime(value, "%Y-%m-%d")
            except ValueError:
                raise ValueError(f"Yelp2019.{name}={value!r}: expected YYYY-MM-DD") from None
        if start >= end:
            raise ValueError(f"Yelp2019: start={start} must be before end={end}")
        self.root, self.start, self.end = Path(root).expanduser(), start, end

    def load(self) -> SequenceStore:
        """As in ``SequenceSet``."""
        reviews, places = (self.root / f"yelp_academic_dataset_{what}.json" for what in ("review", "business"))
        for path in (reviews, places):
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path} does not exist; unpack the JSON archive of "
                    "https://business.yelp.com/data/resources/open-dataset/ there"
                )
        collected = Interactions()
        for number, line in text_lines(reviews):
            where = f"{reviews}, line {number}"
            row = _json_object(line, where, "user_id", "business_id", "date")
            if self.start <= row["date"] < self.end:
                collected.add(row["user_id"], row["business_id"], moment(row["date"], where))
        titles = {}
        for number, line in text_lines(places):
            row = _json_object(line, f"{places}, line {number}", "business_id", "name")
            titles[row["business_id"]] = row["name"]
        return collected.store(str(reviews), titles)


class OnlineRetail(SequenceSet):
    """Purchases of a gift wholesaler's customers in 2009-2010 (Chen 2019, UCI "Online Retail II"): 4,035 customers,
    3,457 products, 271,966 first purchases, bundled.

    Items of one invoice share their time and keep the invoice's order.

    Args:
        root: a folder of atomic files ``online-retail.inter`` and ``online-retail.item`` to read instead; null for
            the bundled set.
    """

    def __init__(self, root: str | None = None) -> None:
        self.root = root

    @property
    def name(self) -> str:
        return "online-retail"

    def load(self) -> SequenceStore:
        """As in ``SequenceSet``."""
        if self.root is None:
            return read_bundle(bundled("online_retail.npz"))
        return RecBoleFiles(self.root, self.name).load()


def _unzipped_lines(path: Path) -> Iterator[tuple[int, str]]:
    """As ``text_lines``, of a gzip file; the progress bar counts packed bytes."""
    with gzip.open(path) as lines:
        try:
            for number, line in enumerate(lines, 1):
                yield number, line.decode("utf-8")
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a whole gzip file of UTF-8 text: {error}") from error


def _json_object(line: str, where: str, *names: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from error
    if missing := [name for name in names if not isinstance(row, dict) or name not in row]:
        raise ValueError(f"{where}: no field {missing[0]!r}")
    return row
