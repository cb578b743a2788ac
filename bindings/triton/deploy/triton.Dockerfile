# Triton with the backend of CoS, for NVIDIA GPUs and processors. From the root of the repository:
#     docker build --file bindings/triton/deploy/triton.Dockerfile --tag cos-triton .
#
# The release of Triton has the CUDA that the build of ONNX Runtime needs: 13. NVIDIA's image has all backends; its
# compose.py makes one without them, which --build-arg TRITON=NAME takes instead.
ARG TRITON=nvcr.io/nvidia/tritonserver:25.08-py3

FROM rust:1.92-bookworm AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends python3-pip && rm -rf /var/lib/apt/lists/*
WORKDIR /cos
# The wheel is only a container here. The version of Python is one for which the release has a wheel.
RUN python3 -m pip download --no-cache-dir --no-deps --only-binary=:all: --dest /wheel --python-version 3.12 \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 onnxruntime-gpu==1.31.1 \
    && python3 -m zipfile --extract /wheel/*.whl /wheel \
    && mkdir -p target/onnxruntime \
    && cp /wheel/onnxruntime/capi/libonnxruntime*.so* target/onnxruntime \
    && rm -rf /wheel
COPY . .
RUN make build && bindings/triton/build /backends

FROM ${TRITON}
COPY --from=build /backends/cos /opt/tritonserver/backends/cos
# NVIDIA's user triton-server.
USER 1000:1000
# What the driver compiles for a GPU is kept there; the rest of the file system may be read-only.
ENV CUDA_CACHE_PATH=/tmp/cuda-cache
EXPOSE 8000 8001 8002
CMD ["tritonserver", "--model-repository=/models", "--exit-timeout-secs=300"]
