# For a Hugging Face Docker Space and for any machine:
#   docker build -t longcat-bsa . && docker run --rm -p 7860:7860 longcat-bsa              (CPU)
#   docker run --rm -p 7860:7860 --gpus all longcat-bsa                                    (NVIDIA)
#   docker run --rm -p 7860:7860 -v /data/longcat:/model:ro longcat-bsa python app.py --model-path /model
# With -v longcat-outputs:/home/user/app/outputs the videos and the history outlive the container.
FROM python:3.12-slim

# A C compiler builds Triton's launchers on first use on a GPU, and bsa/native's kernels on a CPU (docs/cpu.md).
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# Spaces run the container as user 1000.
# A volume that is mounted over outputs, which holds videos and history, takes over its owner.
RUN useradd --create-home --uid 1000 user \
    && install --directory --owner=user --group=user /home/user/app /home/user/app/outputs
USER 1000
ENV HOME=/home/user
WORKDIR $HOME/app

ENV PATH=$HOME/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    GRADIO_SERVER_NAME=0.0.0.0 \
    GRADIO_SERVER_PORT=7860 \
    GRADIO_TEMP_DIR=/tmp/gradio \
    GRADIO_ANALYTICS_ENABLED=False \
    HF_HOME=$HOME/.cache/huggingface \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

COPY --chown=user requirements.txt .
RUN python -m venv $HOME/.venv && pip install --no-cache-dir --no-deps -r requirements.txt

COPY --chown=user . .

EXPOSE 7860
HEALTHCHECK --start-period=60s --timeout=10s \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['GRADIO_SERVER_PORT'])"]

# Spaces say how many cores are theirs; PyTorch would count those of the whole host.
CMD ["sh", "-c", "exec env ${CPU_CORES:+OMP_NUM_THREADS=$CPU_CORES} python app.py"]
