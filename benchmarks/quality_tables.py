"""The tables of docs/quality.md, each from the content of a results file."""

import quality_plot
from table_parts import grid, machine, rows

LARGE_AND_SMALL = ("4x4x4 / 4x4x4", "2x2x4 / 2x2x4")


def settings(d: dict) -> list[dict]:
    """Every setting of the study, with its words in place of its name."""
    found = []
    for row in d["rows"]:
        if (bsa := row.get("bsa")) is not None:
            counts = [(bsa.get(f"dense_{kind}s", 0), kind) for kind in ("step", "layer")]
            first = [f"{count} {kind}{'s' * (count > 1)}" for count, kind in counts if count]
            blocks = f"{grid(bsa['chunk_3d_shape_q'])} / {grid(bsa['chunk_3d_shape_k'])}"
            words = {"scores": bsa.get("selection", "mean"), "blocks": blocks, "first": ", ".join(first) or "none"}
            found.append(row | words | {"sparsity": bsa["sparsity"]})
    return found


def teacache(d: dict) -> str:
    """Means over the prompts for each attention and threshold, beside a schedule of as many steps."""

    def of(attention: str, what: str, threshold: float | None = None) -> list[dict]:
        kept = (r for r in d["rows"] if r["attention"] == attention and r["what"] == what)
        return [row for row in kept if row.get("threshold") == threshold]

    def mean(found: list[dict], key: str) -> float:
        return sum(row[key] for row in found) / len(found)

    def decibels(found: list[dict]) -> str:
        return f"{mean(found, 'psnr'):.1f} dB | {min(row['psnr'] for row in found):.1f} dB"

    lines = []
    for attention in ("dense", "sparse"):
        whole, floor = of(attention, "all steps"), of(attention, "noise floor")
        seconds = mean(whole, "seconds")
        lines.append(f"| {attention} | 0 | {d['steps']} | {seconds:.1f} s | | floor: {decibels(floor)} | | |")
        for threshold in sorted({row["threshold"] for row in d["rows"] if "threshold" in row}):
            skipping, fewer = (of(attention, what, threshold) for what in ("TeaCache", "as many steps"))
            passes, taken = mean(skipping, "passes"), mean(skipping, "seconds")
            lines.append(
                f"| {attention} | {threshold:g} | {passes:.1f} | {taken:.1f} s | {seconds / taken:.2f}x "
                f"| {decibels(skipping)} | {decibels(fewer)} |"
            )
    width, height, frames = d["size"]
    intro = (
        f"{d['cpu']}, {d['threads']} thread, {d['date'][:10]}, torch {d['torch']}: the embedded checkpoint in "
        f"{d['precision']}, {width}x{height}, {frames} frames, {d['steps']} steps of the regular schedule, no "
        f"guidance, sparsity {d['sparsity']}, {d['prompts']} prompts. Means; CPU time of denoising.\n\n"
    )
    head = (
        "| attention | threshold | steps run | denoising | speed-up | PSNR | worst prompt | as many steps: PSNR "
        "| worst prompt |"
    )
    return intro + rows(head, lines)


def plot(d: dict) -> str:
    """The settings of the study as a picture, SVG."""
    return quality_plot.svg(settings(d), _floor(d), f"{d['device']}, {d['date'][:10]}, {d['prompts']} prompts")


def _floor(d: dict) -> dict:
    return next(row for row in d["rows"] if "bsa" not in row)


def _intro(d: dict) -> str:
    floor = _floor(d)
    judged = ""
    if "flips" in floor:
        judged = (
            f" {floor['judged']} prompts have one object and are judged: {d['dense']['follows']:.0%} of the dense "
            f"videos follow them, and rounding alone flips {floor['flips']}."
        )
    return (
        f"{d['device']}, {d['date'][:10]}, torch {d['torch']}, {d['dtype']}, {d['prompts']} prompts. Noise floor "
        f"(dense attention by another kernel): {floor['psnr']:.1f} dB, worst clip {floor['worst_psnr']:.1f} dB, SSIM "
        f"{floor['ssim']:.4f}.{judged}\n\n"
    )


def psnr(d: dict) -> str:
    """Mean PSNR of every setting at every sparsity."""
    cells: dict[tuple, dict[float, str]] = {}
    for row in settings(d):
        key = row["scores"], row["blocks"], row["first"]
        cells.setdefault(key, {})[row["sparsity"]] = f"{row['psnr']:.1f} dB"
    sparsities = sorted({sparsity for line in cells.values() for sparsity in line})
    lines = [f"| {' | '.join([*key, *(line[sparsity] for sparsity in sparsities)])} |" for key, line in cells.items()]
    head = f"| scores | query / key chunk | dense first | {' | '.join(f'at {sparsity}' for sparsity in sparsities)} |"
    picture = "![PSNR to dense against the share of pairs computed](images/quality.svg)\n\n"
    return _intro(d) + picture + rows(head, lines)


