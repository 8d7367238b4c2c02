"""Style sheet, markup and scripts of the page, served inline so that nothing is fetched from other hosts."""

from pathlib import Path


def asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
