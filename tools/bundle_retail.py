"""Make the bundled Online Retail II from its atomic files online-retail.inter and online-retail.item.

python tools/bundle_retail.py FOLDER

How these files came from the workbook that UCI publishes is told in datamodules/data/OnlineRetail.LICENSE.
"""

import argparse
from pathlib import Path

from datamodules.sequence_bundle import write_bundle
from datamodules.sequence_sets import OnlineRetail

TARGET = Path(__file__).parents[1] / "datamodules" / "data" / "online_retail.npz"


def main() -> None:
    """Write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    store = OnlineRetail(parser.parse_args().folder).load()
    write_bundle(store, TARGET)
    counts = f"{len(store.user_ids):,} users, {store.num_items:,} items, {len(store.item):,} interactions"
    print(f"{TARGET}: {counts}, {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
