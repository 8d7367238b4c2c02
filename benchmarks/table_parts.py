"""The parts of a table in Markdown."""


def rows(head: str, lines: list[str]) -> str:
    return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *lines])


def grid(sizes: list[int]) -> str:
    return "x".join(map(str, sizes))


def machine(d: dict) -> str:
    where = ", ".join(f"{key} {d[key]}" for key in ("torch", "triton", "fastvideo") if d.get(key))
    return f"{d['device']}, {d['date'][:10]}, {where}."
