"""`hf-srigl densify`: an ordinary dense checkpoint out of a condensed one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hf_srigl.commands import common
from hf_srigl.commands.checkpoints import (
    check_new,
    copy_companions,
    fetch,
    load_condensed,
    new_folder,
    weight_files,
)
from hf_srigl.commands.common import Commands, megabytes
from hf_srigl.files.card import remove_card_section
from hf_srigl.model.surgery import densify

EXAMPLES = """examples:
  hf-srigl densify out/sparse out/dense
  hf-srigl densify someone/bert-90-percent-sparse dense --json
"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "densify",
        help="make a condensed model an ordinary dense one, zeros and all",
        description="Reads a condensed checkpoint and writes a dense one that computes the same and loads anywhere, without "
        "hf_srigl, with the tokenizer or processor and whatever else lies beside the weights.",
        epilog=EXAMPLES,
        formatter_class=common.Help,
    )
    parser.add_argument("path", metavar="IN", help="folder of a condensed model, or its name on the Hub")
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder for the dense model")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    check_new(arguments.out)  # before anything is downloaded
    with common.loading_bars(common.on_terminal()):
        source = load_condensed(fetch(arguments.path, companions=True))
        densify(source.model, progress=True)
        with new_folder(arguments.out) as folder:
            source.model.save_pretrained(folder)
            written = copy_companions(source.folder, folder)
            if (folder / "README.md").is_file():
                remove_card_section(folder / "README.md")
    before, after = (sum(file.stat().st_size for file in weight_files(f)) for f in (source.folder, arguments.out))
    architecture, dtype = type(source.model).__name__, str(source.model.dtype).removeprefix("torch.")
    if arguments.json:
        facts = {"source": arguments.path, "path": str(arguments.out), "architecture": architecture, "dtype": dtype}
        sizes = {"condensed_file_bytes": before, "file_bytes": after}
        files = {"copied": written.copied, "not_copied": written.left, "unused_tensors": list(source.unused)}
        print(json.dumps({**facts, **sizes, **files}, indent=2))
        return
    print(f"condensed  {megabytes(before):>10}  {arguments.path} ({architecture}, {dtype})")
    print(f"dense      {megabytes(after):>10}  {arguments.out} ({after / before:.1f} times as large)")
    print(f"copied     {', '.join(written.copied) or 'nothing: there is neither tokenizer nor processor'}")
    if written.left:
        print(f"not copied {', '.join(written.left)}")
