"""Make a grid of videos through a running page's API and print its Pareto front, showing the progress.

Try it:

    make run                          # in another terminal, until the page is there
    python examples/api_sweep.py      # or with the page's address: ... http://other-host:7860
"""

import sys
import time

from gradio_client import Client


def main() -> None:
    client = Client(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:7860")
    job = client.submit(
        prompt="a red ball bounces over green hills at sunset",
        seed=7,
        rows="sparsity",
        row_values=[0.5, 0.75, 0.9375],
        columns="chunk",
        column_values=["2x4x4", "4x4x4"],
        api_name="/sweep",
    )
    while not job.done():
        for progress in job.status().progress_data or []:
            print(progress.desc)
        time.sleep(1)

    report, table = job.result()  # raises what went wrong, in one sentence
    for cell in report["cells"]:
        if cell["error"]:
            print(f"sparsity {cell['sparsity']}, chunk {cell['chunk_q']}: {cell['error']}")
            continue
        front = "*" if [cell["row"], cell["column"]] in report["pareto_front"]["ssim"] else " "
        figures = f"{cell['speedup']:.2f}x, SSIM {cell['ssim']:.3f}"
        print(f"{front} sparsity {cell['sparsity']}, chunk {cell['chunk_q']}: {figures}")
    print(f"* on the Pareto front of speed-up and SSIM; all numbers: {table}")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # no server there, or what it says about the request, in one sentence
        sys.exit(f"error: {error}")
