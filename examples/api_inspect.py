"""Make a video through a running page's API and see which blocks its sparse attention read.

Try it:

    make run                            # in another terminal, until the page is there
    python examples/api_inspect.py      # or with the page's address: ... http://other-host:7860
"""

import sys

from gradio_client import Client


def main() -> None:
    client = Client(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:7860")
    _, report = client.predict(prompt="a yellow star spins over a city at night", seed=7, api_name="/generate")
    attention = client.predict(job_id=report["job_id"], step=0, layer=0, head=0, query_block=0, api_name="/inspect")
    print(
        f"the blocks kept hold {attention['recall']:.1%} of the attention, with {attention['density']:.1%} of the work"
    )
    for layer, recall in enumerate(attention["recall_by_layer"]):
        print(f"layer {layer:2}  {recall:.1%}")
    print(f"query block 0 of head 0 read the key blocks {attention['block']['kept']} (frame, row, column)")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # no server there, or what it says about the request, in one sentence
        sys.exit(f"error: {error}")