def details(d: dict) -> str:
    """All figures at the two sparsities that people use. Those of the judge are there if it was asked."""
    lines, judged = [], any("flips" in row for row in settings(d))
    for row in settings(d):
        if row["sparsity"] in (0.75, 0.9375):
            low, high = row["gain_interval"]
            meaning = f" {row['flips']} of {row['judged']} | {row['follows']:.0%} |" if judged else ""
            lines.append(
                f"| {row['sparsity']} | {row['scores']} | {row['blocks']} | {row['first']} | {row['density']:.1%} "
                f"| {row['psnr']:.1f} dB | {row['gain']:+.1f} ({low:+.1f} to {high:+.1f}) | {row['worst_psnr']:.1f} dB "
                f"| {row['worst_frame']:.1f} dB | {row['ssim']:.3f} | {row['flicker']:.2f} |{meaning}"
            )
    head = (
        "| sparsity | scores | query / key chunk | dense first | pairs computed | PSNR | gain over LongCat's (95%) "
        "| worst clip | worst frame, mean | SSIM | flicker |" + " flips of meaning | follows the prompt |" * judged
    )
    return _intro(d) + rows(head, lines)


def layers(d: dict) -> str:
    """Recall and output error of each layer at the same two sparsities, for the largest and the smallest blocks."""
    shown = [
        row
        for row in settings(d)
        if "layers" in row and row["sparsity"] in (0.75, 0.9375) and row["blocks"] in LARGE_AND_SMALL
    ]
    if not shown:
        return "Not measured yet."
    lines = [
        f"| {label} | {row['sparsity']} | {row['scores']} | {row['blocks']} | "
        f"{' | '.join(f'{value:.2f}' for value in row['layers'][what])} |"
        for what, label in (("recall", "mass kept"), ("error", "output error"))
        for row in shown
    ]
    numbers = " | ".join(str(layer + 1) for layer in range(len(shown[0]["layers"]["recall"])))
    head = f"| in layer | sparsity | scores | query / key chunk | {numbers} |"
    return f"Along the dense videos of {d['probed']} prompts.\n\n" + rows(head, lines)


def methods(d: dict) -> str:
    """What each method of selection gives at equal numbers of blocks, against cells."""
    lines = [
        f"| {row['sparsity']} | {row['method']} | {row['psnr']:.1f} dB | {row['gain']:+.2f} "
        f"({row['gain_interval'][0]:+.2f} to {row['gain_interval'][1]:+.2f}) | {row['worst_psnr']:.1f} dB "
        f"| {row['ssim']:.3f} |"
        for row in d["rows"]
    ]
    head = "| sparsity | method | PSNR | gain over cells (95%) | worst clip | SSIM |"
    return f"{d['device']}, {d['date'][:10]}, torch {d['torch']}, {d['prompts']} prompts.\n\n" + rows(head, lines)


def times(d: dict) -> str:
    found = {(row["grid"], *row["what"].split(", ")): row for row in d["rows"] if "ms" in row}
    lines = []
    for place, scores, _ in (key for key in found if key[2] == "select"):
        pooled, select, whole = (found[place, scores, part] for part in ("pool", "select", "operation"))
        lines.append(
            f"| {place} | {scores} | {pooled['ms']:.2f} ms | {select['ms']:.2f} ms | {whole['ms']:.1f} ms "
            f"| {select['agreement']:.2%} |"
        )
    head = "| token grid | scores | pooling | scoring and top-k | whole operation | same blocks as by float64 |"
    return f"{machine(d)}\n\n" + rows(head, lines)


def forward(d: dict) -> str:
    times = {row["grid"]: {} for row in d["rows"] if row["what"].endswith(", forward")}
    for row in d["rows"]:
        if row["what"].endswith(", forward") and "ms" in row:
            times[row["grid"]][row["what"].removesuffix(", forward")] = row["ms"]
    lines = [
        f"| {place} | {name} | {ms / 1e3:.2f} s | {ms / kinds['mean'] - 1:+.0%} |"
        for place, kinds in times.items()
        for name, ms in kinds.items()
    ]
    return f"{machine(d)}\n\n" + rows("| token grid | attention | forward pass | against mean |", lines)
