"""Make the same clip with dense and with block sparse attention through a running page's API, showing the progress.

Try it:

    make run                            # in another terminal, until the page is there
    python examples/api_compare.py      # or with the page's address: ... http://other-host:7860
"""

import sys
import time

from gradio_client import Client


def main() -> None:
    client = Client(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:7860")
    job = client.submit(
        prompt="a red ball bounces over green hills at sunset",
        seed=7,
        sparsity=0.75,
        api_name="/compare",
    )
    while not job.done():
        for progress in job.status().progress_data or []:
            print(f"{progress.desc} {progress.index}/{progress.length}")
        time.sleep(1)

    dense, sparse, report = job.result()  # raises what went wrong, in one sentence
    print(f"{dense}\n{sparse}")
    print(
        f"denoising {report['speedup']:.2f}x as fast as dense; PSNR {report['psnr']:.1f} dB, SSIM {report['ssim']:.3f}"
    )


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # no server there, or what it says about the request, in one sentence
        sys.exit(f"error: {error}")
