"""Begin a video through a running page's API under a name of one's own, and stop it.

Try it:

    make run                           # in another terminal, until the page is there
    python examples/api_cancel.py      # or with the page's address: ... http://other-host:7860
"""

import sys
import time

from gradio_client import Client


def main() -> None:
    client = Client(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:7860")
    job = client.submit(prompt="snow falls over snowy mountains", steps=50, job_id="snow-1", api_name="/generate")
    while not job.status().progress_data and not job.done():  # until it waits or runs
        time.sleep(0.1)
    print(client.predict(job_id="snow-1", api_name="/cancel"))
    try:
        job.result()
    except Exception as error:
        print(error)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # no server there, or what it says about the request, in one sentence
        sys.exit(f"error: {error}")
