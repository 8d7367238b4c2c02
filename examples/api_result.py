"""Begin a video through a running page's API, lose the connection, and have the video over another one.

Whoever knows a job's id may ask for it, so take one that nobody guesses. A job whose client is gone goes on for two
minutes, and as long as somebody asks for it. Try it:

    make run                           # in another terminal, until the page is there
    python examples/api_result.py      # or with the page's address: ... http://other-host:7860
"""

import sys
import time
import uuid

from gradio_client import Client


def main() -> None:
    address, job_id = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:7860", uuid.uuid4().hex
    lost = Client(address)
    job = lost.submit(prompt="snow falls over snowy mountains", job_id=job_id, api_name="/generate")
    while not job.status().progress_data and not job.done():  # until it waits or runs
        time.sleep(0.1)

    client = Client(address)  # as another program would, on another day
    while (answer := client.predict(job_id=job_id, api_name="/result"))["state"] in ("waiting", "running"):
        print(answer["message"] or answer["state"])
        time.sleep(1)
    print(answer["state"], answer["message"])
    for name, video in answer["videos"].items():
        print(f"{name}: {video}")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # no server there, or what it says about the request, in one sentence
        sys.exit(f"error: {error}")
