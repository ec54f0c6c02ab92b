"""How lake_v1 was made. Not run by tests: the point of the files is that they stay as they were."""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))


def main() -> None:
    from lake_samples import sample_lake

    from facescale.lake.scan import scan

    sample = sample_lake(str(HERE / "lake"), {0: 12})
    expected = {
        version.folder: [
            {name: value.hex() if isinstance(value, bytes) else value for name, value in row.items()}
            for table in scan(sample.lake, version)
            for row in table.to_pylist()
        ]
        for version in sample.versions.values()
    }
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
